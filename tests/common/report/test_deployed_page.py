"""The page of a deployed report: whose word each figure is, and what nobody could check."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.common.report.conftest import HOSPITALS, deployed_example
from tests.common.report.test_document import read, set_at
from tests.common.report.test_page import Page

from tacit_common.errors import UsageError
from tacit_common.report import Report, deployed, render_html

LACKING = {"clinic-basel": "withheld", "clinic-porto": "missing"}


def text_of(**changes: Any) -> str:
    return Page(render_html(deployed_example(**changes))).text


def test_nothing_in_a_deployed_report_speaks_of_a_simulation() -> None:
    for private in (True, False):
        report = deployed_example(private=private)
        assert "simulat" not in render_html(report).lower()
        assert "simulat" not in json.dumps(report.model_dump(mode="json")["privacy"]).lower()


def test_the_headline_is_of_this_run_alone_where_an_account_is_lacking() -> None:
    whole, lacking = text_of(), text_of(without_account=LACKING)
    assert "Three sites trained one encoder together; what each sent is diff" in whole
    assert "what each sent in this run is differentially private" in lacking
    assert "2 without an account" in lacking
    assert "Two sites gave no account of other runs; for them this holds of this run" in lacking
    assert "account of other runs" not in whole


def test_what_a_site_did_not_disclose_is_shown_as_that_and_never_as_zero() -> None:
    text = text_of(without_account=LACKING)
    assert re.search(r"clinic-basel +≤ 8\.00 +withheld +withheld +withheld +withheld", text)
    assert re.search(r"clinic-porto +≤ 8\.00 +not received +not received", text)
    assert re.search(r"clinic-basel +8\.00 planned, this run alone", text)
    assert re.search(r"clinic-basel +260 +12 of 12 +withheld +withheld +withheld +withheld", text)
    assert "clinic-basel withheld the account of its ledger, as its policy says." in text
    assert "clinic-porto sent no account of its ledger when the rounds were over." in text
    assert "the newest that the coordinator has seen" in text
    assert "this run’s plan, PLD" in text


def test_a_total_is_drawn_of_sites_that_disclosed_it_alone() -> None:
    some, nobody = (
        text_of(without_account=lacking)
        for lacking in (LACKING, dict.fromkeys(HOSPITALS, "missing"))
    )
    assert "Total ε of each site when a round was over" in some
    assert "Total ε of each site when a round was over" not in nobody
    assert "clinic-aachen, clinic-basel and clinic-porto sent no account of their ledger" in nobody


def test_what_holds_between_machines_is_said_under_both_modes() -> None:
    for private in (True, False):
        text = text_of(private=private)
        assert deployed.TRANSPORT in text
        for assumption in (deployed.REVIEWED_PROGRAM, deployed.KEYS, deployed.JOURNAL):
            assert f"? unknown {assumption.text} {assumption.why}" in text
    assert "Nothing but TLS keeps what a site sent from others on the way." in text_of(
        private=False
    )


def test_a_probe_without_public_labels_is_listed_as_not_scored() -> None:
    text = text_of()
    assert re.search(r"ridge +before training +not scored", text)
    assert "has no public labelled records to score them on" in text
    assert "Probe accuracy" not in text


@pytest.mark.parametrize(
    ("dotted", "value", "why"),
    [
        ("sites.1.epsilon_total", 3.0, "a site that gave no account"),
        ("sites.1.reserves", 3, "a site that gave no account"),
        ("sites.1.atoms", ["a0"], "a site that gave no account"),
        ("sites.1.account", "disclosed", "lacks a count"),
        ("sites.0.account", "missing", "a site that gave no account"),
        ("sites.0.releases", None, "lacks a count"),
        ("sites.1.account", "forgotten", "'disclosed', 'withheld' or 'missing'"),
        ("sites.1.epsilon_run", None, "every site and every probe has its ε"),
        ("sites.1.epsilon_run", 9.0, "epsilon_run without an account"),
    ],
)
def test_a_site_that_says_too_much_or_too_little_of_itself_is_refused(
    dotted: str, value: object, why: str
) -> None:
    document = json.loads(deployed_example(without_account=LACKING).canonical_json())
    set_at(document, dotted, value)
    with pytest.raises(UsageError, match=why):
        read(document)


def test_an_older_version_of_the_document_is_not_read_as_this_one(
    example_report: Callable[..., Report],
) -> None:
    document = json.loads(example_report().canonical_json())
    set_at(document, "schema_version", 2)
    with pytest.raises(UsageError, match="schema version 3"):
        read(document)
