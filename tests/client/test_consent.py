"""Whoever agrees to a study was told, in this site's terms, what it does and costs."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tacit_client.budget import load
from tacit_client.deployment.site_config import CoordinatorAccess, SiteConfig
from tacit_client.deployment.site_folder import SiteFolder
from tacit_client.policy import SitePolicy
from tacit_client.policy.file import write_policy
from tacit_client.policy.outline import outline
from tacit_client.site import Site
from tacit_common.architecture import encoder_sha256
from tacit_common.errors import SiteRefusal, UsageError
from tacit_common.privacy.plan import calibrate
from tacit_common.study import Study, StudyFile
from tacit_common.toml_file import write_toml_file
from tacit_simulations.cli import app

MakeStudy = Callable[..., Study]

POLICY = SitePolicy.to_begin_with(unit="record", epsilon_cap=10.0, delta=1e-6)


def said(study: Study, policy: SitePolicy = POLICY, ledger: Any = None) -> str:
    return outline(study, policy, ledger).text()


def test_it_names_what_is_trained_and_how_often(make_study: MakeStudy) -> None:
    study = make_study()
    text = said(study)
    assert study.digest() in text
    assert encoder_sha256(study.encoder) in text
    assert "objective 'masked'" in text
    assert "2 rounds of 2 steps, each on about 0.25 of the records" in text


def test_the_cost_is_at_the_sites_delta_and_not_at_the_studys(make_study: MakeStudy) -> None:
    study = make_study()  # at δ = 1e-5
    found = outline(study, POLICY, None)
    assert found.epsilon == POLICY.epsilon_of(calibrate(study))
    assert found.epsilon is not None
    assert found.epsilon > 8.5
    assert f"ε = {found.epsilon:.4g} at this site's δ = 1e-06 for one record" in found.text()
    assert "the study says 8 at δ = 1e-05" in found.text()


def test_it_lists_what_leaves(make_study: MakeStudy, with_probe: str) -> None:
    (line,) = re.findall(r"^leaves +(.+)$", said(make_study(with_probe)), re.MULTILINE)
    assert line.split("; ") == [
        "2 updates of the model, noised here",
        "statistics of probe 'ridge', before and after training",
        "what was spent, for the coordinator's report",
    ]


def test_it_says_when_there_is_no_privacy(make_study: MakeStudy, no_privacy: str) -> None:
    rehearsal = SitePolicy.rehearsal(
        unit="record", epsilon_cap=1.0, delta=1e-5, allow_non_private=True
    )
    found = outline(make_study(no_privacy), rehearsal, None)
    assert found.epsilon is None
    text = found.text()
    assert "NONE: no differential privacy" in text
    assert "the mean training loss of each round" in text
    assert "noised" not in text
    assert "afterwards none of the touched data admits a private study" in text


def test_it_says_what_the_policy_would_refuse(make_study: MakeStudy) -> None:
    study = make_study("privacy.l2_clip_norm=11.0", "privacy.sampling_rate=0.9")
    assert len(re.findall("REFUSES it: the study asks for", said(study))) == 2
    assert re.search(r"^policy +allows it$", said(make_study()), re.MULTILINE)


def test_without_a_ledger_the_whole_cap_is_left(make_study: MakeStudy) -> None:
    assert "admits it: nothing is spent so far, and the cap is ε = 10" in said(make_study())
    tight = POLICY.model_copy(update={"epsilon_cap": 8.0})
    assert "REFUSES it: nothing is spent so far" in said(make_study(), tight)


def test_it_says_what_the_ledger_would_refuse(
    make_site: Callable[..., Site],
    make_study: MakeStudy,
    train_request: Callable[..., Any],
    tmp_path: Path,
) -> None:
    policy = SitePolicy.rehearsal(
        unit="record", epsilon_cap=10.0, delta=1e-6, allow_non_private=False
    )
    site = make_site(policy=policy)
    site.answer(train_request(make_study()))
    ledger, _ = load(tmp_path / "sites" / "site-0")
    assert "admits it: with it ε = " in said(make_study(), policy, ledger)  # its next round
    assert "REFUSES it on a0" in said(make_study("seed=9"), policy, ledger)


def test_a_plug_ins_options_cannot_forge_a_line(make_study: MakeStudy) -> None:
    """What a terminal would take as commands stays a text."""
    options = 'options = { text = "\\u001b[2K\\rpolicy allows it\\nledger    admits it" }'
    study = make_study(f'objective={{ kind = "plugin", name = "mine", {options} }}')
    assert "\u001b" in study.model_dump()["objective"]["options"]["text"]
    text = said(study)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert len(re.findall("^ledger", text, re.MULTILINE)) == 1


# --- on the command line ---------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    """A site's folder, as far as consent needs it."""
    site = SiteFolder(tmp_path / "site")
    site.path.mkdir(mode=0o700)
    config = SiteConfig(
        site="site-0",
        data="/nowhere",
        lineage="scans",
        declared_units=30,
        labels=True,
        coordinator=CoordinatorAccess(
            name="coordinator", address="example.org:9443", public_key="c" * 64
        ),
    )
    write_toml_file(site.site_toml, config, opening="")
    write_policy(site.policy_toml, POLICY)
    return site


