"""A deployed run's report: from accounts that came over the wire, and true by the sites' ledgers.

The sites are real and in this process; what lies between machines has tests of its own.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tacit_client.ledger_file import read_export
from tacit_client.site import Site
from tacit_common.errors import CheckpointError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import LedgerExport
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import calibrate
from tacit_common.report import Report
from tacit_common.report.signing import SignedReport, parse_signed_report
from tacit_common.report.verify import run_checks, verify
from tacit_common.study import StudyFile
from tacit_server.checkpoint import RunState
from tacit_server.report import deployed_report, write_deployed_report
from tacit_server.run import Coordinator, RunFolder
from tacit_server.run_log import AccountsCollected, RunResumed
from tacit_simulations.engine import run_in_process
from tacit_simulations.sites import SimulatedSites

pytestmark = pytest.mark.usefixtures("flower_task")

MakeFile = Callable[..., StudyFile]


@dataclass(frozen=True)
class Run:
    """A run that is over, and everything behind it."""

    study: StudyFile
    state: RunState
    folder: Path
    coordinator: Identity
    exports: list[LedgerExport]
    asked: list[int]

    def write(self) -> SignedReport:
        schedule = calibrate(self.study.travelling())
        path, _ = write_deployed_report(
            self.folder, self.study, schedule, self.state, self.coordinator
        )
        return parse_signed_report(path.read_text())

    def report(self, state: RunState) -> Report:
        return deployed_report(self.study, calibrate(self.study.travelling()), state)


def keeps_accounts_back(site: Site) -> Site:
    allow = site.policy.allow.model_copy(update={"releases": ("update", "train_loss", "probe")})
    return replace(site, policy=site.policy.model_copy(update={"allow": allow}))


@pytest.fixture
def run_of(tmp_path: Path, study_file: MakeFile) -> Callable[..., Run]:
    def make(*overrides: str, withholding: int | None = None, again: bool = False) -> Run:
        study, folder = study_file(*overrides), tmp_path / "run"
        folder.mkdir(exist_ok=True)
        assert study.simulation is not None
        sites = SimulatedSites(study, study.simulation, folder)
        sites.prepare()
        asked: list[int] = []

        def open_site(index: int) -> Site:
            asked.append(index)
            site = sites.open(index)
            return keeps_accounts_back(site) if index == withholding else site

        for _ in range(2 if again else 1):
            asked.clear()
            coordinator = Coordinator(
                study.travelling(),
                calibrate(study.travelling()),
                RunFolder(folder),
                PluginTable(),
                asks_for_accounts=True,
            )
            state = run_in_process(coordinator.run, open_site, 3)
        sites.close()
        return Run(
            study,
            state,
            folder,
            Identity.load_or_create(tmp_path / "coordinator.key"),
            [read_export(sites.ledger_path(index)) for index in range(3)],
            asked,
        )

    return make


def test_the_encoder_is_kept_before_any_site_is_asked_for_its_account(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tacit_server.run.collect_accounts", dies)
    with pytest.raises(MemoryError):
        run_of()
    assert (tmp_path / "run" / "encoder" / "encoder.safetensors").is_file()


def test_the_report_of_a_deployed_run_is_true_by_all_three_ledgers(
    run_of: Callable[..., Run], with_probe: str
) -> None:
    run = run_of(with_probe)
    signed = run.write()
    assert verify(signed, run.exports, trusted_key=run.coordinator.public_key) == []
    report = signed.report
    assert report.run.engine == "deployed"
    assert [site.account for site in report.sites] == ["disclosed"] * 3
    assert [probe.accuracy for probe in report.probes] == [None, None]
    assert all(round_.validation_loss is not None for round_ in report.rounds)
    page = (run.folder / "report.html").read_text()
    assert run.coordinator.public_key in page
    assert "simulat" not in page.lower()


def test_a_site_that_keeps_its_account_back_is_reported_as_planned_and_as_withheld(
    run_of: Callable[..., Run],
) -> None:
    run = run_of(withholding=1)
    signed = run.write()
    site = signed.report.sites[1]
    assert (site.account, site.epsilon_total, site.reserves) == ("withheld", None, None)
    planned = calibrate(run.study.travelling()).planned_epsilon
    assert site.epsilon_run == planned == signed.report.privacy.epsilon_spent  # type: ignore[union-attr]
    assert verify(signed, run.exports, trusted_key=None) == []
    checks = run_checks(signed, run.exports, trusted_key=None)
    assert any("its ledger comes to" in (check.note or "") for check in checks)
    document = json.loads(signed.canonical_json())
    assert "account" in document["report"]["sites"][1]


def test_a_run_without_privacy_is_reported_by_its_ledgers_too(
    run_of: Callable[..., Run], no_privacy: str
) -> None:
    run = run_of(no_privacy, withholding=2)
    signed = run.write()
    assert verify(signed, run.exports, trusted_key=None) == []
    assert [site.releases for site in signed.report.sites] == [2, 2, None]


def test_a_run_that_is_taken_up_again_does_not_need_the_accounts_anew(
    run_of: Callable[..., Run],
) -> None:
    once = run_of()
    (collected,) = (event for event in once.state.events if isinstance(event, AccountsCollected))
    twice = run_of(withholding=0, again=True)
    assert [event for event in twice.state.events if isinstance(event, AccountsCollected)] == [
        collected
    ]
    assert sum(isinstance(event, RunResumed) for event in twice.state.events) == 2
    assert verify(twice.write(), twice.exports, trusted_key=None) == []


def test_a_site_that_lies_of_itself_spoils_its_own_row_and_not_the_report(
    run_of: Callable[..., Run],
) -> None:
    run = run_of()
    collected = next(event for event in run.state.events if isinstance(event, AccountsCollected))
    account = collected.accounts["site-1"]
    lies = {
        "a smaller total": {"epsilon_total": 0.1, "epsilon_run": 0.1},
        "fewer steps": {"spent": (account.spent[0].model_copy(update={"steps": 1}),)},
        "no release": {"releases": 0},
    }
    for what, lie in lies.items():
        told = account.model_copy(update=lie)
        event = collected.model_copy(update={"accounts": {**collected.accounts, "site-1": told}})
        events = [event if isinstance(e, AccountsCollected) else e for e in run.state.events]
        report = run.report(replace(run.state, events=events))
        assert [site.account for site in report.sites] == ["disclosed", "missing", "disclosed"], (
            what
        )


def test_a_run_whose_sites_were_not_asked_has_no_report_yet(run_of: Callable[..., Run]) -> None:
    run = run_of()
    events = [event for event in run.state.events if not isinstance(event, AccountsCollected)]
    with pytest.raises(CheckpointError, match="have not been asked"):
        run.report(replace(run.state, events=events))
