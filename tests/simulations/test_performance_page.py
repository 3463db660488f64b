"""The page of figures says what was measured and nothing else; the curves are drawn to scale."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from tacit_server.run_log import RoundFinished, RunStarted
from tacit_simulations.benchmarks import page, scaling, stages
from tacit_simulations.benchmarks.measure import Stages
from tacit_simulations.benchmarks.memory import TreeMemory
from tacit_simulations.benchmarks.plots import Panel, Series, picture
from tacit_simulations.benchmarks.record import Figure, Record, exact, new_record, summarise
from tacit_simulations.benchmarks.round_clock import RoundClock

SVG = "{http://www.w3.org/2000/svg}"
Results = dict[str, Record]


def record(name: str, *figures: Figure) -> Record:
    return new_record(name, f"python -m benchmarks {name}", figures, load_before=0.25)


def startup(seconds: float) -> Record:
    return record(
        "startup",
        *summarise("tacit --help", [0.2], "s", "whole process", target=0.4),
        *summarise(
            "tacit simulate, to the first round",
            [seconds],
            "s",
            "recipe digits, with its probe",
            target=4.0,
        ),
    )


def grown(seconds: float) -> Record:
    """A record of scaling with two points on every curve."""
    figures = []
    for curve in ("sites", "parameters", "records"):
        for mode in ("local", "none"):
            for x in (10, 1000):
                samples = {
                    "round": [seconds * x / 1000],
                    "first round": [0.5],
                    "start": [0.6],
                    "end": [0.7],
                    "check": [0.8],
                    "peak": [x * 2**20],
                    "parameters": [116_976],
                }
                point = scaling.Point(x, min(x, 200), "0.1M", 16, 8, 1)
                condition = f"{x:,} {curve}, mode {mode}; all else fixed"
                where = {"series": f"{curve}, {mode}", "x": float(x)}
                figures += [
                    figure.model_copy(update=where)
                    for figure in scaling._figures(samples, point, condition)
                ]
    return record("scaling", *figures)


@pytest.fixture
def results() -> Results:
    return {"startup": startup(3.5), "scaling": grown(7.77)}


# --- the page --------------------------------------------------------------------------


def test_every_record_is_shown_with_its_command_and_its_machine(results: Results) -> None:
    text = page.page(results)
    for one in results.values():
        assert f"`{one.command}`" in text
    assert text.count("load average before: 0.25") == len(results)
    assert "cores of an" in text or "1 core of an" in text


def test_a_target_is_shown_with_what_was_measured(results: Results) -> None:
    text = page.page(results)
    assert re.search(r"\| tacit --help \| whole process \| 0\.4 s \| 0\.2 s \| yes \|", text)
    assert "What was missed" not in text


def test_a_target_that_is_missed_without_a_reason_is_an_error(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = {**results, "startup": startup(6.5)}
    monkeypatch.setattr(page, "REASONS", {})
    with pytest.raises(LookupError, match="measure why"):
        page.page(missed)
    key = ("startup", "tacit simulate, to the first round")
    monkeypatch.setattr(page, "REASONS", {key: "Torch is large."})
    assert "- tacit simulate, to the first round: Torch is large." in page.page(missed)


def test_every_point_of_a_curve_is_a_row(results: Results) -> None:
    text = page.page(results)
    assert text.count("| 1,000 | without privacy | 7.77 s |") == 3
    assert "All else fixed." in text
    for name in page.pictures(results):
        assert f"](pictures/{name})" in text


def test_the_readme_quotes_the_last_point_and_follows_a_new_measurement(results: Results) -> None:
    quoted = page.headlines(results)
    assert "200 sites out of 1,000, without privacy | 7.77 s, 1,000 MiB |  |" in quoted
    assert page.headlines({**results, "scaling": grown(8.88)}) != quoted


def test_the_readme_quotes_every_comparison_that_has_a_target(results: Results) -> None:
    peers = record(
        "peers",
        exact("round of A, over that of B", 0.17, "x", "ratio", "W1: 100 sites", target=0.2),
        exact("peak memory", 500, "MiB", "one run", "W1: 100 sites"),
    )
    quoted = page.headlines({**results, "peers": peers})
    assert "| round of A, over that of B (100 sites) | 0.17× | 0.2× |" in quoted
    assert "peak memory" not in quoted


def test_the_largest_federation_is_held_to_its_memory() -> None:
    samples = {"round": [1.0], "first round": [1.0], "start": [1.0], "end": [1.0], "check": [1.0]}
    samples |= {"peak": [5 * 2**30], "parameters": [1.0]}
    point = scaling.Point(10_000, 200, "0.1M", 16, 8, 1)
    figures = scaling._figures(samples, point, "")
    assert [f.name for f in figures if f.met is False] == [scaling.MEMORY]


def test_a_cost_that_grows_with_the_registered_sites_misses_its_target() -> None:
    curve = scaling.sites_curve({5: 1, 200: 1, 10_000: 1})
    for last, met in ((1.1, True), (2.5, False)):
        [figure] = scaling._flatness(curve, {5: 0.1, 200: 1.0, 10_000: last}, "mode none")
        assert (figure.value, figure.met) == (last, met)
        assert figure.condition == "10,000 registered sites over 200, mode none"


def test_a_figure_is_looked_up_by_words_that_name_one_alone(results: Results) -> None:
    found = results["startup"]
    assert found.value("tacit --help", statistic="median") == 0.2
    with pytest.raises(LookupError, match="2 figures"):
        found.value("tacit --help")
    with pytest.raises(LookupError, match="0 figures"):
        found.value("tacit --help", "no such condition")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.0123, "s", "12.3 ms"),
        (3.14159, "s", "3.14 s"),
        (123456.0, "ms", "123,456 ms"),
        (4096.0, "MiB", "4 GiB"),
        (0.00012, "x", "0.00012×"),
        (0.0, "ms", "0 ms"),
    ],
)
def test_numbers_have_three_digits_and_a_unit_that_fits(
    value: float, unit: str, shown: str
) -> None:
    assert page._number(value, unit) == shown


# --- pictures --------------------------------------------------------------------------


def drawn(*panels: Panel) -> ElementTree.Element:
    return ElementTree.fromstring(picture("A < B", panels))  # noqa: S314 - our own


def circles(svg: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in svg.iter(f"{SVG}circle")]


def test_a_picture_is_a_file_of_its_own_that_says_what_it_shows() -> None:
    svg = drawn(Panel("time", "sites", [Series("with", [(1, 2), (10, 3)])]))
    assert svg.tag == f"{SVG}svg"
    inner = svg.find(f"{SVG}svg")
    assert inner is not None
    assert inner.attrib["aria-label"] == "A < B. time by sites: with: 2 at 1, 3 at 10"
    style = svg.find(f"{SVG}style")
    assert style is not None
    assert "prefers-color-scheme: dark" in (style.text or "")
    classes = {word for node in svg.iter() for word in node.attrib.get("class", "").split()}
    assert {"c0", "paper", "grid"} <= classes


def test_equal_factors_are_equal_distances_along_x() -> None:
    places = circles(drawn(Panel("", "", [Series("", [(5, 1), (50, 1), (500, 1)])])))
    first, second, third = (x for x, _ in places)
    assert second - first == pytest.approx(third - second, abs=0.02)


@pytest.mark.parametrize(("heights", "logarithmic"), [((1, 2, 3), False), ((1, 10, 100), True)])
def test_heights_are_to_scale(heights: tuple[float, ...], logarithmic: bool) -> None:
    points = list(zip((1, 2, 4), heights, strict=True))
    ys = [y for _, y in circles(drawn(Panel("", "", [Series("", points)])))]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.02)
    assert ys[0] > ys[1] > ys[2]


@pytest.mark.parametrize("height", [0.00021, 1.0, 614.0, 12345.0])
def test_a_flat_curve_stays_in_its_panel_and_has_marks(height: float) -> None:
    svg = drawn(Panel("", "", [Series("", [(5, height), (10_000, height)])]))
    box = svg.find(f"{SVG}svg")
    assert box is not None
    _, _, width, depth = map(float, box.attrib["viewBox"].split())
    assert all(0 < x < width and 0 < y < depth for x, y in circles(svg))
    marks = [p for p in svg.iter(f"{SVG}polyline") if p.attrib["class"] == "grid"]
    assert len(marks) >= 3


# --- what is measured ------------------------------------------------------------------


def test_every_function_that_makes_up_a_stage_exists() -> None:
    with Stages() as watched:
        stages.watch_all(watched, [stages.SERVER, stages.SITE, stages.TRAINING])
    every = {name for table in (stages.SERVER, stages.SITE) for name in table}
    assert stages.ONCE_A_ROUND - {Stages.REST} <= every


@pytest.mark.parametrize(
    "name", ["tacit_client.moved:Site.answer", "tacit_client.site:Moved.answer", "torch:moved"]
)
def test_a_function_that_has_moved_is_an_error(name: str) -> None:
    with Stages() as watched, pytest.raises(RuntimeError, match="mend the benchmark's stages"):
        stages.watch_all(watched, [{"stage": (name,)}])


def test_the_clock_splits_a_run_into_its_parts(
    run_started: RunStarted, round_finished: Callable[[int], RoundFinished]
) -> None:
    clock = RoundClock()
    clock.watch(run_started)
    for number in (1, 2, 3):
        time.sleep(0.02)
        clock.watch(round_finished(number))
    clock.end()
    assert clock.samples["parameters"] == [7]
    assert len(clock.samples["round"]) == 2
    assert all(seconds >= 0.02 for seconds in clock.samples["round"])
    assert {"start", "first round", "end"} <= set(clock.samples)


def test_the_clock_does_not_time_a_round_in_which_sites_failed(
    round_finished: Callable[[int], RoundFinished],
) -> None:
    failed = round_finished(2).model_copy(update={"failed": {"site-0": "failed"}})
    with pytest.raises(RuntimeError, match="site-0"):
        RoundClock().watch(failed)


@pytest.mark.skipif(sys.platform != "linux", reason="other processes are seen on Linux alone")
def test_memory_of_a_process_that_was_started_counts() -> None:
    holds = "import time; held = b'x' * 200_000_000; print('ready', flush=True); time.sleep(1)"
    with (
        TreeMemory() as memory,
        subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        before = memory._most
        time.sleep(0.5)
        child.kill()
        assert memory._most - before > 0 or before > 200_000_000
    assert memory.peak > 200_000_000


@pytest.fixture
def run_started() -> RunStarted:
    return RunStarted(
        run="run",
        study_digest="0" * 64,
        rounds=3,
        parameters=7,
        noise_multiplier=None,
        sites={"a": 1},
    )


@pytest.fixture
def round_finished() -> Callable[[int], RoundFinished]:
    def make(number: int) -> RoundFinished:
        return RoundFinished(
            round=number,
            asked=["a"],
            answered=["a"],
            failed={},
            seconds=1.0,
            update_norm=1.0,
            epsilon=None,
            public_loss=1.0,
            train_loss=None,
        )

    return make
