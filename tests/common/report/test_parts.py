"""How a report writes numbers, sentences, pictures and plots."""

import base64
import io
import math
import xml.etree.ElementTree as ET
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import norm

from tacit_common.errors import DataError
from tacit_common.privacy.tradeoff import FALSE_POSITIVE_RATES
from tacit_common.report import OperatingPoint, numbers, plots, statements
from tacit_common.report.drawing import Box, Dot, Drawing, Label, Stroke, svg
from tacit_common.report.marks import budget_bar, interval_mark
from tacit_common.report.pictures import png_data_uri

# --- numbers ---------------------------------------------------------------------------


@given(st.floats(min_value=1e-4, max_value=1e4))
def test_epsilon_is_never_shown_smaller_than_it_is(value: float) -> None:
    shown = Decimal(numbers.epsilon(value).replace(",", ""))
    assert shown >= Decimal(value) * (1 - Decimal("2e-12"))
    assert shown <= Decimal(value) * Decimal("1.0101")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (8.0, "8.00"),
        (0.1 + 0.2, "0.300"),
        (7.9041, "7.91"),
        (9.996, "10.0"),
        (0.99951, "1.00"),
        (12.34, "12.4"),
        (2697.3, "2,698"),
        (0.0, "0"),
    ],
)
def test_epsilon_has_three_digits(value: float, shown: str) -> None:
    assert numbers.epsilon(value) == shown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (numbers.percent(0.9472), "94.7 %"),
        (numbers.percent(1.0), "100.0 %"),
        (numbers.power(1e-5), "10⁻⁵"),
        (numbers.power(3.2e-6), "3.2 × 10⁻⁶"),
        (numbers.power(0.5), "5 × 10⁻¹"),
        (numbers.significant(0.04471, 3), "0.0447"),
        (numbers.significant(-1234.5), "-1,234"),
        (numbers.significant(0.0), "0"),
        (numbers.one_in(1e-5), "1 in 100,000"),
        (numbers.one_in(0.03), "1 in 33"),
        (numbers.short_percent(1e-6), "0.0001 %"),
        (numbers.short_percent(0.3), "30 %"),
        (numbers.at_least(0.0889), "0.08"),
        (numbers.at_least(12.39), "12.3"),
        (numbers.in_words(5), "Five"),
        (numbers.in_words(1300), "1,300"),
        (numbers.duration(4.25), "4.2 s"),
        (numbers.duration(59.97), "1 min 00 s"),
        (numbers.duration(192.4), "3 min 12 s"),
        (numbers.duration(3599.6), "1 h 00 min"),
    ],
)
def test_figures_are_written_as_people_write_them(written: str, shown: str) -> None:
    assert written.replace(numbers.THIN_SPACE, " ") == shown


@given(st.floats(min_value=0.5, max_value=1.0))
def test_a_bound_on_a_share_is_never_shown_smaller_than_it_is(share: float) -> None:
    shown = Decimal(numbers.percent_at_most(share).split(numbers.THIN_SPACE)[0])
    assert shown >= Decimal(share) * 100
    assert (shown < 100) == (share <= 0.999999)


# --- statements ------------------------------------------------------------------------


@given(st.floats(min_value=0, max_value=30), st.floats(min_value=0, max_value=0.1))
def test_membership_guess_bound_is_that_of_the_worst_private_mechanism(
    epsilon: float, delta: float
) -> None:
    # Kairouz, Oh and Viswanath, equations 12 and 13: every (ε, δ)-private mechanism is a
    # post-processing of this one, so its best guess is the best of all.
    low, high = (1 - delta) / (1 + math.exp(epsilon)), (1 - delta) / (1 + math.exp(-epsilon))
    with_record, without = (delta, high, low, 0.0), (0.0, low, high, delta)
    best = sum(max(p, q) for p, q in zip(with_record, without, strict=True)) / 2
    bound = statements.membership_guess_bound(epsilon=epsilon, delta=delta)
    assert bound == pytest.approx(best, abs=1e-12)


def test_membership_guess_bound_survives_an_enormous_epsilon() -> None:
    assert statements.membership_guess_bound(epsilon=1e6, delta=1e-5) == 1.0


