"""The page: it says all that the report says, in words, without network and without scripts."""

import json
import re
from collections.abc import Callable, Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from tacit_common.report import Report, Signature, numbers, render_html

Example = Callable[..., Report]
SITES = tuple(f"site-{k}" for k in range(5))


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


# --- the page --------------------------------------------------------------------------


def test_page_nests_and_is_self_contained(report_variant: Report) -> None:
    html = render_html(report_variant)
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


def test_page_is_accessible(report_variant: Report) -> None:
    html = render_html(report_variant)
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert all(image.get("alt") for image in page.all("img"))
    meant = [drawing for drawing in page.all("svg") if drawing.get("aria-hidden") != "true"]
    assert all(drawing.get("role") == "img" and drawing.get("aria-label") for drawing in meant)
    assert len([tag for tag, _ in page.tags if tag == "title"]) == len(meant) + 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tables = len(page.all("table"))
    assert tables > 3
    assert len(page.all("caption")) + html.count('class="pictures') == tables
    headed = [head for head in page.all("th") if head.get("scope") in {"row", "col"}]
    assert len(headed) == len(page.all("th"))
    identifiers = [a["id"] or "" for _, a in page.tags if "id" in a]
    assert sorted(identifiers) == sorted(
        s.get("aria-labelledby") or "" for s in page.all("section")
    )


def at_least_as_large(value: float) -> str:
    """ε as it must be shown: three digits, rounded up, by decimal arithmetic alone."""
    exact = Decimal(value) * (1 - Decimal("1e-12"))
    if exact >= 100:
        return f"{exact.quantize(Decimal(1), ROUND_CEILING):,}"
    return f"{Context(prec=3, rounding=ROUND_CEILING).create_decimal(exact):f}"


def holds(text: str, shown: str) -> bool:
    """Whether a number stands in a text, and not as a part of another one."""
    return re.search(rf"(?<![\d.,]){re.escape(shown)}(?![\d,]|\.\d)", text) is not None


def test_page_holds_every_epsilon_and_accuracy_of_the_json(report_variant: Report) -> None:
    document = json.loads(report_variant.canonical_json())
    del document["study"]
    if len(report_variant.sites) > 8:  # then a round is shown by its range alone
        for site in document["sites"]:
            del site["epsilon_after_round"]
    text = Page(render_html(report_variant)).text
    epsilons = list(figures(document, lambda key: key.startswith("epsilon")))
    assert bool(epsilons) == (report_variant.privacy.mode == "local")
    audit = document["privacy"].get("audit")
    if audit is not None:  # the one ε that is a lower bound
        epsilons.remove(audit["epsilon_lower_bound"])
        assert holds(text, "0.423")
    for value in epsilons:
        assert holds(text, at_least_as_large(value)), value
    for value in figures(document, lambda key: key in {"value", "low", "high"}):
        assert f" {100 * value:.1f} %" in text, value


def test_page_holds_every_figure_of_every_release(example_report: Example) -> None:
    report = example_report(subject=True)
    text = Page(render_html(report)).text
    for release in report.privacy.releases:
        assert release.mechanism in text
        event = release.event
        shown = [release.l2_clip_norm, release.l2_sensitivity, release.noise_stddev]
        for value in (*shown, event.noise_multiplier):
            assert holds(text, f"{value:.3f}") or holds(text, f"{value:.4f}"), value
    assert holds(text, "0.100")  # the sampling rate
    assert holds(text, "240")  # steps
    for figure in report.privacy.accountants:
        assert f"{figure.discretisation} {figure.software}" in text


def test_page_says_every_sentence_of_the_claim(report_variant: Report) -> None:
    text = Page(render_html(report_variant)).text
    privacy = report_variant.privacy
    sentences = [privacy.plain_statement, privacy.formal_statement, *privacy.outputs]
    sentences += [*privacy.not_covered, *report_variant.verdicts]
    for assumption in privacy.assumptions:
        sentences += [assumption.text, assumption.why]
    if privacy.mode == "local":
        sentences += [*privacy.accesses_covered, *privacy.accesses_excluded, privacy.setting]
        sentences += [privacy.adversary, privacy.transcript, privacy.sampler, privacy.noise]
        sentences += [privacy.floating_point, privacy.tuning, privacy.adjacency]
    for sentence in sentences:
        assert spaced(sentence).replace("_k", "k") in text, sentence


def spaced(sentence: str) -> str:
    return re.sub(r"\s+", " ", sentence)


def row_of(text: str, name: str, *cells: str) -> bool:
    return (
        re.search(rf"{re.escape(name)} +{' +'.join(map(re.escape, cells))}(?![\d.])", text)
        is not None
    )


