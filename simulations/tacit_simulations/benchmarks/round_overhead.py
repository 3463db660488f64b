"""What a round costs beyond local training, in both engines.

The sites are those of a simulation, opened, asked and answering through the same code;
only their training is replaced by a constant update, which takes no time. What is left is
the cost of the round: the request's encoding, copies both ways, decoding, the site's
checks, ledger and outbox, the mean, the strategy, the public loss and the checkpoint.

A round lasts from the event that ends the one before it to the event that ends it, so
nothing between two rounds is missed. The first round is reported apart: it also builds
the model. In mode `local` a site writes its answer and two ledger rows durably, so what
the disk takes for such writes is reported first.
"""

import importlib.util
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from tacit_client.site import Site
from tacit_common.files import write_atomically
from tacit_common.messages import TrainReply, TrainRequest
from tacit_common.model import build_model
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import calibrate
from tacit_common.strategy import ParameterVector
from tacit_common.study import NoPrivacyPlan
from tacit_common.training import flatten_parameters
from tacit_server.run import Coordinator, RunFolder
from tacit_simulations.benchmarks.measure import (
    Samples,
    Stages,
    Track,
    in_fresh_process,
    scratch_folder,
)
from tacit_simulations.benchmarks.record import Figure, exact, median, summarise
from tacit_simulations.benchmarks.round_clock import FIRST, ROUND, STAGE, START, RoundClock
from tacit_simulations.benchmarks.stages import ONCE_A_ROUND, SERVER, SITE, Table, watch_all
from tacit_simulations.benchmarks.studies import Mode, vit_study
from tacit_simulations.engine import RayOptions, run_in_process, run_on_ray
from tacit_simulations.simulate import check
from tacit_simulations.sites import SimulatedSites, training_device

Engine = Literal["in-process", "ray"]

TARGET_MS = 5.0
"""The most that a site and round may cost in the in-process engine at 1 M parameters."""

_UPDATE_STDDEV = 1e-4
_DISK_WRITES = 20

_STAND_IN: Table = {"training (stand-in)": (f"{__name__}:StandInSite._train",)}


@dataclass(frozen=True)
class Case:
    """One run; `rounds` are those that count, after the first."""

    engine: Engine
    sites: int
    mode: Mode
    rounds: int

    @property
    def condition(self) -> str:
        """What its figures hold for."""
        return f"{self.engine}, {self.sites} sites, mode {self.mode}"


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    size: str
    cases: tuple[Case, ...]


def _cases(engine: Engine, rounds_of: dict[int, int]) -> tuple[Case, ...]:
    return tuple(
        Case(engine, sites, mode, rounds)
        for sites, rounds in rounds_of.items()
        for mode in get_args(Mode)
    )


QUICK = Plan("1M", (*_cases("in-process", {5: 3, 50: 3, 500: 2}), *_cases("ray", {5: 3, 50: 2})))
FULL = Plan(
    "1M",
    (
        *_cases("in-process", {5: 20, 50: 8, 500: 3}),
        *_cases("ray", {5: 10, 50: 5, 500: 2}),
    ),
)


def measure(plan: Plan, track: Track) -> list[Figure]:
    """Cost per round and per site of every case, with its stages."""
    with track.measuring("the disk"), scratch_folder() as folder:
        disk = in_fresh_process("round_overhead:disk_times", size=plan.size, folder=str(folder))
    parameters = int(disk.pop("parameters")[0])
    figures = []
    for what, seconds in disk.items():
        figures += summarise("disk: durable write", [1e3 * s for s in seconds], "ms", what)
    for case in plan.cases:
        if case.engine == "ray" and importlib.util.find_spec("ray") is None:
            with track.measuring(f"{case.condition}: left out, Ray is not installed"):
                continue
        with track.measuring(case.condition), scratch_folder() as folder:
            samples = in_fresh_process(
                "round_overhead:round_times",
                engine=case.engine,
                sites=case.sites,
                mode=case.mode,
                rounds=case.rounds,
                size=plan.size,
                folder=str(folder),
            )
        figures += _figures(samples, case, f"{case.condition}, {parameters:,} parameters")
    return figures