def points(*pairs: tuple[float, float]) -> tuple[OperatingPoint, ...]:
    return tuple(
        OperatingPoint(false_positive_rate=rate, largest_true_positive_rate=found)
        for rate, found in pairs
    )


def gaussian_points(mu: float, rates: list[float]) -> tuple[OperatingPoint, ...]:
    """The trade-off of one Gaussian release (Dong, Roth and Su, equation 6)."""
    return points(*zip(rates, map(float, norm.cdf(norm.ppf(rates) + mu)), strict=True))


@given(
    st.floats(min_value=0.05, max_value=5),
    st.sets(st.integers(min_value=1, max_value=999), min_size=1, max_size=20),
)
def test_guess_bound_is_never_below_the_best_guess(mu: float, thousandths: set[int]) -> None:
    # The best guess against one Gaussian release is right with probability Φ(μ/2).
    grid = [0.0, *(n / 1000 for n in sorted(thousandths)), 1.0]
    assert statements.guess_bound(gaussian_points(mu, grid)) >= norm.cdf(mu / 2) - 1e-9


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 2.0, 4.0])
def test_guess_bound_is_close_to_the_best_guess_on_the_grid_of_a_report(mu: float) -> None:
    bound = statements.guess_bound(gaussian_points(mu, list(FALSE_POSITIVE_RATES)))
    assert 0 <= bound - norm.cdf(mu / 2) < 0.006


def test_guess_bound_of_no_information_is_a_coin_and_of_none_known_is_certainty() -> None:
    assert statements.guess_bound(points((0, 0), (0.5, 0.5), (1, 1))) == pytest.approx(0.5)
    assert statements.guess_bound(points((0, 1), (1, 1))) == 1.0
    assert statements.guess_bound(()) == 1.0


def test_a_plain_statement_takes_the_sharper_of_both_bounds() -> None:
    coin = points((0, 0), (0.5, 0.5), (1, 1))
    by_epsilon = statements.local_plain_statement(
        epsilon=1.0, delta=1e-5, unit="record", trade_off=()
    )
    assert "at most 73.2\u202f% of" in by_epsilon  # e / (1 + e) = 0.73106, rounded up
    by_trade_off = statements.local_plain_statement(
        epsilon=1.0, delta=1e-5, unit="record", trade_off=coin
    )
    assert "at most 50.0\u202f% of" in by_trade_off
    assert "one particular record was used" in by_epsilon


def test_formal_statements_name_unit_cap_adjacency_epsilon_and_delta() -> None:
    record = statements.local_formal_statement(
        epsilon=7.9041, delta=1e-5, unit="record", records_per_subject=None
    )
    for part in ("one record", "zero-out", "7.91", "10⁻⁵", "all other sites", "all rounds"):
        assert part in record
    subject = statements.local_formal_statement(
        epsilon=7.9041, delta=1e-5, unit="subject", records_per_subject=4
    )
    assert "one subject (a person, say) with all of its records at this site" in subject
    assert "a step uses at most 4 records" in subject
    assert "at most" not in record


def test_without_privacy_the_statements_say_so() -> None:
    for sentence in (
        statements.NO_DIFFERENTIAL_PRIVACY_PLAIN,
        statements.NO_DIFFERENTIAL_PRIVACY_FORMAL,
    ):
        assert "no differential privacy" in sentence.lower()


@pytest.mark.parametrize("unit", ["record", "subject"])
def test_sentences_speak_of_the_unit_and_of_no_other(unit: statements.Unit) -> None:
    own, other = ("record", "subject") if unit == "record" else ("subject", "single record")
    sentences = [
        *statements.local_not_covered(unit),
        statements.sampler(unit=unit),
        statements.members_explained(unit=unit),
    ]
    assert sum(own in sentence for sentence in sentences) >= 4
    assert not any(f"every {other}" in sentence for sentence in sentences)
    assert any("A person whose records" in s for s in sentences) == (unit == "subject")


