"""`tacit site budget`: what a ledger says, to people and to programs, without key or data."""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tacit_client.budget import budget_of, load, present_cap
from tacit_client.budget_view import sentences
from tacit_client.cli import site_app
from tacit_client.ledger import Ledger
from tacit_common.errors import LedgerError, UsageError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import (
    Atom,
    Cap,
    Charge,
    VerifiedLedger,
    parse_export,
    verify_rows,
)
from tacit_common.privacy.accounting import epsilon
from tacit_common.privacy.events import GaussianRelease, NonPrivateRelease
from tacit_common.privacy.plan import PrivacySchedule, calibrate
from tacit_common.study import Study, StudyFile

DELTA = 1e-5
CAP = Cap(epsilon=20.0, delta=DELTA)
QUIET = GaussianRelease(noise_multiplier=10.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "site-0"


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    ledger = Ledger(
        folder / "ledger.db", site="site-0", identity=Identity.create(), survive_power_loss=False
    )
    atom = Atom(atom="a0", lineage="scans", parents=(), tags_sha256="0" * 64)
    ledger.add_atoms(lambda *_: [atom])
    yield ledger
    ledger.close()


def reserve(ledger: Ledger, key: str, *, run: str = "quiet", cap: Cap | None = CAP) -> None:
    event = QUIET if cap else NonPrivateRelease()
    one = Charge(
        key=key,
        run=run,
        study="letters",
        study_digest="e" * 64,
        action="probe",
        label=f"probe {key}",
        unit="record",
        event=event,
        planned=(event, event),
        atoms=("a0",),
        cap=cap,
    )
    ledger.reserve(one, lambda *_: None)


def reserve_round(
    ledger: Ledger, study: Study, number: int, cap: Cap = CAP, run: str = "run"
) -> PrivacySchedule:
    schedule = calibrate(study)
    one = Charge(
        key=f"{run} {number}",
        run=run,
        study=study.name,
        study_digest=study.digest(),
        action="train",
        label=f"round {number}",
        unit="record",
        event=schedule.round_event,
        planned=schedule.planned,
        atoms=("a0",),
        cap=cap,
    )
    ledger.reserve(one, lambda *_: None)
    return schedule


def verified(ledger: Ledger) -> VerifiedLedger:
    return verify_rows(ledger.entries())


# --- figures -----------------------------------------------------------------------------


def test_a_run_shows_its_own_cost_its_share_and_its_outcomes(
    ledger: Ledger, make_study: Callable[..., Study]
) -> None:
    study = make_study()
    schedule = reserve_round(ledger, study, 1)
    for key, outcome in (("answered", ledger.commit), ("failed", ledger.void)):
        reserve(ledger, key)
        outcome(key)
    ledger.close_run("quiet")
    found = budget_of(verified(ledger), CAP)
    tiny, quiet = found.runs
    assert (tiny.run, tiny.study, tiny.state, tiny.releases) == ("run", "tiny", "open", 1)
    assert (tiny.failed, tiny.unfinished) == (0, 1)
    assert (quiet.state, quiet.releases, quiet.failed, quiet.unfinished) == ("closed", 2, 1, 0)
    assert tiny.alone == epsilon([schedule.round_event], DELTA)
    assert quiet.alone == epsilon([QUIET, QUIET], DELTA)
    assert tiny.share is not None
    assert quiet.share is not None
    assert tiny.share + quiet.share == pytest.approx(1.0)
    assert tiny.share > quiet.share > 0
    (atom,) = found.atoms
    assert atom.spent + atom.remaining <= CAP.epsilon
    assert atom.held + atom.remaining == pytest.approx(CAP.epsilon)
    assert (found.head_seq, found.head_hash) == (ledger.head.seq, ledger.head.hash)


def test_the_next_round_of_a_study_that_is_under_way_costs_what_is_held_already(
    ledger: Ledger, make_study: Callable[..., Study]
) -> None:
    study = make_study()
    schedule = reserve_round(ledger, study, 1)
    (proposal,) = budget_of(verified(ledger), CAP, study).proposals
    assert (proposal.label, proposal.admitted, proposal.why) == ("round 2", True, None)
    assert proposal.held == pytest.approx(schedule.planned_epsilon)
    assert proposal.spent == pytest.approx(proposal.held)  # it is the last one
    reserve_round(ledger, study, 2)
    (beyond,) = budget_of(verified(ledger), CAP, study).proposals
    assert beyond.label == "round 1"  # that run is over: this is what another would cost
    assert beyond.held > proposal.held


def test_a_study_that_would_pass_the_cap_is_said_to_be_refused(
    ledger: Ledger, make_study: Callable[..., Study]
) -> None:
    tight = Cap(epsilon=5.0, delta=DELTA)  # the study asks for 8
    reserve(ledger, "before", cap=tight)
    (proposal,) = budget_of(verified(ledger), tight, make_study()).proposals
    assert not proposal.admitted
    assert proposal.why is not None
    assert "would come to ε" in proposal.why


def test_a_site_without_a_history_can_be_asked_about_a_study(
    tmp_path: Path, make_study: Callable[..., Study]
) -> None:
    empty = Ledger(tmp_path / "ledger.db", site="new", identity=Identity.create())
    ledger = verified(empty)
    empty.close()
    (proposal,) = budget_of(ledger, CAP, make_study()).proposals
    assert (proposal.label, proposal.admitted) == ("round 1", True)


def test_asking_about_a_study_without_privacy_says_what_it_takes(
    ledger: Ledger, make_study: Callable[..., Study], no_privacy: str
) -> None:
    (proposal,) = budget_of(verified(ledger), CAP, make_study(no_privacy)).proposals
    assert not proposal.admitted
    assert proposal.why is not None
    assert "no differential privacy" in proposal.why


def test_a_refused_proposal_is_refused_by_the_policy_too(
    ledger: Ledger, make_study: Callable[..., Study]
) -> None:
    from tacit_client.policy import SitePolicy
    from tacit_common.errors import SiteRefusal

    study = make_study()
    for cap in (CAP, Cap(epsilon=4.0, delta=DELTA)):
        (proposal,) = budget_of(verified(ledger), cap, study).proposals
        policy = SitePolicy.rehearsal(
            unit="record", epsilon_cap=cap.epsilon, delta=cap.delta, allow_non_private=False
        )
        schedule = calibrate(study)
        one = Charge(
            key="k", run="run", study=study.name, study_digest=study.digest(), action="train",
            label="round 1", event=schedule.round_event, planned=schedule.planned,
            unit="record",
            atoms=("a0",), cap=cap,
        )  # fmt: skip
        if proposal.admitted:
            policy.check(ledger.spend, one)
        else:
            with pytest.raises(SiteRefusal):
                policy.check(ledger.spend, one)


# --- the cap -----------------------------------------------------------------------------


def test_the_cap_is_that_of_the_newest_charge_unless_another_is_given(ledger: Ledger) -> None:
    reserve(ledger, "first", cap=Cap(epsilon=3.0, delta=1e-6))
    reserve(ledger, "second", cap=CAP)
    reserve(ledger, "third", cap=None)
    found = verified(ledger)
    assert present_cap(found) == CAP
    assert present_cap(found, epsilon_cap=1.0) == Cap(epsilon=1.0, delta=DELTA)
    assert present_cap(found, delta=1e-9) == Cap(epsilon=20.0, delta=1e-9)


def test_a_cap_that_nobody_named_has_to_be_given(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="cap is not known"):
        present_cap(verified(ledger), epsilon_cap=1.0)
    with pytest.raises(UsageError, match="is no cap"):
        present_cap(verified(ledger), epsilon_cap=1.0, delta=1.0)


# --- sentences ---------------------------------------------------------------------------


def test_the_sentences_read_well(ledger: Ledger, make_study: Callable[..., Study]) -> None:
    assert sentences(budget_of(verified(ledger), CAP)) == [
        "Site site-0 may reveal at most ε = 20 at δ = 1e-05 of any one unit of its data, over "
        "all studies.",
        "Nothing of its data has been released.",
    ]
    study = make_study()
    reserve_round(ledger, study, 1)
    _, state, proposal = sentences(budget_of(verified(ledger), CAP, study))
    number = r"[\d.]+"
    assert re.fullmatch(
        rf"Of atom a0 \(data set scans\), ε = {number} is spent, and it will be {number} when the "
        rf"started studies have finished; ε = {number} remains for others\. Several studies add up "
        r"by a filter, which counts more than each study alone\.",
        state,
    )
    assert re.fullmatch(
        rf"Round 2 of study tiny on atom a0 would be allowed: ε = {number} would then be spent, "
        rf"and ε = {number} by the end of the study\.",
        proposal,
    )


def test_a_sealed_atom_and_one_without_privacy_are_named_as_such(
    ledger: Ledger, make_study: Callable[..., Study]
) -> None:
    study = make_study()
    cap = Cap(epsilon=8.0, delta=DELTA)
    reserve_round(ledger, study, 1, cap)
    _, state, _ = sentences(budget_of(verified(ledger), cap, study))
    assert state.endswith("its only study has finished; under this cap nothing else may use it.")
    other = make_study("name=other")
    _, _, refused = sentences(budget_of(verified(ledger), cap, other))
    assert refused.startswith("Round 1 of study other on atom a0 would be refused: atom a0 is seal")
    reserve(ledger, "shown", cap=None)
    _, state = sentences(budget_of(verified(ledger), cap))
    assert "without differential privacy" in state


# --- the command -------------------------------------------------------------------------


def run(*arguments: object) -> str:
    result = CliRunner().invoke(site_app, ["budget", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_command_prints_sentences_tables_and_the_head(ledger: Ledger, folder: Path) -> None:
    reserve(ledger, "a")
    text = run(folder)
    for part in ("Site site-0 may", "ε remaining", "scans", "letters", "ledger row 2"):
        assert part in text
    assert run(folder / "ledger.db") == text


@pytest.mark.parametrize("name", ["[/x]", "[bold red]ok", "\x1b[2J\x1b]0;owned\x07", "a\nrun b"])
def test_a_run_whose_name_is_markup_or_a_terminals_command_is_shown_as_it_is(
    ledger: Ledger, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    reserve(ledger, "a", run=name)
    text = run(folder)
    shown = "".join(character if character.isprintable() else "·" for character in name)
    assert shown in text
    assert "\x1b]" not in text


def test_the_command_gives_json_and_writes_an_export_that_verifies(
    ledger: Ledger, folder: Path, tmp_path: Path, study_file: Callable[..., StudyFile]
) -> None:
    reserve(ledger, "a")
    study = tmp_path / "study.toml"
    study.write_text(study_file().to_toml())
    export = tmp_path / "export.json"
    found = json.loads(run(folder, "--json", "--export", export, "--study", study))
    assert found["site"] == "site-0"
    assert found["cap"] == {"epsilon": 20.0, "delta": DELTA}
    assert found["proposals"][0]["admitted"] is True
    rows = parse_export(export.read_text(), source="export").rows
    assert verify_rows(rows).head == ledger.head


def test_without_privacy_the_json_has_no_number_for_epsilon(ledger: Ledger, folder: Path) -> None:
    reserve(ledger, "a", cap=None)
    found = json.loads(run(folder, "--json", "--epsilon-cap", 1, "--delta", 1e-5))
    assert found["atoms"][0]["spent"] is None
    assert found["atoms"][0]["remaining"] == 0.0
    assert math.isinf(budget_of(verified(ledger), CAP).atoms[0].spent)


def test_the_command_needs_no_key_and_works_beside_a_working_site(
    ledger: Ledger, folder: Path
) -> None:
    reserve(ledger, "a")
    assert not (folder / "identity.key").exists()
    run(folder)
    reserve(ledger, "b")
    assert len(load(folder)[0].charges) == 2


def test_a_folder_without_a_ledger_and_one_that_is_damaged_are_refused(
    ledger: Ledger, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        run(tmp_path)
    reserve(ledger, "a")
    database = ledger._database
    database.execute("DROP TRIGGER entries_are_never_changed")
    database.execute("UPDATE entries SET payload = replace(payload, '10.0', '90.0') WHERE seq = 2")
    with pytest.raises(LedgerError, match="damaged at row 2"):
        run(folder)


def test_an_export_that_cannot_be_written_is_the_users_to_mend(
    ledger: Ledger, folder: Path
) -> None:
    reserve(ledger, "a")
    with pytest.raises(UsageError, match="cannot be written"):
        run(folder, "--export", folder / "ledger.db" / "export.json")
