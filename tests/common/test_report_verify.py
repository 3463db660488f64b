"""Verifying a report: a true one holds, and whoever changes one field is found out."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tacit_common import report as r
from tacit_common.commands.report import report_app
from tacit_common.errors import RefusalCode, TacitError, UsageError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import (
    Atom,
    Cap,
    Charge,
    Commit,
    Entry,
    Genesis,
    LedgerExport,
    Payload,
    Void,
    head_of,
    next_entry,
    verify_rows,
)
from tacit_common.objectives.logit_dp import logit_dp_sensitivity
from tacit_common.privacy.events import GaussianRelease, PoissonGaussianSteps, PrivacyEvent
from tacit_common.privacy.noise import LatticeGaussian, SecureRandom
from tacit_common.privacy.plan import calibrate
from tacit_common.report import statements
from tacit_common.report.account import site_account
from tacit_common.report.recompute import (
    Composition,
    figures_of_site,
    grouped,
    privacy_figures,
)
from tacit_common.report.signing import SignedReport, fingerprint, sign_report
from tacit_common.report.verify.audit_bound import epsilon_lower_bound
from tacit_common.report.verify.checks import (
    NOT_CHECKED,
    check_signatures,
    read_document,
    run_checks,
    verify,
)
from tacit_common.report.verify.findings import Check, Finding
from tacit_common.study import LocalPrivacyPlan, LogitDPPlan, Study
from tacit_common.study_file import parse_study

RUN = "run-7"
ROUNDS = 3
STARTED = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
AT = "2026-03-02T09:31:00+00:00"

LOCAL = 'mode = "local"\nunit = "record"\nepsilon = 4.0\ndelta = 1e-5\nl2_clip_norm = 0.5'
SUBJECT = LOCAL.replace('"record"', '"subject"\nrecords_per_subject = 3')
STUDY = """
name = "tiny"
seed = 3
[encoder]
kind = "vit"
image_size = 8
channels = 1
patch_size = 4
width = 16
depth = 1
heads = 2
[objective]
kind = "{objective}"
[federation]
rounds = 3
local_steps = 2
client_lr = 0.1
[[probes]]
kind = "ridge"
classes = 10
{probe}
[privacy]
{privacy}
sampling_rate = 0.25
"""


# --- a run that never was, with ledgers that are real ----------------------------------


@dataclass(frozen=True)
class Case:
    """A signed report, whose key it is, and the ledgers behind it."""

    coordinator: Identity
    signed: SignedReport
    exports: tuple[LedgerExport, ...]

    def document(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.signed.canonical_json())
        return content


@cache
def case(variant: str = "plan") -> Case:
    """`plan`: one run a ledger. `filter`: one ledger has an earlier run too. Others: the same
    as `plan` with another unit, objective or mode."""
    study = parse_study(
        STUDY.format(
            objective="logit_dp" if variant == "logit_dp" else "masked",
            probe="" if variant == "none" else "epsilon = 1.0",
            privacy={"none": 'mode = "none"', "subject": SUBJECT}.get(variant, LOCAL),
        )
    ).travelling()
    schedule = calibrate(study)
    private = isinstance(study.privacy, LocalPrivacyPlan)
    cap = Cap(epsilon=6.0, delta=1e-5) if private else None

    def charge(label: str, event: PrivacyEvent, run: str = RUN) -> Charge:
        return Charge(
            key=f"{run} {label}",
            run=run,
            study="tiny",
            study_digest=study.digest(),
            action="train" if label.startswith("round") else "probe",
            label=label,
            event=event,
            planned=schedule.planned,
            atoms=("a0",),
            cap=cap,
        )

    probe = schedule.probe_releases[0].event
    whole = [
        charge("probe 0 before", probe),
        *(charge(f"round {n}", schedule.round_event) for n in range(1, ROUNDS + 1)),
        charge("probe 0 after", probe),
    ]
    few_steps = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=4.0, steps=3)
    other = charge("round 1", few_steps, run="run-6").model_copy(
        update={"study_digest": "ab" * 32, "planned": (few_steps,)}
    )
    earlier = [other] if variant == "filter" else []
    ledgers = {
        "site-0": ([*earlier, *whole], set()),
        "site-1": (whole, {"round 2"}),  # the answer failed, and was paid for
        "site-2": (whole[:3], set()),  # was not asked again
    }
    identities = {name: Identity.create() for name in ledgers}
    exports = tuple(
        _ledger(name, identities[name], charges, failed=failed)
        for name, (charges, failed) in ledgers.items()
    )
    coordinator = Identity.create()
    return Case(coordinator, sign_report(_report(study, exports), coordinator), exports)


def _ledger(
    name: str, identity: Identity, charges: Sequence[Charge], *, failed: set[str]
) -> LedgerExport:
    payloads: list[Payload] = [
        Genesis(site=name, public_key=identity.public_key),
        Atom(atom="a0", lineage="scans", parents=(), tags_sha256="0" * 64),
    ]
    for charge in charges:
        payloads.append(charge)
        payloads.append(Void(key=charge.key) if charge.label in failed else Commit(key=charge.key))
    return LedgerExport(rows=_chain(payloads, name, identity))


def _chain(payloads: Sequence[Payload], name: str, identity: Identity) -> tuple[Entry, ...]:
    rows: list[Entry] = []
    for payload in payloads:
        previous = rows[-1] if rows else None
        rows.append(next_entry(previous, payload, at=AT, site=name, identity=identity))
    return tuple(rows)


def _report(study: Study, exports: Sequence[LedgerExport]) -> r.Report:
    names = ("site-0", "site-1", "site-2")
    answered = (names, ("site-0", "site-2"), ("site-0", "site-1"))
    rounds = tuple(
        r.RoundReport(
            number=number,
            asked=names,
            answered=who,
            refused=(r.Refusal(site="site-1", code=RefusalCode.DIVERGED),) if number == 2 else (),
            seconds=1.5,
            mean_update_norm=0.2,
            validation_loss=0.05,
            training_loss=None if isinstance(study.privacy, LocalPrivacyPlan) else 0.06,
        )
        for number, who in enumerate(answered, start=1)
    )
    sites = tuple(_site(study, export, rounds) for export in exports)
    return r.Report(
        run=r.Run(
            name="tiny",
            id=RUN,
            engine="in-process",
            status="complete",
            started=STARTED,
            finished=STARTED + timedelta(seconds=9),
            rounds_planned=ROUNDS,
            rounds_done=ROUNDS,
            wall_s=8.0,
            resumed=0,
        ),
        study=r.StudyRecord.of(study),
        software=r.Software.installed(),
        privacy=_privacy(study, sites),
        sites=sites,
        cohorts=r.Cohorts(
            registered=3,
            asked_per_round=3,
            quorum=2,
            smallest_answered=2,
            worst_dropout=1 / 3,
            threshold=None,
            collusion_bound=None,
        ),
        models=r.Models(parameters=5000, initial_sha256="1" * 64, final_sha256="2" * 64),
        rounds=rounds,
        probes=tuple(
            r.ProbeReport(
                name="ridge",
                when=when,
                epsilon_per_site=study.probes[0].epsilon,
                accuracy=r.Interval(value=0.5, low=0.4, high=0.6, method="Wilson"),
            )
            for when in ("before", "after")
        ),
    )


def _site(study: Study, export: LedgerExport, rounds: Sequence[r.RoundReport]) -> r.SiteReport:
    ledger = verify_rows(export.rows)
    privacy = study.privacy
    account = site_account(
        ledger,
        run=RUN,
        rounds_done=ROUNDS,
        delta=privacy.delta if isinstance(privacy, LocalPrivacyPlan) else None,
    )
    composition = account.composition
    return r.SiteReport(
        name=ledger.genesis.site,
        declared_units=200,
        rounds_answered=sum(ledger.genesis.site in seen.answered for seen in rounds),
        atoms=account.atoms,
        spent=account.spent,
        epsilon_after_round=account.epsilon_after_round,
        epsilon_run=account.epsilon_run,
        epsilon_total=account.epsilon_total,
        composition=composition and composition.rule,
        renyi_order=composition and composition.order,
        epsilon_cap=account.epsilon_cap,
        reserves=account.reserves,
        never_committed=account.never_committed,
        releases=account.releases,
        ledger=head_of(export.rows[-1], ledger.genesis),
    )


def _privacy(study: Study, sites: Sequence[r.SiteReport]) -> r.LocalPrivacy | r.NoPrivacy:
    privacy = study.privacy
    if not isinstance(privacy, LocalPrivacyPlan):
        return r.NoPrivacy(
            mode="none",
            plain_statement=statements.NO_DIFFERENTIAL_PRIVACY_PLAIN,
            formal_statement=statements.NO_DIFFERENTIAL_PRIVACY_FORMAL,
            sampling_rate=0.25,
            steps=6,
            outputs=statements.none_outputs(has_probes=True),
            assumptions=(),
            not_covered=statements.NONE_NOT_COVERED,
        )
    unit, cap, delta = privacy.unit, privacy.records_per_subject, privacy.delta
    worst = max(sites, key=lambda site: site.epsilon_total or 0.0)
    figures = figures_of_site(worst, delta)
    return r.LocalPrivacy(
        mode="local",
        plain_statement=statements.local_plain_statement(
            epsilon=figures.epsilon, delta=delta, unit=unit, trade_off=figures.trade_off
        ),
        formal_statement=statements.local_formal_statement(
            epsilon=figures.epsilon, delta=delta, unit=unit, records_per_subject=cap
        ),
        setting=statements.LOCAL_SETTING,
        accesses_covered=statements.local_accesses_covered(unit=unit, has_probes=True),
        accesses_excluded=(
            *statements.LOCAL_ACCESSES_EXCLUDED,
            *statements.SIMULATION_ACCESSES_EXCLUDED,
        ),
        outputs=statements.local_outputs(has_probes=True),
        unit=unit,
        records_per_subject=cap,
        adjacency="zero-out",
        adversary=statements.LOCAL_ADVERSARY,
        transcript=statements.LOCAL_TRANSCRIPT,
        epsilon_target=privacy.epsilon,
        epsilon_spent=figures.epsilon,
        delta=delta,
        releases=_releases(study, privacy),
        sampler=statements.sampler(unit=unit),
        noise=statements.NOISE,
        floating_point=statements.FLOATING_POINT,
        accountants=figures.accountants,
        curve=figures.curve,
        trade_off=figures.trade_off,
        groups=figures.groups,
        tuning=statements.TUNING,
        assumptions=(
            r.Assumption(text="No record is at two sites.", held=True, why="They were dealt."),
        ),
        not_covered=(
            *statements.local_not_covered(unit=unit),
            *statements.SIMULATION_NOT_COVERED,
        ),
        audit=r.Audit(
            claimed_epsilon=1.0,
            epsilon_lower_bound=0.81997291217,  # computed by the code of `tacit audit`
            confidence=0.95,
            canaries=1000,
            guesses=200,
            right_guesses=150,
            gradient_path="per-unit gradients",
        ),
    )


def _releases(study: Study, privacy: LocalPrivacyPlan) -> Iterator[r.Release]:
    schedule = calibrate(study)
    training = statements.training_mechanism(
        unit=privacy.unit, records_per_subject=privacy.records_per_subject
    )
    probes = [(f"probe {p.probe} {p.when}", p.event) for p in schedule.probe_releases]
    for name, event in [("training", schedule.planned[0]), *probes]:
        clip_norm = contribution = privacy.l2_clip_norm if name == "training" else math.sqrt(3)
        if name == "training" and isinstance(study.objective, LogitDPPlan):
            contribution = logit_dp_sensitivity(
                l2_clip_norm=clip_norm, temperature=study.objective.temperature, records=None
            )
        lattice = LatticeGaussian(
            l2_clip_norm=contribution,
            dimension=5000,
            noise_multiplier=event.noise_multiplier,
            source=SecureRandom(),
        )
        yield r.Release(
            name=name,
            mechanism=training if name == "training" else statements.PROBE_MECHANISM,
            event=event,
            l2_clip_norm=clip_norm,
            l2_sensitivity=lattice.l2_sensitivity,
            noise_stddev=lattice.noise_stddev,
        )


# --- what holds ------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plan", "filter", "subject", "logit_dp", "none"])
def test_a_true_report_holds_with_and_without_its_ledgers(variant: str) -> None:
    true = case(variant)
    for exports in (true.exports, true.exports[1:2], ()):
        assert verify(true.signed, exports, trusted_key=true.coordinator.public_key) == []
        assert verify(true.signed, exports, trusted_key=None) == []


def test_a_ledger_that_has_grown_since_still_proves_the_report() -> None:
    true, name = case(), "site-0"
    identity = Identity.create()
    study = Study.model_validate(true.signed.report.study.document)
    old = [row.parsed() for row in true.exports[0].rows[1:]]
    genesis = Genesis(site=name, public_key=identity.public_key)
    more = next(charge for charge in old if isinstance(charge, Charge)).model_copy(
        update={"key": "later", "run": "run-8"}
    )
    rows = _chain([genesis, *old, more, Commit(key="later")], name, identity)
    short = LedgerExport(rows=rows[:-2])
    report = _report(study, (short, *true.exports[1:]))
    signed = sign_report(report, true.coordinator)
    assert verify(signed, [LedgerExport(rows=rows)], trusted_key=None) == []
    whole = _report(study, (LedgerExport(rows=rows), *true.exports[1:]))
    behind = verify(sign_report(whole, true.coordinator), [short], trusted_key=None)
    assert [found.path for found in behind] == ["sites[0].ledger.seq"]


def test_the_stated_epsilon_is_what_dp_accounting_says_without_our_code() -> None:
    for site in case().signed.report.sites:
        accountant = PLDAccountant(
            dp_accounting.NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=1e-4
        )
        for event in site.spent:
            assert isinstance(event, (PoissonGaussianSteps, GaussianRelease))
            gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
            if isinstance(event, PoissonGaussianSteps):
                sampled = dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)
                accountant.compose(sampled, event.steps)
            else:
                accountant.compose(gaussian)
        assert site.epsilon_total == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-4)


def test_a_ledger_with_two_plans_is_composed_by_the_filter_which_costs_more() -> None:
    with_both, alone = case("filter").signed.report.sites[:2]
    assert (with_both.composition, alone.composition) == ("filter", "plan")
    assert with_both.renyi_order is not None
    together = grouped(with_both.spent)
    by_pld = Composition("plan").epsilon(together, 1e-5)
    assert with_both.epsilon_total is not None
    assert alone.epsilon_total is not None
    assert with_both.epsilon_total > by_pld > alone.epsilon_total


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sites[0].renyi_order", 5.0),
        ("sites[0].renyi_order", None),
        ("sites[0].composition", "plan"),
        ("sites[0].epsilon_total", 4.5),
        ("privacy.accountants[1].epsilon", 4.0),
        ("privacy.trade_off[9].largest_true_positive_rate", 0.2),
        ("privacy.groups[1].epsilon", 5.0),
    ],
)
def test_a_changed_figure_of_the_filter_is_found(field: str, value: object) -> None:
    document = changed(case("filter").document(), field, lambda _: value)
    assert findings(resigned(document, Identity.create()), ())


def test_figures_do_not_depend_on_how_steps_are_listed() -> None:
    step = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=2.0, steps=2)
    probe = GaussianRelease(noise_multiplier=5.0)
    split = privacy_figures([probe, step, step], 1e-5, Composition("plan"))
    whole = privacy_figures(
        [step.model_copy(update={"steps": 4}), probe], 1e-5, Composition("plan")
    )
    assert split == whole
    assert [a.method for a in whole.accountants] == ["PLD", "RDP", "PRV"]
    assert whole.groups[0].epsilon == whole.epsilon
    assert next(p.epsilon for p in whole.curve if p.delta == 1e-5) == whole.epsilon
    assert [p.delta for p in whole.curve] == [10.0**n for n in range(-12, -2)]


# --- what does not hold ----------------------------------------------------------------


def place(document: Any, path: str) -> tuple[Any, int | str]:
    """The container of `path`, as findings write it, and the key in it."""
    keys: list[int | str] = []
    for part in path.replace("]", "").replace("[", ".").split("."):
        keys.append(int(part) if part.isdigit() else part)
    for key in keys[:-1]:
        document = document[key]
    return document, keys[-1]


def changed(document: dict[str, Any], path: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy of the document in which one field of the report is another."""
    copied = copy.deepcopy(document)
    container, key = place(copied["report"], path)
    before = container[key]
    container[key] = change(before)
    assert container[key] != before
    return copied


