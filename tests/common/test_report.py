"""The report: JSON and page say the same, and neither says what it must not."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_CEILING, Decimal
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits

from tacit_common import report as public
from tacit_common.errors import RefusalCode, UsageError
from tacit_common.probes.contract import Interval as ProbeInterval
from tacit_common.report import statements
from tacit_common.report.pictures import png_data_uri
from tacit_common.report.render import render_html, write_report
from tacit_common.report.schema import (
    AccountantFigure,
    Assumption,
    Evaluation,
    EvaluationRow,
    Interval,
    LocalPrivacy,
    Neighbour,
    NeighbourQuery,
    NoPrivacy,
    Pictures,
    ProbeReport,
    Reconstruction,
    Refusal,
    Report,
    RoundReport,
    Run,
    SiteReport,
    Software,
    StudyRecord,
    parse_report,
)
from tacit_common.study_file import parse_study

SITES = tuple(f"site-{k}" for k in range(5))
ROUNDS = 12
DELTA = 1e-5
STARTED = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)

STUDY = """
name = "digits-local"
seed = 7
[encoder]
kind = "vit"
image_size = 8
channels = 1
patch_size = 2
width = 48
depth = 2
heads = 4
[objective]
kind = "masked"
[federation]
rounds = 12
local_steps = 20
client_lr = 0.2
[[probes]]
kind = "ridge"
classes = 10
"""
LOCAL = """epsilon = 1.0
[privacy]
mode = "local"
unit = "record"
epsilon = 8.0
delta = 1e-5
l2_clip_norm = 1.0
sampling_rate = 0.1
"""
NONE = """[privacy]
mode = "none"
sampling_rate = 0.1
"""


# --- an example run --------------------------------------------------------------------


def interval(value: float, n: int = 360) -> Interval:
    half = 1.96 * (value * (1 - value) / n) ** 0.5
    return Interval(value=value, low=value - half, high=value + half, method="Wilson, 360 records")


def local_privacy(spent: float) -> LocalPrivacy:
    return LocalPrivacy(
        mode="local",
        plain_statement=statements.local_plain_statement(epsilon=spent, delta=DELTA),
        formal_statement=statements.local_formal_statement(epsilon=spent, delta=DELTA),
        unit="record",
        adjacency="zero-out",
        adversary=statements.LOCAL_ADVERSARY,
        transcript=statements.LOCAL_TRANSCRIPT,
        epsilon_target=8.0,
        epsilon_spent=spent,
        delta=DELTA,
        l2_clip_norm=1.0,
        sampling_rate=0.1,
        noise_multiplier=0.8123,
        steps=240,
        sampler="Poisson sampling of records at rate q in every step, with masks from the "
        "operating system’s random source",
        noise="Gaussian noise from a cryptographic generator, added on a lattice with spacing "
        "C/(64√d), so that no floating-point sum is released",
        accountants=(
            AccountantFigure(method="PLD", epsilon=7.9713, software="dp-accounting 0.6.0"),
            AccountantFigure(method="RDP", epsilon=8.6249, software="dp-accounting 0.6.0"),
            AccountantFigure(method="PRV", epsilon=7.9902, software="Opacus 1.6.0"),
        ),
        assumptions=(
            Assumption(
                text="No record is held by two sites",
                held=True,
                why="The simulation dealt every record to exactly one site.",
            ),
            Assumption(
                text="Each site’s software is what it reviewed",
                held=None,
                why="Nobody but the site can check this.",
            ),
            Assumption(
                text="Each site holds at least its declared number of records",
                held=False,
                why="site-4 holds fewer, so its expected batch is smaller; the bound still holds.",
            ),
        ),
        not_covered=(*statements.LOCAL_NOT_COVERED, *statements.SIMULATION_NOT_COVERED),
    )


def no_privacy() -> NoPrivacy:
    return NoPrivacy(
        mode="none",
        plain_statement=statements.NO_DIFFERENTIAL_PRIVACY_PLAIN,
        formal_statement=statements.NO_DIFFERENTIAL_PRIVACY_FORMAL,
        sampling_rate=0.1,
        steps=240,
        assumptions=(),
        not_covered=statements.NONE_NOT_COVERED,
    )


def evaluation(*, helped: bool = True) -> Evaluation:
    ours = (0.9472, 0.8139, 0.9306) if helped else (0.9222, 0.7694, 0.8972)
    accuracies = {
        "Raw pixels": (0.9611, 0.7833, 0.9194),
        "Random encoder": (0.8917, 0.7111, 0.8556),
        "Warm start only": (0.9250, 0.7722, 0.9028),
        "This encoder": ours,
    }
    return Evaluation(
        dataset="digits",
        classes=10,
        train_records=1437,
        test_records=360,
        labels_per_class=10,
        partition="Dirichlet(0.3) over 5 sites",
        columns=("kNN", "Few labels", "Linear"),
        rows=tuple(
            EvaluationRow(
                label=label,
                role="result" if label == "This encoder" else "baseline",
                cells=tuple(interval(value) for value in values),
            )
            for label, values in accuracies.items()
        ),
    )


@cache
def pictures() -> Pictures:
    digits = load_digits()
    images = digits.images / 16.0
    rng = np.random.default_rng(3)
    triples = []
    for image in images[1500:1508]:
        hidden = np.kron(rng.random((4, 4)) < 0.75, np.ones((2, 2))).astype(bool)
        soft = (image + np.roll(image, 1, 0) + np.roll(image, -1, 1)) / 3
        triples.append(
            Reconstruction(
                original=png_data_uri(image),
                masked=png_data_uri(np.where(hidden, 0.0, image)),
                reconstructed=png_data_uri(np.where(hidden, soft, image)),
            )
        )
    queries = []
    for index in (1501, 1510, 1573, 1658):
        distances = np.linalg.norm((images[:1400] - images[index]).reshape(1400, -1), axis=1)
        near = [*np.argsort(distances)[:4], 17 + index % 5, index % 7]
        queries.append(
            NeighbourQuery(
                picture=png_data_uri(images[index]),
                label=str(digits.target[index]),
                neighbours=tuple(
                    Neighbour(picture=png_data_uri(images[i]), label=str(digits.target[i]))
                    for i in near
                ),
            )
        )
    return Pictures(
        source="digits, held-out part",
        reconstructions=tuple(triples),
        neighbour_queries=tuple(queries),
    )


def example(
    *,
    private: bool = True,
    rounds_done: int = ROUNDS,
    refusing: str | None = None,
    silent: str | None = "site-2",
    sites: tuple[str, ...] = SITES,
    helped: bool = True,
) -> Report:
    """A run; `refusing` has spent its budget from round 9 on, `silent` misses round 4."""
    rounds = []
    for number in range(1, rounds_done + 1):
        refused = tuple(
            Refusal(site=site, code=RefusalCode.BUDGET)
            for site in sites
            if site == refusing and number >= 9
        )
        absent = {refusal.site for refusal in refused} | ({silent} if number == 4 else set())
        rounds.append(
            RoundReport(
                number=number,
                asked=sites,
                answered=tuple(site for site in sites if site not in absent),
                refused=refused,
                seconds=14.2 + 0.3 * (number % 4),
                mean_update_norm=0.42 / number**0.5 + 0.11,
                validation_loss=0.031 + 0.058 * 0.78**number,
                training_loss=None if private else 0.028 + 0.071 * 0.75**number,
            )
        )
    site_reports = []
    for k, name in enumerate(sites):
        answered = [name in r.answered for r in rounds]
        curve = tuple(
            float(2.26 * (1 + sum(answered[: i + 1])) ** 0.485) for i in range(len(rounds))
        )
        total = (curve[-1] if curve else 0.0) + (0.071 if rounds_done == ROUNDS else 0.0)
        site_reports.append(
            SiteReport(
                name=name,
                declared_records=(280, 240, 300, 260, 280)[k % 5],
                rounds_answered=sum(answered),
                epsilon_after_round=curve if private else None,
                epsilon_total=total if private else None,
                ledger_head=hashlib.sha256(name.encode()).hexdigest() if private else None,
                releases=sum(answered) + 2,
            )
        )
    spent = max(site.epsilon_total or 0.0 for site in site_reports)
    study = parse_study(STUDY + (LOCAL if private else NONE))
    verdict = (
        "With ten labels a class, this encoder is 4.2 points better than the warm start alone; "
        "the intervals touch."
        if helped
        else "The private training did not help: with ten labels a class this encoder is not "
        "better than the warm start alone, and raw pixels beat both."
    )
    return Report(
        run=Run(
            name="digits-local-eps8" if private else "digits-none",
            id="3f0c9a1e7b42",
            engine="in-process",
            status="complete" if rounds_done == ROUNDS else "interrupted",
            started=STARTED,
            finished=STARTED + timedelta(seconds=207),
            rounds_planned=ROUNDS,
            rounds_done=rounds_done,
            wall_s=192.4,
            resumed=1,
        ),
        study=StudyRecord.of(study.travelling()),
        software=Software.installed(),
        privacy=local_privacy(spent) if private else no_privacy(),
        sites=tuple(site_reports),
        initial_validation_loss=0.0893,
        rounds=tuple(rounds),
        verdicts=(
            verdict,
            "kNN on raw pixels, which needs no training, is the best of its column.",
        ),
        probes=(
            ProbeReport(
                name="ridge",
                when="before",
                epsilon_per_site=1.0 if private else None,
                accuracy=interval(0.7123),
            ),
            ProbeReport(
                name="ridge",
                when="after",
                epsilon_per_site=1.0 if private else None,
                accuracy=interval(0.7689),
            ),
        ),
        evaluation=evaluation(helped=helped),
        pictures=pictures(),
    )


# --- reading the page ------------------------------------------------------------------

VOID = {"meta", "img", "br", "line", "rect", "circle", "polyline", "link", "hr", "input"}


class Page(HTMLParser):
    """Text, tags and attributes of a page; refuses tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", "".join(self.words))  # \s matches thin spaces too

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.part(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.part(tag)
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def part(self, tag: str) -> None:
        if tag not in {"sub", "strong", "span", "code"}:
            self.words.append(" ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def figures(node: Any, keep: Callable[[str], bool], key: str = "") -> Iterator[float]:
    """Every number under a key that `keep` accepts."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from figures(value, keep, name)
    elif isinstance(node, list):
        for value in node:
            yield from figures(value, keep, key)
    elif isinstance(node, (int, float)) and keep(key):
        yield node


VARIANTS: dict[str, Callable[[], Report]] = {
    "local": example,
    "none": lambda: example(private=False, helped=False),
    "interrupted": lambda: example(rounds_done=7),
    "not begun": lambda: example(rounds_done=0, silent=None),
    "refused": lambda: example(refusing="site-3"),
    "one site": lambda: example(sites=("alone",), silent=None),
    "many sites": lambda: example(sites=tuple(f"hospital-{k:02}" for k in range(40))),
    "bare": lambda: example().model_copy(
        update={"evaluation": None, "pictures": None, "probes": (), "verdicts": ()}
    ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Report:
    return VARIANTS[request.param]()


# --- JSON ------------------------------------------------------------------------------


def test_json_round_trip_gives_an_equal_report_and_equal_bytes(variant: Report) -> None:
    text = variant.canonical_json()
    again = parse_report(text)
    assert again == variant
    assert again.canonical_json() == text
    assert again.digest() == hashlib.sha256(text.encode("ascii")).hexdigest()


def test_canonical_json_is_sorted_compact_and_versioned() -> None:
    text = example().canonical_json()
    document = json.loads(text)
    assert text == json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert document["schema_version"] == 1


def objects(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        yield path, node
        if path != ".study.document":  # a study has its own schema
            for key, value in node.items():
                yield from objects(value, f"{path}.{key}")
    elif isinstance(node, list):
        for value in node[:1]:
            yield from objects(value, f"{path}.0")


def test_an_unknown_key_is_refused_in_every_part() -> None:
    text = example(refusing="site-3").canonical_json()
    paths = [path for path, _ in objects(json.loads(text)) if path != ".study.document"]
    assert len(paths) > 15
    for path in paths:
        document = json.loads(text)
        dict(objects(document))[path]["surprise"] = 1
        with pytest.raises(UsageError, match=r"surprise: Extra inputs are not permitted"):
            parse_report(json.dumps(document))


def set_at(document: dict[str, Any], dotted: str, value: object) -> None:
    *parents, leaf = dotted.split(".")
    node: Any = document
    for part in parents:
        node = node[int(part)] if part.isdecimal() else node[part]
    node[leaf] = value


@pytest.mark.parametrize(
    ("dotted", "value", "why"),
    [
        ("schema_version", 2, "schema_version"),
        ("rounds.0.training_loss", 0.5, "a training loss is private"),
        ("privacy.epsilon_spent", 1.0, "not the largest epsilon_total"),
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
        ("privacy.delta", float("inf"), "finite"),
        ("pictures.reconstructions.0.masked", "https://elsewhere/x.png", "pattern"),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(dotted: str, value: object, why: str) -> None:
    document = json.loads(example().canonical_json())
    set_at(document, dotted, value)
    with pytest.raises(UsageError, match=why):
        parse_report(json.dumps(document))


def test_without_privacy_no_epsilon_can_be_stated() -> None:
    document = json.loads(example(private=False).canonical_json())
    document["sites"][0]["epsilon_total"] = 3.0
    with pytest.raises(UsageError, match="the mode is 'none'"):
        parse_report(json.dumps(document))


def test_a_training_loss_can_be_stated_only_without_privacy() -> None:
    private, plain = example(), example(private=False)
    assert all(r.training_loss is not None for r in plain.rounds)
    with pytest.raises(ValidationError, match="a training loss is private"):
        Report(**{**dict(private), "rounds": plain.rounds})


def test_what_is_not_a_report_is_refused_without_repeating_it() -> None:
    with pytest.raises(UsageError) as caught:
        parse_report('{"run": "secret-value"}', source="runs/x/report.json")
    assert "runs/x/report.json" in str(caught.value)
    assert "secret-value" not in str(caught.value)


def test_a_local_time_zone_is_not_recorded() -> None:
    east = STARTED.astimezone(timezone(timedelta(hours=5, minutes=30)))
    run = example().run
    assert Run(**{**dict(run), "started": east}).model_dump_json() == run.model_dump_json()


def test_an_interval_is_taken_over_from_a_probe_and_may_touch_its_ends() -> None:
    ends = Interval.of(ProbeInterval(value=1.0, low=0.98, high=1 - 1e-16, method="Wilson"))
    assert (ends.value, ends.low, ends.high, ends.method) == (1.0, 0.98, 1 - 1e-16, "Wilson")


# --- the page --------------------------------------------------------------------------


def test_page_nests_and_is_self_contained(variant: Report) -> None:
    html = render_html(variant)
    page = Page(html)
    assert len(html.encode()) < 1_500_000
    assert not {"script", "link", "iframe", "object", "base", "form"} & {t for t, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "action", "data"}:
                assert (value or "").startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import|https?://", html)
    policy = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_page_is_accessible(variant: Report) -> None:
    page = Page(render_html(variant))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert all(image.get("alt") for image in page.all("img"))
    for drawing in page.all("svg"):
        assert drawing.get("aria-hidden") == "true" or drawing.get("aria-label")
    headed = [head for head in page.all("th") if head.get("scope") in {"row", "col"}]
    assert len(headed) == len(page.all("th"))
    identifiers = [a["id"] or "" for _, a in page.tags if "id" in a]
    assert sorted(identifiers) == sorted(
        s.get("aria-labelledby") or "" for s in page.all("section")
    )


@pytest.mark.parametrize("name", ["local", "none", "interrupted", "refused", "one site"])
def test_page_holds_every_epsilon_and_accuracy_of_the_json(name: str) -> None:
    report = VARIANTS[name]()
    document = json.loads(report.canonical_json())
    del document["study"]
    text = Page(render_html(report)).text
    epsilons = list(figures(document, lambda key: key.startswith("epsilon")))
    assert bool(epsilons) == (name != "none")
    for value in epsilons:
        shown = Decimal(repr(value)).quantize(Decimal("0.01"), rounding=ROUND_CEILING)
        assert re.search(rf"(?<![\d.]){re.escape(str(shown))}(?![\d])", text), value
    accuracies = list(figures(document, lambda key: key in {"value", "low", "high"}))
    assert len(accuracies) == 3 * (4 * 3 + 2)
    for value in accuracies:
        assert f" {100 * value:.1f} %" in text, value


def test_page_starts_with_the_epsilon_of_each_site() -> None:
    text = Page(render_html(example())).text
    top = text[: text.index("What the training could reveal")]
    assert "with ε at most 7.92." in top
    for name, spent in zip(SITES, ("7.92", "7.92", "7.62", "7.92", "7.92"), strict=True):
        assert re.search(rf"{name} {spent}", top)


def test_page_without_privacy_says_so_in_full_and_at_the_top() -> None:
    report = example(private=False)
    page = Page(render_html(report))
    assert report.privacy.mode == "none"
    assert '"statement":"no differential privacy"' in report.canonical_json()
    top = page.text[: page.text.index("What the training could reveal")]
    assert "with no differential privacy." in top
    assert "No differential privacy. Nothing limits" in top
    assert "ε at most" not in page.text


def test_page_shows_a_training_loss_only_without_privacy() -> None:
    private, plain = (Page(render_html(example(private=p))).text for p in (True, False))
    assert "The loss on the sites’ records is not shown" in private
    assert "Loss, sites’ records" not in private
    assert "Loss, sites’ records" in plain
    assert "is not shown" not in plain


def test_hostile_names_are_shown_as_text() -> None:
    hostile = '<script>alert("1")</script>'
    also = '"><img src=https://elsewhere onerror=x>'
    report = example(sites=(hostile, also), silent=hostile, refusing=also)
    report = report.model_copy(update={"verdicts": (hostile,)})
    page = Page(render_html(report))
    assert hostile in page.text
    assert also in page.text
    assert page.all("script") == []
    assert all("onerror" not in attributes for _, attributes in page.tags)
    sources = {(image["src"] or "")[:10] for image in page.all("img")}
    assert sources == {"data:image"}


def test_page_of_an_interrupted_run_says_where_it_stopped() -> None:
    text = Page(render_html(example(rounds_done=7))).text
    assert "interrupted after round 7 of 12" in text
    assert "began to train one encoder together and stopped after round 7" in text
    assert "not run" in text
    assert "not run" not in Page(render_html(example())).text


def test_page_names_each_refusal_with_its_code_and_each_lost_answer() -> None:
    text = Page(render_html(example(refusing="site-3"))).text
    for number in (9, 10, 11, 12):
        assert f"Round {number}: site-3 refused (budget)." in text
    assert "Round 4: site-2 sent nothing in time." in text
    assert "4 refusals, 1 lost answer" in text


def test_page_warns_when_a_site_is_over_its_budget() -> None:
    report = example()
    tight = report.privacy.model_copy(update={"epsilon_target": 4.0})
    text = Page(render_html(report.model_copy(update={"privacy": tight}))).text
    assert "Over budget." in text
    assert "Over budget." not in Page(render_html(report)).text


def test_page_shows_the_best_baseline_beside_the_result_and_the_verdict_on_top() -> None:
    report = example(helped=False)
    text = Page(render_html(report)).text
    top = text[: text.index("What the training could reveal")]
    assert "The private training did not help" in top
    assert "92.2 % best baseline 96.1 %" in top


def test_page_marks_whether_an_assumption_held() -> None:
    text = Page(render_html(example())).text
    assert "✓ held No record is held by two sites" in text
    assert "not checked Each site’s software" in text
    assert "✗ not held Each site holds at least" in text


def test_page_counts_neighbours_with_the_label_of_their_query() -> None:
    queries = example().pictures.neighbour_queries  # type: ignore[union-attr]
    same = sum(n.label == query.label for query in queries for n in query.neighbours)
    assert 0 < same < 24
    assert f"{same} of 24 carry the label" in Page(render_html(example())).text


# --- files -----------------------------------------------------------------------------


def test_written_files_are_the_canonical_json_and_its_page(tmp_path: Path) -> None:
    report = example()
    json_path, html_path = write_report(tmp_path, report)
    assert json_path.read_bytes() == report.canonical_json().encode()
    assert html_path.read_text(encoding="utf-8") == render_html(report)
    assert report.digest() in html_path.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("step", ["os.fsync", "Path.replace"])
def test_a_failed_write_leaves_the_former_report(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = example(), example(rounds_done=7)
    write_report(tmp_path, first)

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(f"tacit_common.files.{step}", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_report(tmp_path, second)
    assert (tmp_path / "report.json").read_text() == first.canonical_json()
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_html(first)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


# --- the package -----------------------------------------------------------------------


def test_public_names_are_listed_and_exist() -> None:
    assert public.__all__ == sorted(public.__all__)
    assert all(hasattr(public, name) for name in public.__all__)


def test_a_report_is_read_and_drawn_without_torch() -> None:
    code = "import sys, tacit_common.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
