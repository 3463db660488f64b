"""How a report writes numbers, sentences, pictures and plots."""

import base64
import io
import math
import re
import xml.etree.ElementTree as ET
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tacit_common.errors import DataError
from tacit_common.report import numbers, plots, statements
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


def test_local_statements_name_unit_adjacency_epsilon_and_delta() -> None:
    formal = statements.local_formal_statement(epsilon=7.9041, delta=1e-5)
    for part in ("one record", "zero-out", "7.91", "10⁻⁵", "all other sites", "all rounds"):
        assert part in formal
    plain = statements.local_plain_statement(epsilon=1.0, delta=1e-5)
    assert "73.2\u202f%" in plain  # e / (1 + e) = 0.73106, rounded up
    for sentence in (
        statements.NO_DIFFERENTIAL_PRIVACY_PLAIN,
        statements.NO_DIFFERENTIAL_PRIVACY_FORMAL,
    ):
        assert "no differential privacy" in sentence.lower()


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
def test_ticks_cover_the_values_and_are_few(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = plots.nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))


def chart(ends: list[float], *, reached: int = 5) -> ET.Element:
    svg = plots.line_chart(
        plots.LineChart(
            description="ends",
            x_label="round",
            y_label="value",
            lines=tuple(
                plots.Line(f"line {i}", ((1.0, 0.5), (float(reached), end)))
                for i, end in enumerate(ends)
            ),
            first=1,
            last=5,
            reached=reached,
            mark=plots.Mark("mark", 1.0),
            from_zero=True,
        )
    )
    return ET.fromstring(svg)  # noqa: S314


@given(st.lists(st.floats(min_value=0, max_value=2), min_size=1, max_size=6))
def test_labels_of_lines_do_not_cover_one_another(ends: list[float]) -> None:
    texts = [t for t in chart(ends).iter("text") if "label" in t.get("class", "")]
    heights = sorted(float(t.get("y", "")) for t in texts if "axis" not in t.get("class", ""))
    assert len(heights) == len(ends) + 1
    assert all(b - a >= plots.LABEL_GAP - 0.02 for a, b in pairwise(heights))
    assert heights[0] > 0
    assert heights[-1] <= plots.HEIGHT


def test_a_line_is_drawn_at_its_values() -> None:
    root = chart([2.0, 0.0])
    first, second = (p.get("points", "").split() for p in root.iter("polyline"))
    top, floor = plots.TOP, plots.HEIGHT - plots.BOTTOM
    assert float(first[1].split(",")[1]) == pytest.approx(top, abs=0.01)
    assert float(second[1].split(",")[1]) == pytest.approx(floor, abs=0.01)
    assert float(first[0].split(",")[1]) == pytest.approx(floor - (floor - top) / 4, abs=0.01)


def test_rounds_that_never_ran_are_marked() -> None:
    shaded = [r for r in chart([1.0], reached=3).iter("rect") if r.get("class") == "not-run"]
    assert len(shaded) == 1
    assert not [r for r in chart([1.0]).iter("rect") if r.get("class") == "not-run"]


def test_text_in_a_plot_is_escaped() -> None:
    line = plots.Line("<b>&", ((1.0, 1.0),))
    svg = plots.line_chart(plots.LineChart('"><i>', "x", "y", (line,), first=1, last=1, reached=1))
    assert "<b>" not in svg
    assert "<i>" not in svg


def test_an_interval_mark_puts_value_and_ends_on_the_shared_axis() -> None:
    svg = plots.interval_mark(0.8, 0.7, 1.0, axis=(0.6, 1.0), highlight=True, reference=0.9)
    root = ET.fromstring(svg)  # noqa: S314
    (dot,) = root.iter("circle")
    (bar,) = root.iter("rect")
    assert float(dot.get("cx", "")) == pytest.approx(4 + 152 / 2)
    assert float(bar.get("x", "")) == pytest.approx(4 + 152 / 4)
    assert float(bar.get("width", "")) == pytest.approx(152 * 3 / 4)
    assert re.search(r'x1="118" y1="0".*class="ours"', svg)


def test_a_gauge_shows_an_overdrawn_budget_as_such() -> None:
    assert 'class="over"' in plots.gauge(9.0, 8.0)
    assert 'class="over"' not in plots.gauge(8.0, 8.0)
