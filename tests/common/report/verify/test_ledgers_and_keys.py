"""Verifying a report against ledgers, keys and documents that are not those of the run."""

import pytest
from tests.common.report.verify.case import case, chain
from tests.common.report.verify.tampering import changed, findings, resigned

from tacit_common.errors import UsageError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import Genesis, LedgerExport
from tacit_common.report.verify.audit_bound import epsilon_lower_bound
from tacit_common.report.verify.checks import read_document, run_checks, verify

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
    forged = LedgerExport(rows=chain([genesis, *payloads], "site-0", forger))
    paths = {f.path for f in verify(true.signed, [forged], trusted_key=None)}
    assert paths == {"sites[0].ledger.public_key"}


def test_a_ledger_of_a_stranger_and_one_given_twice_are_named() -> None:
    true, identity = case(), Identity.create()
    genesis = Genesis(site="elsewhere", public_key=identity.public_key)
    strange = LedgerExport(rows=chain([genesis], "elsewhere", identity))
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
