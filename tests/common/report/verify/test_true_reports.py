"""Verifying a report: a true one holds, and its figures are right by other means."""

import dp_accounting
import pytest
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from tests.common.report.verify.case import case, case_report, chain
from tests.common.report.verify.tampering import changed, findings, resigned

from tacit_common.identity import Identity
from tacit_common.ledger_chain import Charge, Commit, Genesis, LedgerExport
from tacit_common.privacy.events import GaussianRelease, PoissonGaussianSteps
from tacit_common.report.recompute import Composition, grouped, privacy_figures
from tacit_common.report.signing import sign_report
from tacit_common.report.verify.checks import run_checks, verify
from tacit_common.study import Study


@pytest.mark.parametrize(
    "variant",
    [
        "plan",
        "filter",
        "subject",
        "logit_dp",
        "none",
        "deployed",
        "deployed, withheld",
        "deployed none",
        "deployed none, withheld",
    ],
)
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
    rows = chain([genesis, *old, more, Commit(key="later")], name, identity)
    short = LedgerExport(rows=rows[:-2])
    report = case_report(study, (short, *true.exports[1:]))
    signed = sign_report(report, true.coordinator)
    grown = [LedgerExport(rows=rows)]
    assert verify(signed, grown, trusted_key=None) == []
    (note,) = [
        c.note for c in run_checks(signed, grown, trusted_key=None) if c.note and "since" in c.note
    ]
    assert "1 more releases of other runs" in note
    whole = case_report(study, (LedgerExport(rows=rows), *true.exports[1:]))
    behind = verify(sign_report(whole, true.coordinator), [short], trusted_key=None)
    assert [found.path for found in behind] == ["sites[0].ledger.seq"]


def test_a_report_that_leaves_out_what_its_own_run_released_later_is_found_out() -> None:
    """A coordinator that cuts the report at an earlier head than the run reached."""
    true = case()
    early = LedgerExport(rows=true.exports[0].rows[:-2])
    study = Study.model_validate(true.signed.report.study.document)
    report = case_report(study, (early, *true.exports[1:]))
    found = verify(sign_report(report, true.coordinator), true.exports, trusted_key=None)
    assert "sites[0].ledger.seq" in {finding.path for finding in found}


def test_a_statement_about_people_does_not_rest_on_charges_for_records() -> None:
    true = case("subject")
    rows = [row.parsed() for row in true.exports[0].rows]
    genesis = rows[0]
    assert isinstance(genesis, Genesis)
    identity = Identity.create()
    genesis = genesis.model_copy(update={"public_key": identity.public_key})
    weak = [
        row.model_copy(update={"unit": "record"}) if isinstance(row, Charge) else row
        for row in rows[1:]
    ]
    forged = LedgerExport(rows=chain([genesis, *weak], genesis.site, identity))
    study = Study.model_validate(true.signed.report.study.document)
    report = case_report(study, (forged, *true.exports[1:]))
    found = verify(sign_report(report, true.coordinator), [forged], trusted_key=None)
    assert [finding.path for finding in found] == ["privacy.unit"]


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


@pytest.mark.parametrize("verdict_by", ["ledgers", "report alone"])
def test_a_verdict_takes_no_network(monkeypatch: pytest.MonkeyPatch, verdict_by: str) -> None:
    true = case()

    def refuse(*args: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    exports = true.exports if verdict_by == "ledgers" else ()
    assert verify(true.signed, exports, trusted_key=None) == []
