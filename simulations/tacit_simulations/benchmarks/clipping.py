"""The clipped sum of one step on six paths, against the same step's plain gradient.

Noise, sampling, reading and views are left out: `local_step` has them. The paths take turns in
one process and their minima are compared; memory is measured in a process for each.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from tacit_client.records import required_image_shape
from tacit_common.model import build_model
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.plugins import PluginTable
from tacit_common.procedural import strokes
from tacit_common.study import Study
from tacit_common.training import seeded_generator, trained_size
from tacit_simulations.benchmarks.clipping_paths import FORMS_ROWS, PATHS, Step
from tacit_simulations.benchmarks.local_step import _seconds
from tacit_simulations.benchmarks.measure import Samples, Track, in_fresh_process
from tacit_simulations.benchmarks.memory import peak_of_this_process
from tacit_simulations.benchmarks.record import Figure, exact, summarise
from tacit_simulations.benchmarks.studies import vit_study
from tacit_simulations.recipes import named_study

_WARM_UP, _MEMORY_STEPS = 2, 2
_MIB = 2**20
_MOST_ENTRIES = 300_000_000
"""Of all per-unit gradients together, 1.1 GiB: up to there paths that hold them are measured."""

_OURS, _PLAIN = "book-keeping", "plain"
_LEAST_GAINS = {"Opacus ghost clipping": 1.6, "Opacus hooks": 3.0, "vmap(grad)": 3.0}
_MOST_MEMORY = 2.0


@dataclass(frozen=True)
class Plan:
    """What to measure: time for every size and batch, memory for every size and the first."""

    sizes: tuple[str, ...]
    batches: tuple[int, ...]
    repetitions: int


FULL = Plan(("digits", "1M", "3M"), (64, 128, 256), 7)
QUICK = Plan(("digits",), (16,), 3)


def measure(plan: Plan, track: Track) -> list[Figure]:
    """Minimal times, peak memory, and ratios to their targets."""
    figures: list[Figure] = []
    for size, batch in product(plan.sizes, plan.batches):
        with track.measuring(f"{size}, batch {batch}, time"):
            times = in_fresh_process(
                "clipping:times", size=size, batch=batch, repetitions=plan.repetitions
            )
        [parameters] = map(int, times.pop("parameters"))
        condition = f"{parameters:,} parameters, batch {batch}, one thread"
        figures += _time_figures(times, parameters, condition)
        if batch == plan.batches[0]:
            memory = {}
            for path in times:
                with track.measuring(f"{size}, batch {batch}, memory, {path}"):
                    found = in_fresh_process("clipping:peak", size=size, batch=batch, path=path)
                    [memory[path]] = found["peak"]
            figures += _memory_figures(memory, condition)
    return figures


def times(size: str, batch: int, repetitions: int) -> Samples:
    """Seconds of each path, which alternate, each on a model of its own."""
    torch.set_num_threads(1)
    steps: dict[str, tuple[Step, Views]] = {}
    for path in PATHS:
        case = case_of(size, batch)
        parameters = trained_size(case.model)
        if path not in FORMS_ROWS or parameters * batch <= _MOST_ENTRIES:
            steps[path] = PATHS[path](*case), case.views
    samples: Samples = {path: [] for path in steps}
    for repetition in range(_WARM_UP + repetitions):
        for path, (step, views) in steps.items():
            took = _seconds(lambda step=step, views=views: step(views))  # type: ignore[misc]
            if repetition >= _WARM_UP:
                samples[path].append(took)
    samples["parameters"] = [parameters]
    return samples


def peak(size: str, batch: int, path: str) -> Samples:
    """Bytes by which steps raise the peak that imports, model and data have set."""
    torch.set_num_threads(1)
    case = case_of(size, batch)
    step = PATHS[path](*case)
    before = peak_of_this_process()
    for _ in range(_MEMORY_STEPS):
        step(case.views)
    return {"peak": [peak_of_this_process() - before]}


class Case(NamedTuple):
    """What one path works on."""

    model: PretrainModel
    objective: Objective
    views: Views


def case_of(size: str, batch: int) -> Case:
    """A new model of a size, and the views of a batch of drawn strokes."""
    study = _study(size)
    model, objective = build_model(study, PluginTable())
    channels, pixels, _ = required_image_shape(study.encoder)
    generator = seeded_generator("benchmark")
    images: Tensor = strokes(batch, image_size=pixels, channels=channels, generator=generator)
    return Case(model, objective, objective.views(images, generator))


def _study(size: str) -> Study:
    if size == "digits":
        return named_study("digits").travelling()
    return vit_study(size, "local", sampling_rate=0.5).travelling()


def _time_figures(times: Samples, parameters: int, condition: str) -> list[Figure]:
    least = {path: min(values) for path, values in times.items()}
    figures: list[Figure] = []
    for path, values in times.items():
        figures += summarise(f"{path}: time", [1e3 * value for value in values], "ms", condition)
    statistic = f"minima of {len(times[_PLAIN])} each"
    ratio = partial(exact, unit="x", statistic=statistic, condition=condition)
    for path, value in least.items():
        if path != _PLAIN:
            target = _most_time(parameters) if path == _OURS else None
            figures.append(ratio(f"{path} over plain: time", value / least[_PLAIN], target=target))
    for path, gain in _LEAST_GAINS.items():
        if path in least:
            name = f"book-keeping over {path}: time"
            figures.append(ratio(name, least[_OURS] / least[path], target=1 / gain))
    return figures


def _most_time(parameters: int) -> float | None:
    """The target, which is set for small models and for large ones."""
    if parameters >= 3_000_000:
        return 1.2
    return 1.5 if parameters < 500_000 else None


def _memory_figures(memory: dict[str, float], condition: str) -> list[Figure]:
    statistic = f"peak of {_MEMORY_STEPS} steps, beyond imports, model and data"
    figures = [
        exact(f"{path}: memory", value / _MIB, "MiB", statistic, condition)
        for path, value in memory.items()
    ]
    if memory[_PLAIN] > 0:
        ratio = memory[_OURS] / memory[_PLAIN]
        name = "book-keeping over plain: memory"
        figures.append(exact(name, ratio, "x", statistic, condition, target=_MOST_MEMORY))
    return figures