def resigned(document: dict[str, Any], attacker: Identity) -> dict[str, Any]:
    """The document as an attacker signs it, who knows the format and has a key."""
    text = json.dumps(document["report"], sort_keys=True, separators=(",", ":"))
    signature = attacker.sign("report", hashlib.sha256(text.encode()).digest())
    entry = {"signer": "coordinator", "public_key": attacker.public_key, "signature": signature}
    return {**document, "signatures": [entry]}


def findings(
    document: dict[str, Any], exports: Sequence[LedgerExport], trusted_key: str | None = None
) -> list[Finding]:
    """Everything that verifying the document finds."""
    read = read_document(json.dumps(document), source="report.json")
    if isinstance(read, Check):
        assert not read.holds
        return list(read.findings)
    return verify(read, exports, trusted_key=trusted_key)


def is_named(field: str, found: Sequence[Finding]) -> bool:
    """By its path, or, where the document contradicts itself, in what it contradicts."""
    last = field.rsplit(".", 1)[-1].partition("[")[0]
    return any(
        f.path == field
        or f.path.startswith((f"{field}[", f"{field}."))
        or (f.path == "the report" and last in f.recomputed)
        or (field.startswith(f"{f.path}.") and last in f.recomputed)
        for f in found
    )


@pytest.mark.parametrize("verdict_by", ["ledgers", "report alone"])
def test_a_verdict_takes_no_network(monkeypatch: pytest.MonkeyPatch, verdict_by: str) -> None:
    true = case()

    def refuse(*args: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    exports = true.exports if verdict_by == "ledgers" else ()
    assert verify(true.signed, exports, trusted_key=None) == []


Change = tuple[str, Callable[[Any], Any]]

less = lambda value: value * 0.9  # noqa: E731
one_less = lambda count: count - 1  # noqa: E731
one_more = lambda count: count + 1  # noqa: E731
other_text = lambda text: text.replace("not ", "").replace("at most ", "") + "."  # noqa: E731
other_hash = lambda text: ("0" if text[0] != "0" else "1") + text[1:]  # noqa: E731
without_last = lambda items: items[:-1]  # noqa: E731

FROM_REPORT: list[Change] = [
    ("run.name", lambda _: "another"),
    ("run.rounds_planned", one_more),
    ("study.digest", other_hash),
    ("study.document.seed", one_more),
    ("privacy.plain_statement", other_text),
    ("privacy.formal_statement", other_text),
    ("privacy.setting", other_text),
    ("privacy.not_covered", without_last),
    ("privacy.not_covered[0]", other_text),
    ("privacy.accesses_covered", without_last),
    ("privacy.accesses_excluded[0]", other_text),
    ("privacy.outputs[1]", other_text),
    ("privacy.adversary", other_text),
    ("privacy.transcript", other_text),
    ("privacy.sampler", other_text),
    ("privacy.noise", other_text),
    ("privacy.floating_point", other_text),
    ("privacy.tuning", other_text),
    ("privacy.epsilon_target", less),
    ("privacy.epsilon_spent", less),
    ("privacy.delta", less),
    ("privacy.releases[0].mechanism", other_text),
    ("privacy.releases[0].event.sampling_rate", less),
    ("privacy.releases[0].event.steps", one_less),
    ("privacy.releases[0].l2_clip_norm", less),
    ("privacy.releases[0].l2_sensitivity", less),
    ("privacy.releases[0].noise_stddev", lambda stddev: stddev * 1.1),
    ("privacy.releases[1].name", lambda _: "probe 0 after"),
    ("privacy.releases[1].event.noise_multiplier", lambda noise: noise * 1.1),
    ("privacy.releases[2].l2_clip_norm", less),
    ("privacy.accountants[0].epsilon", less),
    ("privacy.accountants[1].epsilon", less),
    ("privacy.accountants[2].epsilon", less),
    ("privacy.accountants[0].discretisation", other_text),
    ("privacy.accountants[0].software", other_text),
    ("privacy.curve[3].epsilon", less),
    ("privacy.curve[3].delta", less),
    ("privacy.trade_off[9].largest_true_positive_rate", less),
    ("privacy.trade_off[9].false_positive_rate", less),
    ("privacy.groups[2].epsilon", less),
    ("privacy.groups[1].units", one_more),
    ("privacy.audit.epsilon_lower_bound", less),
    ("privacy.audit.right_guesses", one_less),
    ("sites[1].epsilon_total", less),
    ("sites[0].epsilon_total", less),
    ("sites[0].epsilon_cap", lambda cap: cap / 2),
    ("sites[2].spent[0].steps", one_less),
    ("sites[0].spent[0].noise_multiplier", lambda noise: noise * 1.1),
    ("sites[0].composition", lambda _: "filter"),
    ("sites[0].rounds_answered", one_less),
    ("sites[0].releases", one_more),
    ("sites[0].ledger.hash", other_hash),
    ("sites[0].ledger.seq", one_more),
    ("sites[0].ledger.site", lambda _: "site-1"),
    ("sites[0].ledger.signature", other_hash),
    ("sites[0].ledger.public_key", other_hash),
    ("cohorts.registered", one_more),
    ("cohorts.asked_per_round", one_more),
    ("cohorts.quorum", one_less),
    ("cohorts.smallest_answered", one_more),
    ("cohorts.worst_dropout", less),
    ("cohorts.threshold", lambda _: 2),
    ("probes[0].epsilon_per_site", less),
]
"""Fields that the rest of the report gives away, without any ledger."""

FROM_LEDGERS: list[Change] = [
    ("run.id", lambda _: "run-9"),
    ("sites[0].atoms", lambda _: ["a0", "a1"]),
    ("sites[0].epsilon_run", less),
    ("sites[0].epsilon_after_round[1]", lambda figure: figure * 0.95),
    ("sites[0].epsilon_cap", lambda cap: cap + 1),
    ("sites[0].reserves", one_more),
    ("sites[1].reserves", one_more),
    ("sites[1].never_committed", one_less),
    ("sites[0].releases", one_less),
    ("sites[2].spent[0].steps", one_more),
]
"""Fields that only the ledgers give away."""

FIELD_OF_FINDING = {
    # Changed here, noticed there: the study's digest is over its document, and of two counts
    # that must fit each other the verifier cannot tell which one is wrong.
    "study.document.seed": "study.digest",
    "privacy.audit.right_guesses": "privacy.audit.epsilon_lower_bound",
    "sites[0].ledger.hash": "sites[0].ledger.signature",
    "sites[0].ledger.seq": "sites[0].ledger.signature",
    "sites[0].ledger.public_key": "sites[0].ledger.signature",
    "sites[2].spent[0].steps": "sites[2].spent",
    "sites[0].spent[0].noise_multiplier": "sites[0].spent",
    "sites[0].composition": "sites[0].renyi_order",
    "privacy.releases[1].name": "privacy.releases[1]",
}


def test_there_are_well_over_thirty_tamperings() -> None:
    assert len(FROM_REPORT) + len(FROM_LEDGERS) > 60


@pytest.mark.parametrize(("field", "change"), FROM_REPORT, ids=[path for path, _ in FROM_REPORT])
def test_a_changed_field_is_named_without_any_ledger(
    field: str, change: Callable[[Any], Any]
) -> None:
    _is_found(field, change, ())


@pytest.mark.parametrize(("field", "change"), FROM_LEDGERS, ids=[path for path, _ in FROM_LEDGERS])
def test_a_changed_field_is_named_with_the_ledgers(
    field: str, change: Callable[[Any], Any]
) -> None:
    _is_found(field, change, case().exports)


def _is_found(field: str, change: Callable[[Any], Any], exports: Sequence[LedgerExport]) -> None:
    true = case()
    tampered = changed(true.document(), field, change)
    named = FIELD_OF_FINDING.get(field, field)
    # The signature was kept: it no longer fits, and the field is named besides.
    kept = findings(tampered, exports)
    assert is_named(named, kept), kept
    read = read_document(json.dumps(tampered), source="report.json")
    assert isinstance(read, Check) or "signatures[0].signature" in [f.path for f in kept]
    # The attacker signed anew: the field gives it away, and the key does to whoever has it.
    forged = resigned(tampered, Identity.create())
    assert is_named(named, findings(forged, exports))
    read = read_document(json.dumps(forged), source="report.json")
    if isinstance(read, SignedReport):
        assert check_signatures(read, None).holds
        assert not check_signatures(read, true.coordinator.public_key).holds


# --- every number ----------------------------------------------------------------------

NOT_DETERMINED = {
    # What a site declares of its size is its own choice, and stands in no ledger.
    "sites[0].declared_units",
    "sites[1].declared_units",
    "sites[2].declared_units",
    # The claim that was audited bounds the finding, and nothing else.
    "privacy.audit.claimed_epsilon",
}
"""Numbers in the parts on privacy and sites that may be changed without a finding: all of them."""


def numbers_in(node: Any, path: str) -> Iterator[str]:
    """The paths of all numbers under `path`."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from numbers_in(value, f"{path}.{name}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from numbers_in(value, f"{path}[{i}]")
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        yield path


def all_numbers() -> list[str]:
    report = case().document()["report"]
    return [
        path for part in ("privacy", "sites", "cohorts") for path in numbers_in(report[part], part)
    ]


def is_found_out(path: str, factor: float) -> bool:
    """Whether one number, larger or smaller, is noticed by who has the ledgers."""
    true = case()

    def change(number: float) -> float:
        if isinstance(number, int):
            return number + (1 if factor > 1 else -1)
        return number * factor if number else factor - 1

    document = resigned(changed(true.document(), path, change), Identity.create())
    return bool(findings(document, true.exports))


@pytest.mark.slow
def test_every_number_on_privacy_sites_and_cohorts_is_checked_but_those_listed() -> None:
    unnoticed = {
        path for path in all_numbers() for factor in (0.97, 1.03) if not is_found_out(path, factor)
    }
    assert unnoticed == NOT_DETERMINED


@settings(max_examples=12)
@given(choice=st.randoms(use_true_random=False), factor=st.sampled_from([0.5, 0.97, 1.03, 2.0]))
def test_a_changed_number_is_noticed(choice: Any, factor: float) -> None:
    path = choice.choice(sorted(set(all_numbers()) - NOT_DETERMINED))
    assert is_found_out(path, factor), path


# --- ledgers ---------------------------------------------------------------------------


def test_a_ledger_whose_row_was_changed_is_refused() -> None:
    true = case()
    row = true.exports[0].rows[4]
    cheaper = row.model_copy(update={"payload": row.payload.replace('"steps":2', '"steps":1')})
    assert cheaper != row
    rows = (*true.exports[0].rows[:4], cheaper, *true.exports[0].rows[5:])
    found = verify(true.signed, [LedgerExport(rows=rows)], trusted_key=None)
    assert [f.path for f in found] == ["ledger[0]"]
    assert "row 4" in found[0].stated


def test_a_ledger_written_anew_with_another_key_is_not_the_site_s() -> None:
    true, forger = case(), Identity.create()
    payloads = [row.parsed() for row in true.exports[0].rows[1:]]
    genesis = Genesis(site="site-0", public_key=forger.public_key)
    forged = LedgerExport(rows=_chain([genesis, *payloads], "site-0", forger))
    paths = {f.path for f in verify(true.signed, [forged], trusted_key=None)}
    assert paths == {"sites[0].ledger.public_key", "sites[0].ledger.hash"}


def test_a_ledger_of_a_stranger_and_one_given_twice_are_named() -> None:
    true, identity = case(), Identity.create()
    genesis = Genesis(site="elsewhere", public_key=identity.public_key)
    strange = LedgerExport(rows=_chain([genesis], "elsewhere", identity))
    found = verify(true.signed, [strange], trusted_key=None)
    assert [(f.path, f.stated) for f in found] == [("ledger[0]", "elsewhere")]
    twice = verify(true.signed, [true.exports[0]] * 2, trusted_key=None)
    assert [f.path for f in twice] == ["ledger[1]"]


def test_sites_without_a_ledger_are_named() -> None:
    true = case()
    checks = run_checks(true.signed, true.exports[:1], trusted_key=None)
    assert checks[-1].note == "not checked against a ledger: site-1, site-2"
    complete = run_checks(true.signed, true.exports, trusted_key=None)
    assert not any("not checked" in (check.note or "") for check in complete)


def test_two_sites_with_one_key_are_found() -> None:
    true = case()
    document = true.document()
    genesis = Genesis(site="site-1", public_key=true.exports[0].rows[0].parsed().public_key)  # type: ignore[union-attr]
    document["report"]["sites"][1]["ledger"]["public_key"] = genesis.public_key
    paths = [f.path for f in findings(resigned(document, Identity.create()), ())]
    assert "sites[1].ledger.public_key" in paths


# --- keys and documents ----------------------------------------------------------------


def test_a_good_signature_by_another_than_the_trusted_key_is_not_enough() -> None:
    true = case()
    assert verify(true.signed, (), trusted_key=true.coordinator.public_key) == []
    found = verify(true.signed, (), trusted_key=Identity.create().public_key)
    assert [f.path for f in found] == ["signatures"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"report":{"schema_version":1}}', "NaN"])
def test_what_is_no_report_of_this_version_is_not_judged(text: str) -> None:
    with pytest.raises(UsageError, match=r"theirs\.json is not a signed report"):
        read_document(text, source="theirs.json")


@pytest.mark.parametrize(("right", "golden"), [(200, 4.17), (150, 0.82), (100, 0.0)])
def test_the_audit_s_bound_is_the_golden_one(right: int, golden: float) -> None:
    bound = epsilon_lower_bound(
        delta=1e-5, canaries=1000, guesses=200, right=right, confidence=0.95
    )
    assert bound == pytest.approx(golden, abs=0.005)  # docs/privacy.md 8


@pytest.mark.parametrize("value", [-1.0, "1", None, float("nan")])
def test_a_figure_of_the_wrong_kind_is_named(value: object) -> None:
    document = changed(case().document(), "sites[1].epsilon_run", lambda _: value)
    assert "sites[1].epsilon_run" in [f.path for f in findings(document, ())] or value is None


# --- the command -----------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, list[Path]]:
    """The report in a run's folder, and the ledgers."""
    true = case()
    (tmp_path / "report.json").write_text(true.signed.canonical_json())
    exports = []
    for export, site in zip(true.exports, true.signed.report.sites, strict=True):
        exports.append(tmp_path / f"{site.name}.json")
        exports[-1].write_text(export.model_dump_json())
    return tmp_path, exports


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(report_app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_the_command_says_what_holds_and_what_was_not_checked(
    files: tuple[Path, list[Path]],
) -> None:
    folder, exports = files
    key = case().coordinator.public_key
    code, output = run("verify", folder / "report.json", "--ledger", exports[0])
    assert code == 0
    assert "✗" not in output
    assert "Everything that was checked holds." in output
    assert "not checked against a ledger: site-1, site-2" in output
    assert "does not show who signed" in output
    assert fingerprint(key) in output
    assert NOT_CHECKED in output
    everything = [option for export in exports for option in ("--ledger", export)]
    code, output = run("verify", folder, "--key", key, *everything)
    assert code == 0
    assert "not checked against a ledger" not in output
    assert "does not show who signed" not in output


def test_the_command_names_the_field_that_fails_and_exits_with_1(
    files: tuple[Path, list[Path]],
) -> None:
    folder, exports = files
    report = folder / "report.json"
    tampered = changed(case().document(), "privacy.curve[2].epsilon", less)
    report.write_text(json.dumps(resigned(tampered, Identity.create())))
    code, output = run("verify", report, "--ledger", exports[0])
    assert code == 1
    assert "privacy.curve[2].epsilon: it says" in output
    assert "✗" in output
    assert "1 field differs" in output
    code, output = run("verify", report, "--json")
    assert code == 1
    document = json.loads(output)
    assert document["holds"] is False
    (failed,) = [check for check in document["checks"] if not check["holds"]]
    assert [f["path"] for f in failed["findings"]] == ["privacy.curve[2].epsilon"]


def test_a_report_that_contradicts_itself_fails_in_the_command_too(
    files: tuple[Path, list[Path]],
) -> None:
    folder, _ = files
    tampered = changed(case().document(), "privacy.epsilon_spent", less)
    (folder / "report.json").write_text(json.dumps(tampered))
    code, output = run("verify", folder)
    assert code == 1
    assert "epsilon_spent is not" in output


def test_a_key_or_a_file_that_is_none_is_a_usage_error(files: tuple[Path, list[Path]]) -> None:
    folder, exports = files
    for arguments in (
        ("verify", folder, "--key", "abc"),
        ("verify", exports[0]),
        ("verify", folder / "missing.json"),
        ("verify", folder, "--ledger", folder / "report.json"),
    ):
        result = CliRunner().invoke(report_app, [str(argument) for argument in arguments])
        assert result.exit_code != 0
        assert isinstance(result.exception, TacitError), result.exception


@pytest.mark.parametrize("given_as", ["folder", "file"])
def test_a_run_s_report_is_drawn_anew_without_naming_a_command(
    files: tuple[Path, list[Path]], given_as: str
) -> None:
    folder, _ = files
    where = folder if given_as == "folder" else folder / "report.json"
    code, output = run(where)
    assert code == 0
    assert Path(output.strip()) == folder / "report.html"
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    code, output = run("--format", "json", where)
    assert code == 0
    assert output.strip() == case().signed.canonical_json()
    code, _ = run(where, "--format", "pdf", "--out", folder / "printed.pdf")
    assert code == 0
    assert (folder / "printed.pdf").read_bytes().startswith(b"%PDF")


def test_both_commands_are_in_the_help() -> None:
    code, output = run("--help")
    assert code == 0
    assert "verify" in output
    assert "tacit report RUN" in output