def test_page_sets_every_site_against_its_cap(example_report: Example) -> None:
    report = example_report(earlier=2.5)
    text = Page(render_html(report)).text
    for site in report.sites:
        total, run = at_least_as_large(site.epsilon_total), at_least_as_large(site.epsilon_run)
        left = Decimal(12 - site.epsilon_total).quantize(Decimal("0.01"), ROUND_FLOOR)
        assert row_of(text, site.name, run, "2.50", total, "12.0", str(left))
        assert row_of(text, site.name, f"{total} of 12.0")


def test_a_bar_is_divided_as_the_figures_are(example_report: Example) -> None:
    report = example_report(earlier=2.5, sites=("alone",), silent=None)
    (site,) = report.sites
    drawn = re.search(r'<svg class="gauge".*?</svg>', render_html(report))
    assert drawn is not None
    boxes = {
        name: (float(x), float(width))
        for x, width, name in re.findall(
            r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="6" rx="1.5" class="([^"]+)"',
            drawn[0],
        )
    }
    run, total = 240 * site.epsilon_run / 12, 240 * site.epsilon_total / 12
    assert boxes["spent"] == pytest.approx((0, run), abs=0.02)
    assert boxes["spent pale"] == pytest.approx((run, total - run), abs=0.02)
    assert boxes["room"] == pytest.approx((0, 240), abs=0.02)
    assert 'class="spent hatch"' in drawn[0]


def test_page_says_what_an_attack_can_find(example_report: Example) -> None:
    report = example_report()
    text = Page(render_html(report)).text
    bounds = {p.false_positive_rate: p for p in report.privacy.trade_off}
    for rate, words in ((0.001, "1 in 1,000"), (0.01, "1 in 100"), (0.1, "1 in 10")):
        exact = Decimal(bounds[rate].largest_true_positive_rate) * 100
        shown = exact.quantize(Decimal("0.1"), ROUND_CEILING)
        assert (
            f"An attacker who is wrong about at most {words} non-members finds at most {shown} "
            "in 100 members." in text
        )


def test_between_known_rates_the_larger_one_is_said(example_report: Example) -> None:
    report = example_report()
    sparse = tuple(p for p in report.privacy.trade_off if p.false_positive_rate in {0.0, 0.5, 1.0})
    privacy = report.privacy.model_copy(update={"trade_off": sparse})
    text = Page(render_html(report.model_copy(update={"privacy": privacy}))).text
    shown = numbers.out_of_hundred_at_most(sparse[1].largest_true_positive_rate)
    assert text.count(f"finds at most {shown} in 100 members") == 3


def test_page_shows_groups_against_one_unit(example_report: Example) -> None:
    report = example_report(subject=True)
    text = Page(render_html(report)).text
    one = report.privacy.epsilon_spent
    for group in report.privacy.groups:
        times = numbers.significant(group.epsilon / one)
        assert row_of(text, str(group.units), at_least_as_large(group.epsilon), times)
    assert "Subjects together" in text


def test_page_names_unit_and_contribution_cap(example_report: Example) -> None:
    person = Page(render_html(example_report(subject=True))).text
    record = Page(render_html(example_report())).text
    assert "for any one subject, with ε" in person
    assert "one subject (a person, say) with all of its records at this site" in person
    assert row_of(person, "Contribution cap m", "4")
    assert "for any one record, with ε" in record
    assert "Contribution cap" not in record


def test_page_shows_an_audit_beside_the_claim_or_says_that_there_is_none(
    example_report: Example,
) -> None:
    with_audit = Page(render_html(example_report(audited=True))).text
    without = Page(render_html(example_report())).text
    assert "with noise for ε = 1.00, shows that ε is at least 0.423." in with_audit
    assert "never a guarantee" in with_audit
    assert "131 of 200" in with_audit
    assert "This report records no audit" in without
    assert "This report records no audit" not in with_audit


def test_page_says_how_to_verify_it_and_who_signed(example_report: Example) -> None:
    report = example_report()
    signature = Signature(signer="coordinator", public_key="ab" * 32, signature="cd" * 64)
    signed = Page(render_html(report, [signature])).text
    unsigned = Page(render_html(report)).text
    for text in (signed, unsigned):
        assert "tacit report verify report.json --ledger EXPORT" in text
        for site in report.sites:
            head = site.ledger
            assert row_of(text, site.name, str(head.seq), head.hash[:16], head.public_key[:16])
    assert "ab" * 32 in signed
    assert "cd" * 64 in signed
    assert "is not signed" not in signed
    assert "is not signed" in unsigned


