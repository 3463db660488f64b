"""Where the time of a round goes, from the request to the checkpoint.

Whole simulations, in one process, with a stopwatch around the functions that `stages` names;
the production code holds none. Time in a stage within another counts once, in the inner one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tacit_common.study import NoPrivacyPlan, StudyFile
from tacit_simulations.benchmarks.measure import (
    Samples,
    Stages,
    Track,
    in_fresh_process,
    scratch_folder,
)
from tacit_simulations.benchmarks.record import Figure, median
from tacit_simulations.benchmarks.round_clock import ROUND, STAGE, RoundClock
from tacit_simulations.benchmarks.stages import SERVER, SITE, TRAINING, watch_all
from tacit_simulations.benchmarks.studies import SIZES, Mode, vit_study
from tacit_simulations.recipes import named_study
from tacit_simulations.simulate import new_folder, simulate

WHOLE = "a round"
_SITES = 5
_EXPECTED_BATCH = 48  # of 400 strokes a site: with hardly a Poisson batch above 64, one pass


@dataclass(frozen=True)
class Plan:
    """What to measure; "digits" is the recipe."""

    sizes: tuple[str, ...]
    rounds: int


FULL = Plan(("digits", *SIZES[1:]), 7)
QUICK = Plan(("digits",), 2)


def measure(plan: Plan, track: Track) -> list[Figure]:
    """Milliseconds a round of every stage, with privacy and without."""
    figures = []
    for size in plan.sizes:
        for mode in get_args(Mode):
            with track.measuring(f"{size}, mode {mode}"), scratch_folder() as folder:
                samples = in_fresh_process(
                    "profile:round_stages",
                    size=size,
                    mode=mode,
                    rounds=plan.rounds,
                    folder=str(folder),
                )
            figures += _figures(samples, size, mode)
    return figures


def round_stages(size: str, mode: Mode, rounds: int, folder: str) -> Samples:
    """Seconds of each round after the first, and of each of its stages."""
    study = _study(size, mode, rounds + 1)
    with Stages() as stages:
        watch_all(stages, [SERVER, SITE, TRAINING])
        clock = RoundClock(stages)
        # One worker is this process, in which alone stages are seen.
        out = new_folder(study, Path(folder) / "run")
        simulate(study, out, workers=1, watchers=[clock.watch])
    return clock.samples


def _study(size: str, mode: Mode, rounds: int) -> StudyFile:
    if size != "digits":
        return vit_study(
            size, mode, sampling_rate=_EXPECTED_BATCH / 400, rounds=rounds, sites=_SITES
        )
    study = named_study(
        "digits", [f"federation.rounds={rounds}", "federation.client_lr=0.01", "probes=[]"]
    ).model_copy(update={"warm_start": None})
    if mode == "local":
        return study
    plain = NoPrivacyPlan(mode="none", sampling_rate=study.privacy.sampling_rate)
    return study.model_copy(update={"privacy": plain})


def _figures(samples: Samples, size: str, mode: Mode) -> list[Figure]:
    parameters, steps = int(samples["parameters"][0]), 2 if size == "digits" else 4
    model = (
        "recipe digits, expected batch 144"
        if size == "digits"
        else "ViT-MAE on 32 × 32 × 3, expected batch 48"
    )
    condition = f"{model}, {parameters:,} parameters, mode {mode}, 5 sites, {steps} steps"
    series = f"{size}, {mode}"
    stages = {
        name.removeprefix(STAGE): [1e3 * seconds for seconds in values]
        for name, values in samples.items()
        if name.startswith(STAGE)
    }
    whole = [1e3 * seconds for seconds in samples[ROUND]]
    found = [median(WHOLE, whole, "ms", condition)]
    found += [median(stage, values, "ms", condition) for stage, values in stages.items()]
    return [figure.model_copy(update={"series": series}) for figure in found]
