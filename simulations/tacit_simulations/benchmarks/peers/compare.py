"""The comparison: deal the work out, run everyone, hold the results against each other.

Results first: figures of contestants that did not do the same would mean nothing.

- Without privacy all end at the plain loop's parameters, up to rounding: every step of
  every site saw the same records.
- Under privacy two contestants end apart by their noise alone, and have learned as much
  beyond it. The size of the noise follows from the plan, so both tell whether noise,
  clipping, steps and learning rate were those of the plan.
"""

import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tacit_common.errors import TacitError
from tacit_simulations.benchmarks.measure import Samples, Track, scratch_folder
from tacit_simulations.benchmarks.peers.contestants import CORES, MEMORY, Contestant, run
from tacit_simulations.benchmarks.peers.tacit_engine import deal
from tacit_simulations.benchmarks.peers.task import Dealt, Work, read_dealt
from tacit_simulations.benchmarks.record import Figure, exact, median, summarise

ROUND, START, FIRST = "seconds a round", "start-up", "first round"
PEAK, APART = "peak memory", "distance to the reference"

ROUNDING = 1e-3
"""The most that ends may be apart without privacy, over what was learned."""

NOISE = 0.03
"""The most by which the distance of private ends may miss what their noise explains."""

_LATTICE = 65 / 64  # Tacit's noise hides the rounding to its lattice too (docs/privacy.md)

TACIT = Contestant("Tacit, 1 worker", "tacit_engine", "tacit", {"workers": 1})
TACIT_CORES = Contestant(
    f"Tacit, {CORES} workers", "tacit_engine", "tacit", {"workers": CORES}, processes=CORES
)
PLAIN = Contestant("plain PyTorch loop, no DP", "plain_loop", end="other")
OPACUS = Contestant("plain Opacus loop", "opacus_loop", end="private")
FLOWER = Contestant("Flower on Ray", "flower_opacus", arguments={"cores": CORES}, processes=CORES)
FLOWER_OPACUS = replace(FLOWER, title="Flower on Ray, Opacus", end="private")
FLOWER_EPSILON = replace(
    FLOWER_OPACUS,
    title="the same, ε asked every round",
    arguments={"cores": CORES, "epsilon": True},
    end="other",  # it stops sooner
)
PFL = Contestant("pfl, 1 process", "pfl_torch", arguments={"processes": 1})
PFL_CORES = Contestant(
    f"pfl, {CORES} processes", "pfl_torch", arguments={"processes": CORES}, processes=CORES
)


@dataclass(frozen=True)
class Target:
    """The most that Tacit's round may take, over that of `of`."""

    tacit: Contestant
    of: Contestant
    most: float | None = None


@dataclass(frozen=True)
class Match:
    """One work, who does it, and what is asked of Tacit. The first one is the reference."""

    work: Work
    contestants: tuple[Contestant, ...]
    targets: tuple[Target, ...] = ()
    repetitions: int = 1  # of those in a target, in turn, so that a slow minute hits both

    def in_turn(self, turn: int) -> list[Contestant]:
        """Who runs in a turn: everyone in the first, then those that a target compares."""
        able = list(self.contestants)
        judged = {c.key for t in self.targets if t.most is not None for c in (t.tacit, t.of)}
        again = [c for c in able if turn == 0 or c.key in judged]
        return again if turn % 2 == 0 else again[::-1]


@dataclass(frozen=True)
class Plan:
    """What to compare."""

    matches: tuple[Match, ...]


def _other(contestant: Contestant) -> Contestant:
    return replace(contestant, end="other")


def _private(contestant: Contestant) -> Contestant:
    return replace(contestant, end="private")


def plan(rounds: int, repetitions: int, *, epsilon_rounds: bool) -> Plan:
    """The three works of the targets; `rounds` count in each, after a first one."""
    w1 = Work("W1", 100, 64, 512, 0.5, 4, rounds, epsilon=8.0)
    w2 = Work("W2", 100, 20, 256, 1.0, 4, 3 * rounds)
    w3 = Work("W3", 5, 256, 512, 1.0, 10, 3 * rounds)
    w3_private = replace(w3, name="W3 with DP", sampling_rate=0.5, rounds=rounds, epsilon=8.0)
    asked = (FLOWER_EPSILON,) if epsilon_rounds else ()
    return Plan(
        (
            Match(
                w1,
                (
                    OPACUS,
                    _private(TACIT),
                    _private(TACIT_CORES),
                    FLOWER_OPACUS,
                    *asked,
                    _other(PFL),
                    _other(PFL_CORES),
                    PLAIN,
                ),
                (
                    Target(TACIT_CORES, FLOWER_OPACUS, 1 / 5),
                    Target(TACIT, FLOWER_OPACUS),
                    Target(TACIT, OPACUS),
                ),
                repetitions,
            ),
            Match(
                w2,
                (PLAIN, TACIT, TACIT_CORES, FLOWER, PFL, PFL_CORES),
                (
                    Target(TACIT_CORES, PFL_CORES, 1 / 1.5),
                    Target(TACIT, PFL),
                    Target(TACIT_CORES, FLOWER),
                    Target(TACIT, PLAIN),
                ),
                repetitions,
            ),
            Match(w3, (PLAIN, TACIT), (Target(TACIT, PLAIN, 1.1),), repetitions),
            Match(
                w3_private,
                (OPACUS, _private(TACIT), PLAIN),
                (Target(TACIT, OPACUS, 1.1), Target(TACIT, PLAIN)),
                repetitions,
            ),
        )
    )