def test_page_shows_cohorts_models_and_software(report_variant: Report) -> None:
    text = Page(render_html(report_variant)).text
    cohorts, models = report_variant.cohorts, report_variant.models
    assert f"Quorum {cohorts.quorum} answers that a round needs" in text
    assert f"Smallest cohort that answered {cohorts.smallest_answered}" in text
    assert f"Worst dropout {100 * cohorts.worst_dropout:.1f} %" in text
    assert "Secure aggregation none" in text
    assert models.initial_sha256 in text
    assert models.final_sha256 in text
    assert report_variant.study.digest in text
    for value in report_variant.software.model_dump().values():
        assert value in text


def test_page_starts_with_the_epsilon_of_each_site(example_report: Example) -> None:
    text = Page(render_html(example_report())).text
    top = text[: text.index("What the training could reveal")]
    assert "with ε at most 7.92." in top
    for name, spent in zip(SITES, ("7.92", "7.92", "7.62", "7.92", "7.92"), strict=True):
        assert re.search(rf"{name} {spent}", top)


def test_page_without_privacy_says_so_in_full_and_at_the_top(example_report: Example) -> None:
    report = example_report(private=False)
    page = Page(render_html(report))
    assert report.privacy.mode == "none"
    assert '"statement":"no differential privacy"' in report.canonical_json()
    top = page.text[: page.text.index("What the training could reveal")]
    assert "with no differential privacy." in top
    assert "No differential privacy. Nothing limits" in top
    assert "ε at most" not in page.text


def test_page_shows_a_training_loss_only_without_privacy(example_report: Example) -> None:
    private, plain = (Page(render_html(example_report(private=p))).text for p in (True, False))
    assert "The loss on the sites’ records is not shown" in private
    assert "Loss, sites’ records" not in private
    assert "Loss, sites’ records" in plain
    assert "is not shown" not in plain


def test_hostile_names_are_shown_as_text(example_report: Example) -> None:
    hostile = '<script>alert("1")</script>'
    also = '"><img src=https://elsewhere onerror=x>'
    report = example_report(sites=(hostile, also), silent=hostile, refusing=also)
    report = report.model_copy(update={"verdicts": (hostile,)})
    page = Page(render_html(report))
    assert hostile in page.text
    assert also in page.text
    assert page.all("script") == []
    assert all("onerror" not in attributes for _, attributes in page.tags)
    sources = {(image["src"] or "")[:10] for image in page.all("img")}
    assert sources == {"data:image"}


def test_page_of_an_interrupted_run_says_where_it_stopped(example_report: Example) -> None:
    text = Page(render_html(example_report(rounds_done=7))).text
    assert "interrupted after round 7 of 12" in text
    assert "began to train one encoder together and stopped after round 7" in text
    assert "not run" in text
    assert "not run" not in Page(render_html(example_report())).text


def test_page_names_each_refusal_with_its_code_and_each_lost_answer(
    example_report: Example,
) -> None:
    text = Page(render_html(example_report(refusing="site-3"))).text
    for number in (9, 10, 11, 12):
        assert f"Round {number}: site-3 refused (budget)." in text
    assert "Round 4: site-2 sent nothing usable in time." in text
    assert "4 refusals, 1 lost answer" in text


def test_page_warns_when_a_run_is_over_its_budget_or_a_site_over_its_cap(
    example_report: Example,
) -> None:
    report = example_report()
    tight = report.privacy.model_copy(update={"epsilon_target": 4.0})
    text = Page(render_html(report.model_copy(update={"privacy": tight}))).text
    assert "Over budget. At one site this run cost ε = 7.92 where 4.00 was allowed." in text
    last = report.sites[-1].model_copy(update={"epsilon_cap": 7.0})
    capped = report.model_copy(update={"sites": (*report.sites[:-1], last)})
    over = Page(render_html(capped)).text
    assert "Over its cap. site-4 has spent ε = 7.92 where 7.00 is its cap." in over
    assert "Over " not in Page(render_html(report)).text


def test_page_shows_the_best_baseline_beside_the_result_and_the_verdict_on_top(
    example_report: Example,
) -> None:
    report = example_report(helped=False)
    text = Page(render_html(report)).text
    top = text[: text.index("What the training could reveal")]
    assert "The private training did not help" in top
    assert "92.2 % best baseline 96.1 %" in top


def test_page_marks_whether_an_assumption_held(example_report: Example) -> None:
    text = Page(render_html(example_report())).text
    assert "✓ held No record is held by two sites" in text
    assert "? unknown Each site’s software" in text
    assert "✗ not held Each site holds at least" in text


def test_page_counts_neighbours_with_the_label_of_their_query(example_report: Example) -> None:
    queries = example_report().pictures.neighbour_queries  # type: ignore[union-attr]
    same = sum(n.label == query.label for query in queries for n in query.neighbours)
    assert 0 < same < 24
    assert f"{same} of 24 carry the label" in Page(render_html(example_report())).text