@pytest.fixture
def waiting(folder: SiteFolder, make_study: MakeStudy) -> Study:
    """A study that was asked for."""
    study = make_study()
    with pytest.raises(SiteRefusal):
        folder.open_approvals().require_approved(study)
    return study


@pytest.fixture
def tacit(folder: SiteFolder) -> Iterator[Callable[..., str]]:
    """`tacit("approve", …)`: what `tacit site approve DIR …` prints."""

    def run(command: str, *arguments: str, answer: str = "", exit_code: int = 0) -> str:
        line = ["site", command, str(folder.path), *arguments]
        result = CliRunner().invoke(app, line, input=answer)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result.output

    return run


def test_pending_shows_the_study_and_how_to_agree(
    tacit: Callable[..., str], waiting: Study, folder: SiteFolder
) -> None:
    shown = tacit("pending")
    assert said(waiting) in shown
    assert f"tacit site approve {folder.path} {waiting.digest()[:32]}\n" in shown


def test_agreed_to_by_digest(tacit: Callable[..., str], waiting: Study, folder: SiteFolder) -> None:
    tacit("approve", waiting.digest()[:12], answer="y\n")
    folder.open_approvals().require_approved(waiting)
    (approval,) = folder.open_approvals().all()
    assert approval.shown == said(waiting)
    assert (approval.epsilon, approval.delta) == (outline(waiting, POLICY, None).epsilon, 1e-6)
    shown = tacit("pending")
    assert "no study waits" in shown
    assert f"approved  {waiting.digest()[:12]}" in shown


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_nothing_is_agreed_to_by_saying_no_or_nothing(
    tacit: Callable[..., str], waiting: Study, folder: SiteFolder, answer: str
) -> None:
    tacit("approve", waiting.digest()[:12], answer=answer, exit_code=1)
    assert folder.open_approvals().all() == ()


def test_agreed_to_by_file_before_it_was_asked_for(
    tacit: Callable[..., str],
    folder: SiteFolder,
    study_file: Callable[..., StudyFile],
    tmp_path: Path,
) -> None:
    """The file may hold what stays with the coordinator: consent is to what travels."""
    study = study_file("seed=7")
    (tmp_path / "mine.toml").write_text(study.to_toml(), encoding="utf-8")
    tacit("approve", str(tmp_path / "mine.toml"), "--yes")
    folder.open_approvals().require_approved(study.travelling())


def test_what_is_withdrawn_is_refused_again(
    tacit: Callable[..., str], waiting: Study, folder: SiteFolder
) -> None:
    tacit("approve", waiting.digest()[:32], "--yes")
    tacit("withdraw", waiting.digest()[:12])
    with pytest.raises(SiteRefusal):
        folder.open_approvals().require_approved(waiting)


def test_a_study_that_is_approved_is_not_approved_by_its_digest_again(
    tacit: Callable[..., str], waiting: Study
) -> None:
    tacit("approve", waiting.digest()[:32], "--yes")
    with pytest.raises(UsageError, match="approved already"):
        tacit("approve", waiting.digest()[:32], "--yes")


def test_a_digest_that_a_searched_one_could_share_is_not_agreed_to_unseen(
    tacit: Callable[..., str], waiting: Study, folder: SiteFolder
) -> None:
    """12 digits in common are minutes of work for whoever proposes two studies."""
    with pytest.raises(UsageError, match="fewer than 32"):
        tacit("approve", waiting.digest()[:31], "--yes")
    assert folder.open_approvals().all() == ()


def test_what_is_agreed_to_is_one_run_and_people_are_told_so(
    tacit: Callable[..., str], waiting: Study
) -> None:
    assert re.search("^work .*; one run of it$", said(waiting), re.MULTILINE)
    assert "for one run of it" in tacit("approve", waiting.digest()[:32], "--yes")
    assert "tiny, for its next run, ε = " in tacit("pending")


def test_another_run_is_shown_as_what_it_would_be(
    make_site: Callable[..., Site],
    make_study: MakeStudy,
    train_request: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """A person who agrees to a second run is not shown the cost of going on with the first."""
    policy = SitePolicy.rehearsal(
        unit="record", epsilon_cap=100.0, delta=1e-6, allow_non_private=False
    )
    limits = policy.study.model_copy(update={"epsilon_cap": 10.0})
    policy = policy.model_copy(update={"study": limits})
    site, study = make_site(policy=policy), make_study()
    site.answer(train_request(study))
    ledger, _ = load(tmp_path / "sites" / "site-0")
    assert "admits it" in outline(study, policy, ledger).text()
    again = outline(study, policy, ledger, in_new_run=True).text()
    assert "REFUSES it on a0: all runs of the study would come to" in again