@pytest.mark.parametrize(
    ("rate", "bound", "said"),
    [
        (0.001, 0.15361, "1 in 1,000 non-members finds at most 15.4 in 100 members."),
        (0.01, 0.99971, "1 in 100 non-members finds at most 99.98 in 100 members."),
        (0.1, 1.0, "1 in 10 non-members may find all members, as far as this bound says."),
    ],
)
def test_an_attack_is_said_in_words_and_never_too_small(
    rate: float, bound: float, said: str
) -> None:
    sentence = statements.attack_sentence(
        false_positive_rate=rate, largest_true_positive_rate=bound
    )
    assert sentence == f"An attacker who is wrong about at most {said}"


def test_probes_are_spoken_of_where_there_are_some() -> None:
    for speak in (
        lambda has: statements.local_accesses_covered(unit="record", has_probes=has),
        lambda has: statements.local_outputs(has_probes=has),
        lambda has: statements.none_outputs(has_probes=has),
    ):
        with_probes, without = speak(True), speak(False)
        assert len(with_probes) == len(without) + 1
        assert "probe" in " ".join(with_probes).lower()
        assert "probe" not in " ".join(without).lower()


# --- pictures --------------------------------------------------------------------------


def decode(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_a_grey_picture_keeps_its_levels_and_is_clipped() -> None:
    image = np.array([[0.0, 0.5, 1.0], [-3.0, 7.0, np.nan]], dtype=np.float32)
    assert np.asarray(decode(png_data_uri(image))).tolist() == [[0, 128, 255], [0, 255, 0]]


def test_three_channels_are_red_green_and_blue() -> None:
    image = np.zeros((3, 2, 4))
    image[0, 0, 1], image[2, 1, 3] = 1.0, 0.2
    picture = decode(png_data_uri(image))
    assert (picture.mode, picture.size) == ("RGB", (4, 2))
    assert picture.getpixel((1, 0)) == (255, 0, 0)
    assert picture.getpixel((3, 1)) == (0, 0, 51)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_numbers_of_channels_are_averaged_to_grey(channels: int) -> None:
    image = np.zeros((channels, 3, 3))
    image[0] = 1.0
    picture = decode(png_data_uri(image))
    assert picture.mode == "L"
    assert picture.getpixel((1, 1)) == round(255 / channels)


@pytest.mark.parametrize("shape", [(4,), (1, 1, 4, 4), (0, 4), (3, 0, 4)])
def test_what_is_not_an_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="cannot be drawn"):
        png_data_uri(np.zeros(shape))


# --- plots -----------------------------------------------------------------------------

finite = st.floats(min_value=-1e6, max_value=1e6)


@given(finite, finite)
@example(0.0, -1.6e-305)
def test_ticks_cover_the_values_and_are_few(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = plots.nice_ticks(low, high)
    # Values that lie closer than the smallest span are taken for one.
    slack = max(1e-6 * max(abs(low), abs(high)), plots.SMALLEST_SPAN)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))


def chart(ends: list[float], *, reached: int = 5) -> ET.Element:
    lines = tuple(
        plots.Line(f"line {i}", ((1.0, 0.5), (float(reached), end))) for i, end in enumerate(ends)
    )
    drawing = plots.draw_chart(
        plots.Chart(
            title="ends",
            description="where lines end",
            x=plots.whole_axis("round", 1, 5),
            y=plots.value_axis("value", [0.5, *ends, 1.0], from_zero=True),
            lines=lines,
            reached=reached,
            mark=plots.Mark("mark", 1.0),
        )
    )
    return ET.fromstring(svg(drawing))  # noqa: S314


def curves(root: ET.Element) -> list[list[str]]:
    """Corners of every curve."""
    lines = [p for p in root.iter("polyline") if p.get("class", "").startswith("line")]
    return [line.get("points", "").split() for line in lines]


@given(st.lists(st.floats(min_value=0, max_value=2), min_size=1, max_size=6))
def test_labels_of_lines_do_not_cover_one_another(ends: list[float]) -> None:
    texts = [t for t in chart(ends).iter("text") if "label" in t.get("class", "")]
    heights = sorted(float(t.get("y", "")) for t in texts if "axis" not in t.get("class", ""))
    assert len(heights) == len(ends) + 1
    assert all(b - a >= plots.LABEL_GAP - 0.02 for a, b in pairwise(heights))
    assert heights[0] > 0
    assert heights[-1] <= plots.HEIGHT


