"""The report as a document: what it holds, what it refuses, and how it is written."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from tacit_common.errors import UsageError
from tacit_common.identity import Identity
from tacit_common.probes.contract import Interval as ProbeInterval
from tacit_common.report import Interval, Report, Run, render_html, write_report
from tacit_common.report.schema import SCHEMA_VERSION
from tacit_common.report.signing import SignedReport, parse_signed_report, sign_report

Example = Callable[..., Report]


def read(document: dict[str, Any]) -> Report:
    """The report in a document as the file of a run holds it: signed, if not well."""
    signature = {"signer": "coordinator", "public_key": "0" * 64, "signature": "0" * 128}
    text = json.dumps({"report": document, "signatures": [signature]})
    return parse_signed_report(text, source="runs/x/report.json").report


# --- JSON ------------------------------------------------------------------------------


def test_json_round_trip_gives_an_equal_report_and_equal_bytes(report_variant: Report) -> None:
    text = report_variant.canonical_json()
    again = read(json.loads(text))
    assert again == report_variant
    assert again.canonical_json() == text
    assert again.digest() == hashlib.sha256(text.encode("ascii")).hexdigest()


def test_canonical_json_is_sorted_compact_and_versioned(example_report: Example) -> None:
    text = example_report().canonical_json()
    document = json.loads(text)
    assert text == json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert document["schema_version"] == 3


def objects(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        yield path, node
        if path != ".study.document":  # a study has its own schema
            for key, value in node.items():
                yield from objects(value, f"{path}.{key}")
    elif isinstance(node, list):
        for value in node[:1]:
            yield from objects(value, f"{path}.0")


def test_an_unknown_key_is_refused_in_every_part(example_report: Example) -> None:
    text = example_report(refusing="site-3").canonical_json()
    paths = [path for path, _ in objects(json.loads(text)) if path != ".study.document"]
    assert len(paths) > 15
    for path in paths:
        document = json.loads(text)
        dict(objects(document))[path]["surprise"] = 1
        with pytest.raises(UsageError, match=r"surprise: Extra inputs are not permitted"):
            read(document)


def set_at(document: dict[str, Any], dotted: str, value: object) -> None:
    *parents, leaf = dotted.split(".")
    node: Any = document
    for part in parents:
        node = node[int(part)] if part.isdecimal() else node[part]
    node[leaf] = value


@pytest.mark.parametrize(
    ("dotted", "value", "why"),
    [
        ("schema_version", 1, "schema_version"),
        ("rounds.0.training_loss", 0.5, "a training loss is private"),
        ("sites.0.epsilon_total", 9.0, "not the largest epsilon_total"),
        ("privacy.epsilon_spent", 1.0, "not the first accountant's figure"),
        ("sites.1.epsilon_total", None, "every site and every probe has its ε"),
        ("probes.0.epsilon_per_site", None, "every site and every probe has its ε"),
        ("sites.0.epsilon_after_round", [1.0], "one ε after each round"),
        ("sites.0.rounds_answered", 3, "disagrees with the rounds"),
        ("sites.0.name", "site-1", "two sites have one name"),
        ("sites.4.name", "elsewhere", "does not list"),
        ("rounds.2.number", 9, "the rounds are not"),
        ("rounds.0.answered", ["site-0", "site-0"], "answers or refuses, once"),
        ("rounds.0.asked", ["site-0"], "was not asked"),
        ("run.rounds_planned", 13, "a complete run"),
        ("run.rounds_planned", 11, "more rounds are done"),
        ("run.finished", "2026-03-02T09:29:59Z", "finished before"),
        ("run.started", "2026-03-02T09:30:00", "timezone"),
        ("study.document.seed", 8, "the digest is not"),
        ("study.document.simulation", {"dataset": "/data"}, "may name local paths"),
        ("evaluation.rows.0.cells", [], "one cell for each column"),
        ("evaluation.rows.3.role", "baseline", "beside at least one baseline"),
        ("evaluation.rows.0.cells.0.low", 0.99, "outside its interval"),
        ("evaluation.rows.0.cells.0.value", 1.2, "less than or equal to 1"),
        ("sites.0.epsilon_run", None, "every site and every probe has its ε"),
        ("sites.0.epsilon_run", 99.0, "though it is a part of it"),
        ("sites.2.never_committed", 99, "never_committed is above reserves"),
        ("privacy.delta", float("inf"), "finite"),
        ("privacy.records_per_subject", 4, "a record has none"),
        ("privacy.accountants.0.epsilon", 1.0, "not the first accountant's figure"),
        ("privacy.curve.0.delta", 0.5, "the curve's δ do not increase"),
        ("privacy.trade_off.0.false_positive_rate", 0.5, "rates do not increase"),
        ("pictures.reconstructions.0.masked", "https://elsewhere/x.png", "pattern"),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(
    dotted: str, value: object, why: str, example_report: Example
) -> None:
    document = json.loads(example_report().canonical_json())
    set_at(document, dotted, value)
    with pytest.raises(UsageError, match=why):
        read(document)


def test_without_privacy_no_epsilon_can_be_stated(example_report: Example) -> None:
    document = json.loads(example_report(private=False).canonical_json())
    document["sites"][0]["epsilon_total"] = 3.0
    with pytest.raises(UsageError, match="the mode is 'none'"):
        read(document)


def test_a_training_loss_can_be_stated_only_without_privacy(example_report: Example) -> None:
    private, plain = example_report(), example_report(private=False)
    assert all(r.training_loss is not None for r in plain.rounds)
    with pytest.raises(ValidationError, match="a training loss is private"):
        Report(**{**dict(private), "rounds": plain.rounds})


def test_what_is_not_a_report_is_refused_without_repeating_it() -> None:
    with pytest.raises(UsageError) as caught:
        read({"run": "secret-value"})
    assert "runs/x/report.json" in str(caught.value)
    assert "secret-value" not in str(caught.value)


def test_a_local_time_zone_is_not_recorded(example_report: Example) -> None:
    run = example_report().run
    east = run.started.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert Run(**{**dict(run), "started": east}).model_dump_json() == run.model_dump_json()


def test_an_interval_is_taken_over_from_a_probe_and_may_touch_its_ends() -> None:
    ends = Interval.of(ProbeInterval(value=1.0, low=0.98, high=1 - 1e-16, method="Wilson"))
    assert (ends.value, ends.low, ends.high, ends.method) == (1.0, 0.98, 1 - 1e-16, "Wilson")


def test_an_audit_that_found_more_than_is_claimed_cannot_be_stated(
    example_report: Example,
) -> None:
    document = json.loads(example_report(audited=True).canonical_json())
    document["privacy"]["audit"]["epsilon_lower_bound"] = 1.5
    with pytest.raises(UsageError, match="may not be released"):
        read(document)


# --- files -----------------------------------------------------------------------------


def test_written_files_are_the_signed_json_and_its_page(
    tmp_path: Path, example_report: Example
) -> None:
    report, coordinator = example_report(), Identity.create()
    json_path, html_path = write_report(tmp_path, report, coordinator)
    signed = sign_report(report, coordinator)
    assert json_path.read_bytes() == signed.canonical_json().encode()
    assert html_path.read_text(encoding="utf-8") == render_html(report, signed.signatures)
    assert coordinator.public_key in html_path.read_text(encoding="utf-8")
    assert report.digest() in html_path.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("step", ["os.fsync", "Path.replace"])
def test_a_failed_write_leaves_the_former_report(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example_report: Example
) -> None:
    first, second = example_report(), example_report(rounds_done=7)
    coordinator = Identity.create()
    write_report(tmp_path, first, coordinator)

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(f"tacit_common.files.{step}", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_report(tmp_path, second, coordinator)
    signed = sign_report(first, coordinator)
    assert (tmp_path / "report.json").read_text() == signed.canonical_json()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page == render_html(first, signed.signatures)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


# --- the package -----------------------------------------------------------------------


@pytest.mark.parametrize("heavy", ["torch", "fpdf", "dp_accounting", "matplotlib"])
def test_a_report_is_read_and_drawn_without_what_is_heavy(heavy: str) -> None:
    code = f"import sys, tacit_common.report; sys.exit('{heavy}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the published schema --------------------------------------------------------------

SCHEMA = Path(__file__).parents[3] / "docs/report-schema.json"


@pytest.fixture(scope="module")
def published() -> Draft202012Validator:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_published_schema_is_that_of_the_document_on_disk() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert schema["$id"] == f"urn:tacit:report:{SCHEMA_VERSION}"
    for key, part in SignedReport.model_json_schema().items():
        assert key == "title" or schema[key] == part, "run `make docs`"


def test_a_signed_report_follows_the_published_schema(
    report_variant: Report, published: Draft202012Validator
) -> None:
    signed = sign_report(report_variant, Identity.create())
    published.validate(json.loads(signed.canonical_json()))


def test_the_published_schema_refuses_what_no_report_holds(
    example_report: Example, published: Draft202012Validator
) -> None:
    document = json.loads(sign_report(example_report(), Identity.create()).canonical_json())
    for dotted, value in (
        ("report.privacy.delta", 2),
        ("report.privacy.mode", "weak"),
        ("report.surprise", 1),
        ("report.models.final_sha256", "abc"),
        ("signatures", []),
    ):
        changed = json.loads(json.dumps(document))
        set_at(changed, dotted, value)
        assert not published.is_valid(changed), dotted
    assert published.is_valid(document)