QUICK = plan(2, 1, epsilon_rounds=False)
FULL = plan(4, 3, epsilon_rounds=True)


def measure(chosen: Plan, track: Track, python: Path) -> list[Figure]:
    """Seconds a round, memory and ratios of every match; `python` runs the peers.

    Raises:
        TacitError: a contestant failed, or did not do the same work.
    """
    figures: list[Figure] = []
    for match in chosen.matches:
        with scratch_folder() as folder:
            figures += _match(match, track, python, folder)
    return figures


def _match(match: Match, track: Track, python: Path, folder: Path) -> list[Figure]:
    work = match.work
    with track.measuring(f"{work.name}: dealing out"):
        parameters = deal(work, folder)
    condition = f"{work.title}, {parameters:,} parameters"
    found: dict[str, Samples] = {}
    for turn in range(match.repetitions):
        for contestant in match.in_turn(turn):
            with track.measuring(f"{work.name}: {contestant.title}"):
                samples = run(contestant, folder, python)
            for name, values in samples.items():
                found.setdefault(contestant.key, {}).setdefault(name, []).extend(values)
    dealt = read_dealt(str(folder))
    figures = []
    present = match.in_turn(0)
    for contestant in present:
        figures += _figures(contestant, found[contestant.key], condition)
        figures += _checked(dealt, present[0], contestant, condition)
    for target in match.targets:
        if {target.tacit.key, target.of.key} <= found.keys():
            figures.append(_ratio(target, found, condition))
    return figures


def _figures(contestant: Contestant, samples: Samples, condition: str) -> list[Figure]:
    title = contestant.title
    mib = max(samples[MEMORY]) / 2**20
    return [
        *summarise(f"{title}: {ROUND}", samples["round"], "s", condition),
        median(f"{title}: {FIRST}", samples["first round"], "s", condition),
        median(f"{title}: {START}", samples["start"], "s", condition),
        exact(f"{title}: {PEAK}", mib, "MiB", "most, of all its processes", condition),
    ]


def _ratio(target: Target, found: dict[str, Samples], condition: str) -> Figure:
    ours, theirs = (found[c.key]["round"] for c in (target.tacit, target.of))
    return exact(
        f"round of {target.tacit.title}, over that of {target.of.title}",
        statistics.median(ours) / statistics.median(theirs),
        "x",
        f"ratio of medians of {len(ours)} and {len(theirs)}",
        condition,
        target=target.most,
    )


def _checked(
    dealt: Dealt, reference: Contestant, contestant: Contestant, condition: str
) -> list[Figure]:
    """Hold a contestant's end against the reference's.

    Raises:
        TacitError: it cannot have done the same work.
    """
    if contestant is reference or contestant.end == "other":
        return []
    ours, theirs = (dealt.end(c.key).astype(float) - dealt.start for c in (contestant, reference))
    apart = float(np.linalg.norm(ours - theirs))
    if contestant.end == "private":
        noise, noise_there = _noise_norm(dealt, contestant), _noise_norm(dealt, reference)
        both = noise**2 + noise_there**2
        apart /= math.sqrt(both)
        # Who does less has less noise too, which could make up for the distance it adds.
        learned = float(ours @ ours) - noise**2
        learned_there = float(theirs @ theirs) - noise_there**2
        miss = max(abs(apart - 1), abs(learned - learned_there) / both / 2)
        most, unit = NOISE, "x what their noise explains"
    else:
        apart /= float(np.linalg.norm(theirs))
        most, unit, miss = ROUNDING, "x what was learned", apart
    if not miss <= most:
        raise TacitError(
            f"{contestant.title} and {reference.title} did not do the same work",
            why=f"they end {apart:.3g} {unit} apart ({dealt.work.title})",
            fix="mend the contestant that is wrong; figures of different work mean nothing",
        )
    return [exact(f"{contestant.title}: {APART}", apart, unit, "one run", condition)]


def _noise_norm(dealt: Dealt, contestant: Contestant) -> float:
    """L2 norm of the noise in the parameters at the end, as the plan has it."""
    work = dealt.work
    if dealt.noise_multiplier is None:
        raise ValueError("without privacy there is no noise")
    of_step = dealt.noise_multiplier * work.l2_clip_norm / work.batch
    if contestant.environment == "tacit":
        of_step *= _LATTICE
    steps = work.local_steps * (1 + work.rounds)
    return work.learning_rate * of_step * math.sqrt(steps * len(dealt.start) / work.sites)