def test_a_line_is_drawn_at_its_values() -> None:
    first, second = curves(chart([2.0, 0.0]))
    top, floor = plots.TOP, plots.HEIGHT - plots.BOTTOM
    assert float(first[1].split(",")[1]) == pytest.approx(top, abs=0.01)
    assert float(second[1].split(",")[1]) == pytest.approx(floor, abs=0.01)
    assert float(first[0].split(",")[1]) == pytest.approx(floor - (floor - top) / 4, abs=0.01)


def test_rounds_that_never_ran_are_marked() -> None:
    shaded = [r for r in chart([1.0], reached=3).iter("rect") if r.get("class") == "not-run"]
    assert len(shaded) == 1
    assert not [r for r in chart([1.0]).iter("rect") if r.get("class") == "not-run"]


def trade_off_chart() -> ET.Element:
    drawing = plots.draw_chart(
        plots.Chart(
            title="trade-off",
            description="what is found",
            x=plots.share_axis("wrong"),
            y=plots.share_axis("found"),
            lines=(plots.Line("", ((0.0, 0.0), (0.01, 0.4), (1.0, 1.0))),),
            guessing=True,
            callouts=(plots.Callout("here", (0.01, 0.4)),),
            width=372.0,
            height=270.0,
        )
    )
    return ET.fromstring(svg(drawing))  # noqa: S314


def test_the_trade_off_has_the_diagonal_of_guessing_and_its_point() -> None:
    root = trade_off_chart()
    (curve,) = curves(root)
    guess, drop = (
        p.get("points", "").split() for p in root.iter("polyline") if p.get("class") == "mark"
    )
    assert (guess[0], guess[-1]) == (curve[0], curve[-1])  # both go from corner to corner
    assert drop[0] == curve[1]
    assert "guessing blindly" in [t.text for t in root.iter("text")]


def test_powers_of_ten_lie_evenly_on_a_logarithmic_axis() -> None:
    axis = plots.power_axis("δ", 1e-12, 1e-3)
    assert (axis.low, axis.high) == (-12, -3)
    assert [name for _, name in axis.ticks] == ["10⁻³", "10⁻⁶", "10⁻⁹", "10⁻¹²"]


def test_text_in_a_drawing_is_escaped() -> None:
    shape = Label(0, 0, "<b>&", "tick")
    drawn = svg(Drawing("chart", 9, 9, (shape,), title='"><i>', description="<u>"))
    assert "<b>" not in drawn
    assert "<i>" not in drawn
    assert "<u>" not in drawn


def test_an_interval_mark_puts_value_and_ends_on_the_shared_axis() -> None:
    drawing = interval_mark(0.8, 0.7, 1.0, axis=(0.6, 1.0), is_result=True, reference=0.9)
    (dot,) = (shape for shape in drawing.shapes if isinstance(shape, Dot))
    (bar,) = (shape for shape in drawing.shapes if isinstance(shape, Box))
    (ours,) = (s for s in drawing.shapes if isinstance(s, Stroke) and s.style == "ours")
    assert dot.x == pytest.approx(4 + 152 / 2)
    assert bar.x == pytest.approx(4 + 152 / 4)
    assert bar.width == pytest.approx(152 * 3 / 4)
    assert [x for x, _ in ours.points] == pytest.approx([118, 118])


def test_a_bar_shows_an_overdrawn_budget_as_such() -> None:
    def styles(**bar: float | None) -> set[str]:
        return {shape.style for shape in budget_bar(**bar).shapes}

    assert "over" in styles(run=9.0, total=9.0, cap=8.0)
    assert "over" not in styles(run=8.0, total=8.0, cap=8.0)
    assert "spent hatch" in styles(run=3.0, total=8.0, cap=8.0)
    assert "spent hatch" not in styles(run=8.0, total=8.0, cap=8.0)
    assert "limit" not in styles(run=3.0, total=3.0, cap=None)
