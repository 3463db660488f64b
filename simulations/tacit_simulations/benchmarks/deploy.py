"""What a deployed round costs beyond local training: a server and sites as processes.

All is done by the commands of `tacit server` and `tacit site` on loopback (see
`federation`), so every part of a round counts: signatures, TLS twice through the gateway,
the SuperLink and its database, ledgers, journals, the mean, the public loss, the checkpoint
and the moments in which each side waits for the other.

A round lasts from the event that ends the one before it to the event that ends it. From
it the time is taken off in which any of the sites trained. The first round is reported
apart: it also builds the models.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tacit_common.study import StudyFile
from tacit_server.run_log import LoggedEvent, RoundFinished, RunStarted
from tacit_simulations.benchmarks.federation import LoopbackFederation
from tacit_simulations.benchmarks.measure import Samples, Track, scratch_folder
from tacit_simulations.benchmarks.record import Figure, exact, summarise
from tacit_simulations.benchmarks.studies import Mode, vit_study

ROUND_TARGET_S = 1.5
"""The most that a round may cost beyond local compute, at 1 M parameters."""

TRAVEL_TARGET_S = 12.0
"""The most that a round may cost beyond local compute, where 100 MB travel both ways."""

_PATIENCE_S = 900.0

UpdateType = Literal["float32", "float16"]


@dataclass(frozen=True)
class Case:
    """One study; `rounds` are those that count, after the first."""

    size: str
    mode: Mode
    rounds: int
    target_s: float
    update_dtype: UpdateType = "float32"

    def study(self, sites: int) -> StudyFile:
        """The study, whose training is short."""
        study = vit_study(
            self.size, self.mode, sampling_rate=0.1, rounds=self.rounds + 1, sites=sites
        )
        changed = {"local_steps": 1, "update_dtype": self.update_dtype}
        federation = study.federation.model_copy(update=changed)
        return study.model_copy(update={"federation": federation, "simulation": None})


@dataclass(frozen=True)
class Plan:
    """What to measure: the studies that a federation of so many sites runs."""

    cases: dict[int, tuple[Case, ...]]


def _small(rounds: int) -> tuple[Case, ...]:
    # In this order: after a release without noise a site has no budget left for one with it.
    return tuple(Case("1M", mode, rounds, ROUND_TARGET_S) for mode in ("local", "none"))


def _large(rounds: int, *update_dtypes: UpdateType) -> tuple[Case, ...]:
    return tuple(Case("25M", "none", rounds, TRAVEL_TARGET_S, dtype) for dtype in update_dtypes)


QUICK = Plan({1: (*_small(4), *_large(2, "float32")), 3: _small(4)})
FULL = Plan({1: (*_small(12), *_large(6, "float32", "float16")), 3: _small(12)})


def measure(plan: Plan, track: Track) -> list[Figure]:
    """What a round costs beyond local compute, in every case."""
    figures: list[Figure] = []
    for sites, cases in plan.cases.items():
        with scratch_folder() as folder, LoopbackFederation(folder, sites) as federation:
            for case in cases:
                what = f"{sites} site{'s' * (sites > 1)}, mode {case.mode}, {case.size}"
                with track.measuring(f"{what}, updates as {case.update_dtype}"):
                    events = federation.run(case.study(sites), within_s=_PATIENCE_S)
                figures += _figures(case, events, federation.work(), what)
    return figures


def round_times(events: list[LoggedEvent], work: list[tuple[float, float]]) -> Samples:
    """Seconds of each round after the first, and of its training, by what the log says."""
    samples: Samples = {"round": [], "local compute": [], "beyond local compute": []}
    ends = [event.at.timestamp() for event in events if isinstance(event, RoundFinished)]
    began = next(event.at.timestamp() for event in events if isinstance(event, RunStarted))
    samples["first round"] = [ends[0] - began]
    for begin, end in pairwise(ends):
        at_work = sum(max(0.0, min(end, b) - max(begin, a)) for a, b in work)
        samples["round"].append(end - begin)
        samples["local compute"].append(at_work)
        samples["beyond local compute"].append(end - begin - at_work)
    return samples


def _figures(
    case: Case, events: list[LoggedEvent], work: list[tuple[float, float]], what: str
) -> list[Figure]:
    parameters = next(event.parameters for event in events if isinstance(event, RunStarted))
    for event in events:
        if isinstance(event, RoundFinished) and event.failed:
            raise RuntimeError(f"sites failed in a benchmark: {event.failed}")
    condition = (
        f"loopback, {what.rpartition(', ')[0]}, {parameters:,} parameters, "
        f"updates as {case.update_dtype}"
    )
    samples = round_times(events, work)
    beyond = samples.pop("beyond local compute")
    figures = summarise("beyond local compute", beyond, "s", condition, target=case.target_s)
    first = samples.pop("first round")[0]
    for name, seconds in samples.items():
        figures += summarise(name, seconds, "s", condition)
    return [*figures, exact("first round", first, "s", "one run", condition)]
