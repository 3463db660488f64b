"""Tacit as it always runs: `simulate`, with ledgers, accounting, checkpoints and report."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from tacit_common.model import build_model
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import calibrate
from tacit_common.study import StudyFile
from tacit_common.training import flatten_parameters
from tacit_server.run import RunFolder
from tacit_server.run_log import LoggedEvent, Passing, RoundFinished, RunStarted
from tacit_simulations.benchmarks.peers.clock import RoundTimes, Samples
from tacit_simulations.benchmarks.peers.task import (
    CHANNELS,
    IMAGE_SIZE,
    Work,
    read_dealt,
    write_dealt,
)
from tacit_simulations.datasets import HELD_OUT_SHARE
from tacit_simulations.simulate import check, new_folder, simulate
from tacit_simulations.sites import SimulatedSites

_IMAGES = "images.npy"
_HERE = "tacit_simulations.benchmarks.peers"


def study_of(work: Work, folder: Path, *, workers: int = 1) -> StudyFile:
    """The work as a study; its images lie in `folder`."""
    privacy: dict[str, object] = {"mode": "none", "sampling_rate": work.sampling_rate}
    if work.epsilon is not None:
        privacy |= {
            "mode": "local",
            "unit": "record",
            "epsilon": work.epsilon,
            "delta": work.delta,
            "l2_clip_norm": work.l2_clip_norm,
        }
    simulation: dict[str, object] = {
        "dataset": str(folder / _IMAGES),
        "sites": work.sites,
        "declared_units": work.records,
        "device": "cpu",
        "threads": 1,
        "physical_batch": work.most_drawn,
        "workers": workers,
    }
    images = {"image_size": IMAGE_SIZE, "channels": CHANNELS}
    return StudyFile.model_validate(
        {
            "name": "peers",
            "seed": 0,
            "encoder": {
                "kind": "plugin",
                "name": "perceptron",
                "options": {**images, "hidden": work.hidden},
            },
            "objective": {"kind": "plugin", "name": "fixed_mask"},
            "privacy": privacy,
            "federation": {
                "rounds": 1 + work.rounds,
                "local_steps": work.local_steps,
                "client_lr": work.learning_rate,
            },
            "simulation": simulation,
            "plugins": {
                "perceptron": f"{_HERE}.task:Encoder",
                "fixed_mask": f"{_HERE}.plugins:FixedMask",
            },
        }
    )


def deal(work: Work, folder: Path) -> int:
    """Write what all contestants read: Tacit's start, its shares of the images, its noise.

    Returns the number of parameters.
    """
    pool = round(work.sites * work.records / (1 - HELD_OUT_SHARE))
    shape = (pool, CHANNELS, IMAGE_SIZE, IMAGE_SIZE)
    np.save(folder / _IMAGES, np.random.default_rng(0).random(shape, dtype=np.float32))
    study = study_of(work, folder)
    plan = check(study)
    sites = SimulatedSites(study, plan, folder / "shares")
    sites.prepare()
    shares = [sites.source(index).images.numpy() for index in range(work.sites)]
    start = flatten_parameters(build_model(study.travelling(), PluginTable(study.plugins))[0])
    noise_multiplier = calibrate(study.travelling()).noise_multiplier
    write_dealt(folder, work, np.stack(shares), start, noise_multiplier)
    return len(start)


def rounds(folder: str, name: str, workers: int) -> Samples:
    """A whole simulation; what comes after the last round is not in the figures."""
    dealt = read_dealt(folder)
    study = study_of(dealt.work, dealt.folder, workers=workers)
    torch.set_num_threads(1)
    clock = RoundTimes()

    def watch(event: LoggedEvent | Passing) -> None:
        if isinstance(event, RunStarted):
            clock.begin()
        if isinstance(event, RoundFinished):
            if event.failed:
                raise RuntimeError(f"sites failed in a benchmark: {event.failed}")
            clock.end_round()

    run = new_folder(study, Path(tempfile.mkdtemp(prefix=f"{name}-", dir=dealt.folder)))
    simulate(study, run, watchers=[watch])
    state = RunFolder(run).checkpoints.read_newest(study_digest=study.travelling().digest())
    if state is None:
        raise RuntimeError("the run left no checkpoint")
    dealt.finish(name, state.strategy.parameters)
    return clock.samples