def disk_times(size: str, folder: str) -> Samples:
    """Seconds of what a site does to the disk in a round: the floor of mode `local`."""
    study = vit_study(size, "none", sampling_rate=1.0).travelling()
    update = flatten_parameters(build_model(study, PluginTable())[0])
    contents = {"4 KiB": bytes(4096), "one update": update.tobytes()}
    samples: Samples = {"parameters": [len(update)]}
    for what, content in contents.items():
        for _ in range(_DISK_WRITES):
            started = time.perf_counter()
            write_atomically(Path(folder) / "written", content)
            samples.setdefault(what, []).append(time.perf_counter() - started)
    return samples


def round_times(
    engine: Engine, sites: int, mode: Mode, rounds: int, size: str, folder: str
) -> Samples:
    """Seconds of every round and of its stages; also of the first round and of the start."""
    study = vit_study(size, mode, sampling_rate=0.1, rounds=rounds + 1, sites=sites)
    plan = check(study)
    torch.set_num_threads(plan.threads)
    simulated = StandInSites(SimulatedSites(study, plan, Path(folder)))
    simulated.sites.prepare()
    with Stages() as stages:
        clock = RoundClock(stages)
        coordinator = Coordinator(
            study.travelling(),
            calibrate(study.travelling()),
            RunFolder(Path(folder), survive_power_loss=False),
            PluginTable(),
            device=training_device(plan),
            watchers=[clock.watch],
        )
        watch_all(stages, [SERVER])
        if engine == "in-process":
            watch_all(stages, [SITE, _STAND_IN])
            run_in_process(coordinator.run, simulated.open, plan.sites)
        else:
            run_on_ray(coordinator.run, simulated.open, plan.sites, RayOptions())
    simulated.sites.close()
    return clock.samples


class StandInSite(Site):
    """A site whose training takes no time: it answers each request with the same update."""

    def _train(self, request: TrainRequest) -> TrainReply:
        shown = isinstance(request.plan.study.privacy, NoPrivacyPlan)
        return TrainReply(_update(len(request.parameters)), 0.0 if shown else None)


@dataclass(frozen=True)
class StandInSites:
    """Opens the sites of a simulation as stand-ins, in whichever process they are needed."""

    sites: SimulatedSites

    def open(self, index: int) -> Site:
        """The stand-in for the site with this number."""
        return StandInSite(**vars(self.sites.open(index)))


@lru_cache(maxsize=1)
def _update(size: int) -> ParameterVector:
    values = np.random.default_rng(0).normal(scale=_UPDATE_STDDEV, size=size)
    update: ParameterVector = values.astype(np.float32)
    return update


def _figures(samples: Samples, case: Case, condition: str) -> list[Figure]:
    def ms(name: str, share: int = 1) -> list[float]:
        return [1e3 * value / share for value in samples[name]]

    def of_stage(name: str) -> Figure:
        stage = name.removeprefix(STAGE)
        if stage in ONCE_A_ROUND:
            return median(f"{whole}: {stage}", ms(name), "ms", condition)
        return median(f"{per_site}: {stage}", ms(name, case.sites), "ms", condition)

    whole, per_site = "cost per round", "cost per site and round"
    in_process = case.engine == "in-process"
    target = TARGET_MS if in_process else None
    figures = summarise(whole, ms(ROUND), "ms", condition)
    figures += summarise(per_site, ms(ROUND, case.sites), "ms", condition, target=target)
    stages = [name for name in samples if name.startswith(STAGE)]
    if in_process:  # on Ray the sites' stages are not seen from here
        once = [ms(name) for name in stages if name.removeprefix(STAGE) in ONCE_A_ROUND]
        fixed = [sum(parts) for parts in zip(*once, strict=True)]
        growing = [(r - f) / case.sites for r, f in zip(ms(ROUND), fixed, strict=True)]
        figures += summarise(f"{whole}: once, whatever the sites", fixed, "ms", condition)
        figures += summarise(f"{per_site}: beyond what is done once", growing, "ms", condition)
    # What is done once a round first, and within both the longest first.
    longest = sorted(map(of_stage, stages), key=lambda figure: -figure.value)
    figures += sorted(longest, key=lambda figure: figure.name.startswith(per_site))
    figures.append(exact("first round", ms(FIRST)[0], "ms", "one run", condition))
    figures.append(exact("start and meeting the sites", ms(START)[0], "ms", "one run", condition))
    return figures
