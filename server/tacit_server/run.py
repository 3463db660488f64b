"""The life of a run: meet the sites, warm start, probe, rounds, probe, export.

Every step ends in a checkpoint, and a run that was killed goes on from the last one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal
from uuid import uuid4

import torch

from tacit_common.encoders import save_encoder
from tacit_common.model import build_model
from tacit_common.objectives.contract import Views
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import PrivacySchedule
from tacit_common.strategy import ParameterVector, StrategyState
from tacit_common.study import Study, WarmStartPlan
from tacit_common.training import flatten_parameters, load_parameters, seeded_generator, views_for
from tacit_server.accounts import collect_accounts
from tacit_server.checkpoint import CheckpointStore, RunState
from tacit_server.cohort import Meeting, Patience, meet_sites
from tacit_server.exchange import Exchange
from tacit_server.metrics import MetricsWriter
from tacit_server.probes import LabeledRecords, run_probe
from tacit_server.public import public_images
from tacit_server.rounds import Federation, run_round
from tacit_server.run_log import (
    AccountsCollected,
    LoggedEvent,
    ProbeFinished,
    RunFinished,
    RunLog,
    RunResumed,
    RunStarted,
    Stage,
    WarmStarted,
    Watcher,
)
from tacit_server.strategies import build_strategy
from tacit_server.warm_start import warm_start

_CPU = torch.device("cpu")
_AT_ONCE = Patience()
_PUBLIC_LOSS_IMAGES = 32  # cheap enough for every round, and always the same ones


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps everything."""

    path: Path
    survive_power_loss: bool = True  # or only that the process is killed

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(
            self.path / "checkpoints", survive_power_loss=self.survive_power_loss
        )

    @property
    def events(self) -> Path:
        """The run's event log."""
        return self.path / "events.jsonl"

    @property
    def encoder(self) -> Path:
        """The exported encoder."""
        return self.path / "encoder"


