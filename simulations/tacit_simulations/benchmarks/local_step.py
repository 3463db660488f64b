"""One local optimiser step with differential privacy against the same step without.

A step is what a site does between two parameter vectors: sample, read, views, gradient
(per unit, clipped, summed and noised; or plain), optimiser. The sampling rate is 1, so
that every sample is exactly the expected batch and minima compare like with like.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tacit_client import site as client_site
from tacit_client.data import LabeledArraySource
from tacit_client.pretrain import StepGradient
from tacit_client.resident import ResidentModel
from tacit_common.messages import RoundPlan, TrainReply, TrainRequest, parameters_sha256
from tacit_common.model import build_model
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import calibrate
from tacit_common.procedural import strokes
from tacit_common.strategy import ParameterVector
from tacit_common.study import FederationPlan, Study
from tacit_common.training import flatten_parameters, seeded_generator, trained_parameters
from tacit_simulations.benchmarks.measure import (
    Samples,
    Stages,
    Track,
    in_fresh_process,
    scratch_folder,
)
from tacit_simulations.benchmarks.memory import peak_of_this_process
from tacit_simulations.benchmarks.record import Figure, exact, median, summarise
from tacit_simulations.benchmarks.round_clock import STAGE
from tacit_simulations.benchmarks.stages import TRAINING, watch_all
from tacit_simulations.benchmarks.studies import CHANNELS, IMAGE_SIZE, SIZES, Mode, vit_study
from tacit_simulations.simulate import check
from tacit_simulations.sites import SimulatedSites

_WARM_UP = 3  # steps before the first that counts
_MEMORY_STEPS = 3
_MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    sizes: tuple[str, ...]
    batches: tuple[int, ...]
    repetitions: int


FULL = Plan(SIZES, (64, 128), 12)
QUICK = Plan(SIZES[:2], (64,), 8)


def measure(plan: Plan, track: Track) -> list[Figure]:
    """Times, stages and peak memory of every size and batch."""
    figures: list[Figure] = []
    for size in plan.sizes:
        for batch in plan.batches:
            with (
                track.measuring(f"{size} parameters, batch {batch}, time"),
                scratch_folder() as folder,
            ):
                times = in_fresh_process(
                    "local_step:step_times",
                    size=size,
                    batch=batch,
                    repetitions=plan.repetitions,
                    folder=str(folder),
                )
            parameters = int(times.pop("parameters")[0])
            condition = f"{parameters:,} parameters, batch {batch}, one thread"
            figures += _time_figures(times, condition)
            memory = {}
            for mode in ("local", "none"):
                with (
                    track.measuring(f"{size} parameters, batch {batch}, memory, mode {mode}"),
                    scratch_folder() as folder,
                ):
                    found = in_fresh_process(
                        "local_step:step_memory",
                        size=size,
                        batch=batch,
                        mode=mode,
                        folder=str(folder),
                    )
                memory[mode] = found["peak"][0]
            figures += _memory_figures(memory["local"], memory["none"], condition)
    return figures


def step_times(size: str, batch: int, repetitions: int, folder: str) -> Samples:
    """Seconds of a step of both kinds, which alternate, and of the stages of the private one."""
    torch.set_num_threads(1)
    private, parameters = _step(size, batch, "local", Path(folder))
    plain, _ = _step(size, batch, "none", Path(folder))
    samples: Samples = {"DP": [], "without DP": [], "parameters": [parameters]}
    with Stages() as stages:
        watch_all(stages, [TRAINING])
        for repetition in range(_WARM_UP + repetitions):
            stages.take()
            took_private = _seconds(private)
            split = stages.take()
            took_plain = _seconds(plain)
            if repetition < _WARM_UP:
                continue
            samples["DP"].append(took_private)
            samples["without DP"].append(took_plain)
            for stage, seconds in split.items():
                samples.setdefault(f"{STAGE}{stage}", []).append(seconds)
    return samples


def step_memory(size: str, batch: int, mode: Mode, folder: str) -> Samples:
    """Bytes by which steps raise the peak that imports, model and data have set."""
    torch.set_num_threads(1)
    step, _ = _step(size, batch, mode, Path(folder))
    before = peak_of_this_process()
    for _ in range(_MEMORY_STEPS):
        step()
    return {"peak": [peak_of_this_process() - before]}


def _step(size: str, batch: int, mode: Mode, folder: Path) -> tuple[Callable[[], None], int]:
    """One step as a site takes it, with a model of its own, and the parameter count.

    The site itself sets the step up: it is asked for a round, and where it would begin to
    train, what it would train with is kept instead.
    """
    study = vit_study(size, mode, sampling_rate=1.0)
    sites = SimulatedSites(study, check(study), folder / mode)
    sites.prepare()
    images = strokes(
        batch, image_size=IMAGE_SIZE, channels=CHANNELS, generator=seeded_generator("benchmark")
    )
    source = LabeledArraySource(images, np.zeros(batch, dtype=np.int64))
    site = replace(sites.open(0), source=source, declared_units=batch)
    kept: list[tuple[ResidentModel, StepGradient]] = []

    def keep(
        resident: ResidentModel,
        parameters: ParameterVector,
        federation: FederationPlan,  # noqa: ARG001 - the signature of local_update
        gradient: StepGradient,
    ) -> TrainReply:
        kept.append((resident, gradient))
        return TrainReply(np.zeros_like(parameters))

    names = vars(client_site)
    local_update, names["local_update"] = names["local_update"], keep
    try:
        site.answer(_request(study.travelling()))
    finally:
        names["local_update"] = local_update
        sites.close()  # a step has no use for the ledger
    [(resident, gradient)] = kept
    parameters = [p for _, p in trained_parameters(resident.model)]
    optimizer = torch.optim.SGD(parameters, lr=study.federation.client_lr)

    def step() -> None:
        gradient.fill()
        optimizer.step()

    return step, sum(p.numel() for p in parameters)


def _request(study: Study) -> TrainRequest:
    parameters = flatten_parameters(build_model(study, PluginTable())[0])
    plan = RoundPlan(
        run="benchmark",
        round=1,
        study=study,
        noise_multiplier=calibrate(study).noise_multiplier,
        parameters_sha256=parameters_sha256(parameters),
    )
    return TrainRequest(plan, parameters)


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _time_figures(times: Samples, condition: str) -> list[Figure]:
    ms = {name: [1e3 * value for value in values] for name, values in times.items()}
    figures = summarise("step with DP", ms["DP"], "ms", condition)
    figures += summarise("step without DP", ms["without DP"], "ms", condition)
    ratios = [p / q for p, q in zip(ms["DP"], ms["without DP"], strict=True)]
    figures.append(median("time with DP over without, step by step", ratios, "x", condition))
    for name, values in ms.items():
        if name.startswith(STAGE):
            stage = name.removeprefix(STAGE)
            figures.append(median(f"step with DP: {stage}", values, "ms", condition))
    return figures


def _memory_figures(private: float, plain: float, condition: str) -> list[Figure]:
    statistic = f"peak of {_MEMORY_STEPS} steps, beyond imports, model and data"
    figures = [
        exact("memory with DP", private / _MIB, "MiB", statistic, condition),
        exact("memory without DP", plain / _MIB, "MiB", statistic, condition),
    ]
    if plain > 0:
        ratio = private / plain
        figures.append(exact("memory with DP over without", ratio, "x", statistic, condition))
    return figures
