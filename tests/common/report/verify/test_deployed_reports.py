"""Verifying a deployed report, with sites that gave no account: whoever changes it is found out."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.common.report.verify.case import RUN, case, case_report, chain
from tests.common.report.verify.tampering import (
    Change,
    changed,
    findings,
    is_named,
    less,
    one_less,
    one_more,
    other_text,
    resigned,
    without_last,
)

from tacit_common.identity import Identity
from tacit_common.ledger_chain import Charge, Commit, Genesis, LedgerExport
from tacit_common.privacy.events import NonPrivateRelease
from tacit_common.report.signing import sign_report
from tacit_common.report.verify.checks import run_checks, verify
from tacit_common.study import Study

WITHHELD, DEPLOYED, NONE = "deployed, withheld", "deployed", "deployed none, withheld"

OF_A_SITE_WITHOUT_ACCOUNT: list[Change] = [
    ("sites[0].account", lambda _: "disclosed"),
    ("sites[0].epsilon_run", less),
    ("sites[0].epsilon_run", lambda figure: figure * 1.1),
    ("sites[0].spent[0].steps", one_less),
    ("sites[0].spent[0].noise_multiplier", lambda noise: noise * 1.1),
    ("sites[0].spent", without_last),
    ("sites[0].spent", lambda _: []),
    ("sites[0].composition", lambda _: None),
    ("sites[0].renyi_order", lambda _: 8.0),
    ("sites[0].epsilon_total", lambda _: 1.0),
    ("sites[0].epsilon_after_round", lambda _: [1.0, 1.0, 1.0]),
    ("sites[0].epsilon_cap", lambda _: 6.0),
    ("sites[0].atoms", lambda _: ["a0"]),
    ("sites[0].reserves", lambda _: 5),
    ("sites[0].never_committed", lambda _: 0),
    ("sites[0].releases", lambda _: 5),
    ("sites[0].rounds_answered", one_less),
    ("sites[0].ledger.seq", one_more),
    ("sites[1].account", lambda _: "withheld"),
    ("privacy.epsilon_spent", less),
    ("privacy.plain_statement", lambda text: text.partition(" One site")[0]),
    ("privacy.formal_statement", lambda text: text.partition(" At the one site")[0]),
    ("privacy.not_covered[0]", other_text),
    ("privacy.accesses_covered[3]", other_text),
]
OF_ANY_DEPLOYED: list[Change] = [
    ("run.engine", lambda _: "in-process"),
    ("privacy.setting", lambda text: text.replace("nothing that the server sends", "all")),
    ("privacy.outputs[6]", other_text),
    ("privacy.not_covered", without_last),
    ("privacy.accesses_excluded", lambda items: [*items, "Nothing."]),
    ("privacy.assumptions", without_last),
    ("privacy.assumptions[0].held", lambda _: True),
    ("privacy.assumptions[3].why", other_text),
]
OF_NONE: list[Change] = [
    ("run.engine", lambda _: "ray"),
    ("privacy.setting", other_text),
    ("privacy.outputs", without_last),
    ("privacy.not_covered[0]", lambda _: "Nothing."),
    ("privacy.assumptions[0].held", lambda _: True),
    ("sites[0].account", lambda _: "disclosed"),
    ("sites[0].spent", lambda _: [{"kind": "non_private_release"}]),
    ("sites[0].epsilon_run", lambda _: 1.0),
    ("sites[0].composition", lambda _: "plan"),
    ("sites[0].releases", lambda _: 3),
]
ALL = [
    *((WITHHELD, *change) for change in OF_A_SITE_WITHOUT_ACCOUNT),
    *((DEPLOYED, *change) for change in OF_ANY_DEPLOYED),
    *((NONE, *change) for change in OF_NONE),
]

NAMED = {
    # Noticed by what no longer fits: sentences of an engine, figures that make no account, and
    # the signature under a head.
    "run.engine": "privacy.setting",
    "sites[0].ledger.seq": "sites[0].ledger.signature",
    "sites[0].spent[0].steps": "sites[0].spent",
    "sites[0].spent[0].noise_multiplier": "sites[0].spent",
    "privacy.assumptions[0].held": "privacy.assumptions[0]",
    "privacy.assumptions[3].why": "privacy.assumptions[3]",
    "privacy.assumptions": "privacy.assumptions",
}
CONTRADICTION = "sites["
"""A document whose site says too much or too little of itself is refused at that site."""


@pytest.mark.parametrize(
    ("variant", "field", "change"), ALL, ids=[f"{variant}: {path}" for variant, path, _ in ALL]
)
def test_a_changed_field_is_found_without_any_ledger(
    variant: str, field: str, change: Callable[[Any], Any]
) -> None:
    document = changed(case(variant).document(), field, change)
    found = findings(resigned(document, Identity.create()), ())
    named = NAMED.get(field, field)
    contradicts = field.startswith(CONTRADICTION) and any(
        f.path in {field.partition(".")[0], "the report"} for f in found
    )
    assert is_named(named, found) or contradicts, found


def test_which_accounts_are_lacking_and_why_is_said_to_whoever_verifies() -> None:
    true = case(WITHHELD)
    notes = [c.note for c in run_checks(true.signed, (), trusted_key=None) if c.note]
    assert any("no account of other runs was given by site-0" in note for note in notes)
    everybody = case(DEPLOYED)
    notes = [c.note for c in run_checks(everybody.signed, (), trusted_key=None) if c.note]
    assert not any("no account" in note for note in notes)


def test_the_ledger_of_a_site_that_withheld_its_account_shows_its_total_to_who_has_it() -> None:
    true = case(WITHHELD)
    checks = run_checks(true.signed, true.exports, trusted_key=None)
    assert all(check.holds for check in checks)
    assert any("this run cost site-0 no more" in check.claim for check in checks)
    (note,) = [check.note for check in checks if check.note and "its ledger comes to" in check.note]
    total = case("filter").signed.report.sites[0].epsilon_total
    run = true.signed.report.sites[0].epsilon_run
    assert total is not None
    assert run is not None
    assert total > run
    assert f"{total:.2f}"[:3] in note


def test_a_site_that_paid_for_more_than_the_plan_contradicts_a_report_of_the_plan_alone() -> None:
    """A server that asked for a round twice, and hopes that the withheld account hides it."""
    true = case(WITHHELD)
    rows = [row.parsed() for row in true.exports[0].rows]
    genesis = rows[0]
    assert isinstance(genesis, Genesis)
    identity = Identity.create()
    genesis = genesis.model_copy(update={"public_key": identity.public_key})
    last = [row for row in rows if isinstance(row, Charge) and row.run == RUN][-2]
    more = last.model_copy(update={"key": "again"})
    export = LedgerExport(
        rows=chain([genesis, *rows[1:], more, Commit(key="again")], genesis.site, identity)
    )
    study = Study.model_validate(true.signed.report.study.document)
    report = case_report(study, (export, *true.exports[1:]), engine="deployed", withheld={"site-0"})
    signed = sign_report(report, true.coordinator)
    found = verify(signed, [export], trusted_key=None)
    assert "sites[0].epsilon_run" in {finding.path for finding in found}
    assert verify(signed, (), trusted_key=None) == []


def test_a_withheld_account_does_not_hide_charges_for_another_unit() -> None:
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
    exports = (forged, *true.exports[1:])
    report = case_report(study, exports, engine="deployed", withheld={"site-0"})
    found = verify(sign_report(report, true.coordinator), [forged], trusted_key=None)
    assert [finding.path for finding in found] == ["privacy.unit"]


def test_a_ledger_with_a_release_without_privacy_gives_a_finding_and_no_crash() -> None:
    true = case(DEPLOYED)
    rows = [row.parsed() for row in true.exports[0].rows]
    genesis = rows[0]
    assert isinstance(genesis, Genesis)
    identity = Identity.create()
    genesis = genesis.model_copy(update={"public_key": identity.public_key})
    first = next(row for row in rows if isinstance(row, Charge))
    bare = first.model_copy(
        update={"key": "bare", "run": "run-5", "event": NonPrivateRelease(), "unit": None}
    )
    export = LedgerExport(rows=chain([genesis, rows[1], bare, *rows[2:]], genesis.site, identity))
    document = true.document()
    head = export.rows[-1]
    document["report"]["sites"][0]["ledger"] |= {
        "public_key": identity.public_key,
        "seq": head.seq,
        "hash": head.hash,
        "signature": head.sig,
    }
    found = findings(resigned(document, Identity.create()), [export])
    assert "sites[0].epsilon_total" in {finding.path for finding in found}