class Coordinator:
    """Runs one study over the sites of one exchange, in one folder."""

    def __init__(
        self,
        study: Study,
        schedule: PrivacySchedule,
        folder: RunFolder,
        plugins: PluginTable,
        *,
        device: torch.device = _CPU,
        scoring: LabeledRecords | None = None,
        watchers: Sequence[Watcher] = (),
        patience: Patience = _AT_ONCE,
        asks_for_accounts: bool = False,
    ) -> None:
        self._study = study
        self._patience = patience
        self._asks_for_accounts = asks_for_accounts
        self._schedule = schedule
        self._folder = folder
        self._checkpoints = folder.checkpoints
        self._plugins = plugins
        self._scoring = scoring
        self._metrics = MetricsWriter(folder.path)
        self._log = RunLog(folder.events, [self._metrics.watch, *watchers])
        self._model, self._objective = build_model(study, plugins)
        self._model.to(device)
        self._strategy = build_strategy(study.federation.strategy, plugins)

    def run(self, exchange: Exchange) -> RunState:
        """Bring the run to its end, from wherever its folder says it stands.

        Raises:
            QuorumError: too few sites answered; what is done stays, and can be resumed.
            CheckpointError: the folder's checkpoint cannot be used.
        """
        state = self._checkpoints.read_newest(study_digest=self._study.digest())
        if state is not None:
            exchange.heads.merge(state.heads)  # before any site can speak
        meeting = meet_sites(
            exchange,
            self._study,
            run=None if state is None else state.run,
            patience=self._patience,
            heard=self._heard,
        )
        if state is None:
            state = self._begin(exchange, meeting)
        else:
            self._log.mend(state.events)
            state = self._record(exchange, state, RunResumed(after_round=state.round))
        federation = Federation(
            state.run,
            self._study,
            self._schedule,
            meeting.participants,
            exchange,
            self._strategy,
        )
        state = self._probe(federation, state, "before")
        while state.round < self._study.federation.rounds:
            strategy, event = run_round(
                federation,
                state.strategy,
                public_loss=self._public_loss,
                progress=self._progress("round", f"round {state.round + 1}"),
            )
            state = self._record(exchange, state, event, strategy)
        state = self._probe(federation, state, "after")
        is_finished = any(isinstance(event, RunFinished) for event in state.events)
        if not is_finished:  # before the accounts: what sites say of themselves cannot cost it
            self._export(state)
        state = self._accounts(federation, state)
        if not is_finished:
            state = self._record(exchange, state, RunFinished(rounds=state.round))
        self._metrics.close()
        return state

    def _heard(self, meeting: Meeting) -> None:
        self._log.gathering([one.site for one in meeting.participants], meeting.refused)

    def _begin(self, exchange: Exchange, meeting: Meeting) -> RunState:
        """Warm start, and the first checkpoint."""
        run = uuid4().hex
        started = RunStarted(
            run=run,
            study_digest=self._study.digest(),
            rounds=self._study.federation.rounds,
            parameters=len(flatten_parameters(self._model)),
            noise_multiplier=self._schedule.noise_multiplier,
            sites={one.site: one.declared_units for one in meeting.participants},
            refused=meeting.refused,
        )
        events: list[LoggedEvent] = [started]
        self._log.mend(events)
        if self._study.warm_start is not None:
            events.append(self._warm_start(self._study.warm_start))
        parameters = flatten_parameters(self._model)
        state = RunState(
            run=run,
            study_digest=self._study.digest(),
            strategy=self._strategy.init(parameters),
            initial=parameters,
            events=events,
            heads=exchange.heads.heads,
        )
        self._checkpoints.write(state)
        for event in events[1:]:
            self._log.publish(event)
        return state

    def _warm_start(self, plan: WarmStartPlan) -> WarmStarted:
        started = time.monotonic()
        progress = self._progress("warm start", "warm start")
        warm_start(self._model, self._objective, self._study, plan, progress)
        return WarmStarted(
            steps=plan.steps,
            seconds=time.monotonic() - started,
            public_loss=self._public_loss(flatten_parameters(self._model)),
        )

    def _progress(self, stage: Stage, label: str) -> Callable[[int, int], None]:
        return partial(self._log.progress, stage, label)

    def _probe(
        self, federation: Federation, state: RunState, when: Literal["before", "after"]
    ) -> RunState:
        """Run the study's probes for this moment that the checkpoint does not hold yet."""
        done = {
            event.probe
            for event in state.events
            if isinstance(event, ProbeFinished) and event.when == when
        }
        for number, plan in enumerate(self._study.probes):
            if when not in plan.when or number in done:
                continue
            event = run_probe(
                federation,
                self._model,
                state.initial if when == "before" else state.strategy.parameters,
                number=number,
                when=when,
                plugins=self._plugins,
                scoring=self._scoring,
                progress=self._progress("probe", f"{plan.kind} probe {when}"),
            )
            state = self._record(federation.exchange, state, event)
        return state

    def _accounts(self, federation: Federation, state: RunState) -> RunState:
        """Ask the sites what the run cost their data, once, where no ledger is at hand."""
        if not self._asks_for_accounts or any(
            isinstance(event, AccountsCollected) for event in state.events
        ):
            return state
        return self._record(federation.exchange, state, collect_accounts(federation))

    def _record(
        self,
        exchange: Exchange,
        state: RunState,
        event: LoggedEvent,
        strategy: StrategyState | None = None,
    ) -> RunState:
        """Checkpoint what has happened, then tell of it: the log never runs ahead."""
        state = replace(
            state,
            strategy=strategy or state.strategy,
            events=[*state.events, event],
            heads=exchange.heads.heads,
        )
        self._checkpoints.write(state)
        self._log.publish(event)
        return state

    @torch.no_grad()
    def _public_loss(self, parameters: ParameterVector) -> float:
        load_parameters(self._model, parameters)
        return float(self._objective.loss(self._model, self._public_views).mean())

    @cached_property
    def _public_views(self) -> Views:
        images = public_images(
            self._study, _PUBLIC_LOSS_IMAGES, seeded_generator(self._study.seed, "public loss")
        )
        generator = seeded_generator(self._study.seed, "public views")
        return views_for(self._model, self._objective, images, generator)

    def _export(self, state: RunState) -> None:
        load_parameters(self._model, state.strategy.parameters)
        save_encoder(
            self._folder.encoder,
            self._model.encoder,
            self._study.encoder,
            provenance={
                "study": self._study.name,
                "study_digest": state.study_digest,
                "run": state.run,
                "rounds": state.round,
                "privacy": self._study.privacy.statement(),
            },
        )
