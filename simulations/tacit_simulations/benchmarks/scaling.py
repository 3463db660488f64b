"""How time and memory grow: with the sites, with the parameters, and with the records of a site.

Each point is one whole `simulate`, from the data on disk to the report, in a fresh process,
which says how many workers it has. A round lasts from the event that ends the one before it to the
event that ends it. The first round is reported apart: it also builds the models. What is done
once for a new study on a machine is measured before, from an empty cache: calibrating the
noise, and under privacy the gate.
"""

import math
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tacit_simulations.benchmarks.measure import (
    Samples,
    Track,
    in_fresh_process,
    scratch_folder,
)
from tacit_simulations.benchmarks.memory import TreeMemory
from tacit_simulations.benchmarks.record import Figure, exact, summarise
from tacit_simulations.benchmarks.round_clock import END, FIRST, ROUND, START, RoundClock
from tacit_simulations.benchmarks.studies import Mode, small_image_study
from tacit_simulations.simulate import check, new_folder, simulate

CHECK, _PEAK = "check", "peak"
_MIB = 2**20
_WORKERS = 2  # as many as there are cores on the machine that the targets are for

SECONDS, OF_A_SITE, ASKED, MEMORY = (
    "seconds a round",
    "milliseconds a site and round",
    "sites asked a round",
    "peak memory of all processes",
)
PARTS = {
    FIRST: "first round",
    START: "start-up to the first round",
    END: "after the last round, to the report",
    CHECK: "check of a new study, once",
}
FLATNESS = "a round, more registered sites over fewer, as many asked"
FLAT = 1.2
LARGEST_MEMORY_MIB = 4096.0  # of ten thousand sites


@dataclass(frozen=True)
class Point:
    """One simulation; `rounds` are those that count, after the first."""

    sites: int
    asked: int
    size: str
    records: int
    batch: int
    rounds: int
    workers: int = 1


@dataclass(frozen=True)
class Curve:
    """Points along which one quantity grows, and all else stays."""

    name: str
    fixed: str
    points: dict[float, Point]
    private_up_to: float = math.inf


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    curves: tuple[Curve, ...]


def sites_curve(numbers: dict[int, int], *, asked: int = 200) -> Curve:
    """More and more sites, of which at most `asked` are asked a round; rounds of each number."""
    return Curve(
        "sites",
        f"{asked} sites a round at most, 0.12M parameters, 16 records a site, one step of 8, "
        f"{_WORKERS} workers",
        {
            sites: Point(sites, min(sites, asked), "0.1M", 16, 8, rounds, _WORKERS)
            for sites, rounds in numbers.items()
        },
    )


def parameters_curve(sizes: dict[str, int]) -> Curve:
    """Larger and larger models at one site; rounds of each size."""
    return Curve(
        "parameters",
        "one site, 16 records, one step of 2; under privacy up to 10M, for beyond it the gate "
        "takes minutes, once a model, for its check in float64",
        {
            1e6 * float(size.removesuffix("M")): Point(1, 1, size, 16, batch=2, rounds=rounds)
            for size, rounds in sizes.items()
        },
        # Beyond, the gate takes minutes for its check in float64, which is paid once a model.
        private_up_to=10e6,
    )


def records_curve(numbers: dict[int, int]) -> Curve:
    """More and more records at each of two sites; rounds of each number."""
    return Curve(
        "records",
        "2 sites, 0.12M parameters, one step of 16 however many records there are",
        {
            records: Point(2, 2, "0.1M", records, batch=16, rounds=rounds)
            for records, rounds in numbers.items()
        },
    )


FULL = Plan(
    (
        sites_curve({5: 20, 200: 3, 1000: 3, 10_000: 3}),
        parameters_curve({"0.1M": 10, "1M": 10, "10M": 3, "100M": 2}),
        records_curve({100: 20, 10_000: 10, 100_000: 5}),
    )
)
QUICK = Plan(
    (
        sites_curve({5: 5, 50: 3, 500: 2}, asked=50),
        parameters_curve({"0.1M": 5, "1M": 5, "10M": 2}),
        records_curve({100: 5, 1000: 5}),
    )
)


def measure(plan: Plan, track: Track) -> list[Figure]:
    """Every point of every curve, with privacy and without."""
    figures: list[Figure] = []
    for curve in plan.curves:
        for mode in get_args(Mode):
            medians: dict[float, float] = {}
            for x, point in curve.points.items():
                if mode == "local" and x > curve.private_up_to:
                    continue
                with (
                    track.measuring(f"{x:,.0f} {curve.name}, mode {mode}"),
                    scratch_folder() as folder,
                ):
                    samples = in_fresh_process(
                        "scaling:simulation", mode=mode, folder=str(folder), **vars(point)
                    )
                condition = f"{x:,.0f} {curve.name}, mode {mode}; {curve.fixed}"
                found = _figures(samples, point, condition)
                where = {"series": f"{curve.name}, {mode}", "x": float(x)}
                figures += [figure.model_copy(update=where) for figure in found]
                medians[x] = statistics.median(samples[ROUND])
            if curve.name == "sites":
                figures += _flatness(curve, medians, f"mode {mode}; {curve.fixed}")
    return figures


def _flatness(curve: Curve, medians: dict[float, float], condition: str) -> list[Figure]:
    """A round among the most registered sites over one among the fewest that as many answer."""
    most = max(point.asked for point in curve.points.values())
    same = [x for x, point in curve.points.items() if point.asked == most]
    ratio = medians[max(same)] / medians[min(same)]
    what = f"{max(same):,.0f} registered sites over {min(same):,.0f}"
    return [exact(FLATNESS, ratio, "x", "ratio of medians", f"{what}, {condition}", target=FLAT)]


def simulation(
    mode: Mode,
    folder: str,
    sites: int,
    asked: int,
    size: str,
    records: int,
    batch: int,
    rounds: int,
    workers: int,
) -> Samples:
    """Seconds of each part of one simulation, and the most bytes that it took."""
    study = small_image_study(
        size,
        mode,
        Path(folder),
        sites=sites,
        records=records,
        batch=batch,
        rounds=rounds + 1,
        cohort=asked if asked < sites else None,
        workers=workers,
    )
    os.environ["XDG_CACHE_HOME"] = folder  # empty: the gate has not seen the model
    started = time.perf_counter()
    check(study)
    checked = time.perf_counter() - started
    clock = RoundClock()
    with TreeMemory() as memory:
        simulate(study, new_folder(study, Path(folder) / "run"), watchers=[clock.watch])
        clock.end()
    return {**clock.samples, _PEAK: [memory.peak], CHECK: [checked]}


def _figures(samples: Samples, point: Point, condition: str) -> list[Figure]:
    a_site = [1e3 * seconds / point.asked for seconds in samples[ROUND]]
    return [
        *summarise(SECONDS, samples[ROUND], "s", condition),
        *summarise(OF_A_SITE, a_site, "ms", condition),
        *(exact(name, samples[part][0], "s", "one run", condition) for part, name in PARTS.items()),
        exact(
            MEMORY,
            samples[_PEAK][0] / _MIB,
            "MiB",
            "largest of five looks a second",
            condition,
            target=LARGEST_MEMORY_MIB if point.sites >= 10_000 else None,
        ),
        exact(ASKED, point.asked, "", "count", condition),
        exact("parameters", samples["parameters"][0], "", "count", condition),
    ]
