"""What a round costs beyond local training, in both engines.

The sites are those of a simulation, opened, asked and answering through the same code;
only their training is replaced by a constant update, which takes no time. What is left is
the cost of the round: the request's encoding, copies both ways, decoding, the site's
checks, ledger and outbox, the mean, the strategy, the public loss and the checkpoint.

A round lasts from the event that ends the one before it to the event that ends it, so
nothing between two rounds is missed. The first round is reported apart: it also builds
the model, and on Ray it starts the workers.
"""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tacit_client import app as client_app
from tacit_client.ledger import Ledger
from tacit_client.outbox import Outbox
from tacit_client.policy import SitePolicy
from tacit_client.site import Site
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import calibrate
from tacit_common.strategy import ParameterVector
from tacit_common.study import NoPrivacyPlan
from tacit_common.wire import RoundPlan, TrainReply, TrainRequest
from tacit_server import app as server_app
from tacit_server import rounds as server_rounds
from tacit_server.checkpoint import CheckpointStore
from tacit_server.run import Coordinator, RunFolder
from tacit_server.run_log import LoggedEvent, Progress, RoundFinished, RunLog, RunStarted
from tacit_server.strategies import MomentumStrategy
from tacit_simulations import engine as engines
from tacit_simulations.benchmarks.measure import Samples, Stages, Track, in_fresh_process
from tacit_simulations.benchmarks.record import Figure, exact, summarise
from tacit_simulations.benchmarks.studies import Mode, vit_study
from tacit_simulations.engine import RayOptions, run_in_process, run_on_ray
from tacit_simulations.simulate import check
from tacit_simulations.sites import SimulatedSites, training_device

Engine = Literal["in-process", "ray"]

TARGET_MS = 5.0
"""The most that a site and round may cost in the in-process engine at 1 M parameters."""

_SCRATCH = Path("runs")  # where real runs are written, so that a disk sync costs the same
_UPDATE_STDDEV = 1e-4


@dataclass(frozen=True)
class Plan:
    """What to measure; `rounds` are those that count."""

    size: str
    cases: tuple[tuple[Engine, int, Mode], ...]
    rounds: int


QUICK = Plan(
    "1M",
    (
        ("in-process", 5, "local"),
        ("in-process", 50, "local"),
        ("in-process", 500, "local"),
        ("in-process", 5, "none"),
        ("in-process", 50, "none"),
        ("in-process", 500, "none"),
        ("ray", 5, "local"),
        ("ray", 50, "local"),
        ("ray", 5, "none"),
        ("ray", 50, "none"),
    ),
    3,
)
FULL = Plan("1M", (*QUICK.cases, ("ray", 500, "local"), ("ray", 500, "none")), 6)


def measure(plan: Plan, track: Track) -> list[Figure]:
    """Cost per round and per site of every case, with its stages."""
    figures: list[Figure] = []
    for engine, sites, mode in plan.cases:
        what = f"{engine}, {sites} sites, mode {mode}"
        if engine == "ray" and importlib.util.find_spec("ray") is None:
            with track.measuring(f"{what}: left out, Ray is not installed"):
                continue
        with track.measuring(what), _scratch_folder() as folder:
            samples = in_fresh_process(
                "round_overhead:round_times",
                engine=engine,
                sites=sites,
                mode=mode,
                rounds=plan.rounds,
                size=plan.size,
                folder=str(folder),
            )
        figures += _figures(samples, what, sites, in_process=engine == "in-process")
    return figures


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
        clock = _RoundClock(stages)
        coordinator = Coordinator(
            study.travelling(),
            calibrate(study.travelling()),
            RunFolder(Path(folder)),
            PluginTable(),
            device=training_device(plan),
            watchers=[clock.watch],
        )
        _watch_server(stages)
        if engine == "in-process":
            _watch_sites(stages)
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


class _RoundClock:
    """Watches a run and notes how long each round took, and each stage of it."""

    def __init__(self, stages: Stages) -> None:
        self.samples: Samples = {"round": []}
        self._stages = stages
        self._since = time.perf_counter()

    def watch(self, event: LoggedEvent | Progress) -> None:
        """Called by the run for every event."""
        if not isinstance(event, RoundFinished | RunStarted):
            return
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        split = self._stages.take()
        if isinstance(event, RunStarted):
            self.samples["start"] = [seconds]
            return
        if event.failed:
            raise RuntimeError(f"sites failed in a benchmark: {event.failed}")
        if event.round == 1:
            self.samples["first round"] = [seconds]
            return
        self.samples["round"].append(seconds)
        for stage, spent in split.items():
            self.samples.setdefault(f"stage {stage}", []).append(spent)


def _watch_server(stages: Stages) -> None:
    stages.watch("encode the request", server_app, "encode")
    stages.watch("decode a reply", server_app, "_decode")
    stages.watch("exchange", server_app.GridExchange, "ask")  # on Ray: waiting for the sites
    stages.watch("hash of the parameters", server_rounds, "parameters_sha256")
    stages.watch("check of an update", server_rounds, "_usable")
    stages.watch("mean", server_rounds, "_mean_update")
    stages.watch("strategy", MomentumStrategy, "apply")
    stages.watch("ε so far", server_rounds.Federation, "epsilon_after")
    stages.watch("public loss", Coordinator, "_public_loss")
    stages.watch("checkpoint", CheckpointStore, "write")
    stages.watch("event log", RunLog, "publish")


def _watch_sites(stages: Stages) -> None:
    stages.watch("delivery", engines.InProcessGrid, "push_messages", "pull_messages")
    stages.watch("copies", engines, "_copy")
    stages.watch("open a site", SimulatedSites, "open")
    stages.watch("decode the request", client_app, "decode_request")
    stages.watch("encode a reply", client_app, "encode")
    stages.watch("site", Site, "answer")
    stages.watch("identity of the request", RoundPlan, "key")
    stages.watch("legality", Site, "_check_legal")
    stages.watch("policy", SitePolicy, "check")
    stages.watch("ledger", Ledger, "is_reserved", "is_committed", "reserve", "commit", "events")
    stages.watch("outbox", Outbox, "find", "store")
    stages.watch("training (stand-in)", StandInSite, "_train")


def _figures(samples: Samples, what: str, sites: int, *, in_process: bool) -> list[Figure]:
    def ms(name: str) -> list[float]:
        return [1e3 * value for value in samples[name]]

    per_site = "cost per site and round"
    figures = summarise("cost per round", ms("round"), "ms", what)
    figures += summarise(
        per_site,
        [value / sites for value in ms("round")],
        "ms",
        what,
        target=TARGET_MS if in_process else None,
    )
    medians = {
        name.removeprefix("stage "): statistics.median(ms(name)) / sites
        for name in samples
        if name.startswith("stage ")
    }
    for stage, value in sorted(medians.items(), key=lambda item: -item[1]):
        statistic = f"median of {len(samples['round'])}"
        figures.append(exact(f"{per_site}: {stage}", value, "ms", statistic, what))
    figures.append(exact("first round", ms("first round")[0], "ms", "one run", what))
    figures.append(exact("start and meeting the sites", ms("start")[0], "ms", "one run", what))
    return figures


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder beside real runs that is gone afterwards."""
    _SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=_SCRATCH) as folder:
        yield Path(folder)
