"""What a person or a program sees while a run goes on: live, plain lines, or JSON lines.

All three only watch the run's events; none of them is asked for anything.
"""

import sys
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as ProgressBar,
)
from rich.table import Column, Table

from tacit_common.report import numbers
from tacit_common.study import Study
from tacit_server.run_log import (
    AccountsCollected,
    LoggedEvent,
    Passing,
    ProbeFinished,
    Progress,
    RoundFinished,
    RunFinished,
    RunResumed,
    RunStarted,
    WarmStarted,
)

_SITES_SHOWN = 12


class Display(Protocol):
    """Watches a run; a context manager, so that the terminal is left as it was."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def watch(self, event: LoggedEvent | Passing) -> None:
        """Called for every event and all progress."""
        ...


class _Quiet:
    """The part of a display that needs no setting up."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.stdout.flush()


class PlainDisplay(_Quiet):
    """One line an event, for logs and pipes."""

    def watch(self, event: LoggedEvent | Passing) -> None:
        """Print what happened, with the time of day."""
        if isinstance(event, Passing):
            return
        line = describe(event)
        print(f"{event.at.astimezone():%H:%M:%S}  {line}", flush=True)


class JsonDisplay(_Quiet):
    """One JSON object a line, as in the run's events.jsonl."""

    def watch(self, event: LoggedEvent | Passing) -> None:
        """Print the event itself."""
        if not isinstance(event, Passing):
            print(event.model_dump_json(), flush=True)


class LiveDisplay:
    """A panel that is redrawn in place: stages, sites, loss where it may be shown, ε, time."""

    def __init__(self, study: Study, console: Console) -> None:
        self._study = study
        self._bars = ProgressBar(
            TextColumn("{task.description}", table_column=Column(width=18, no_wrap=True)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(table_column=Column(min_width=9, no_wrap=True)),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(min_width=7)),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._sites: dict[str, int] = {}
        self._rounds_of: dict[str, int] = {}
        self._last_round: RoundFinished | None = None
        self._history: list[str] = []
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def watch(self, event: LoggedEvent | Passing) -> None:
        """Take in what happened; the screen follows by itself."""
        if isinstance(event, Passing):
            if isinstance(event, Progress) and event.stage != "round":
                self._advance(event.label, event.done, event.total, "")
            return
        if isinstance(event, RoundFinished):
            self._last_round = event
            for site in event.answered:
                self._rounds_of[site] = self._rounds_of.get(site, 0) + 1
            total = self._study.federation.rounds
            self._advance("rounds", event.round, total, _loss_note(event))
            if event.failed:
                self._history.append(describe(event))
            return
        if isinstance(event, RunStarted):
            self._sites = event.sites
        self._history.append(describe(event))

    def _advance(self, label: str, done: int, total: int, note: str) -> None:
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total, note=note)
        self._bars.update(self._tasks[label], completed=done, total=total, note=note)

    def _draw(self) -> RenderableType:
        history = "\n".join(f"[dim]·[/dim] {line}" for line in self._history[-6:])
        return Group(history, self._bars, self._site_table())

    def _site_table(self) -> RenderableType:
        if not self._sites or self._last_round is None:
            return ""
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("site")
        table.add_column("declared units", justify="right")
        table.add_column("rounds", justify="right")
        table.add_column("last round")
        shown = list(self._sites.items())[:_SITES_SHOWN]
        for site, declared in shown:
            failed = self._last_round.failed.get(site)
            state = failed or ("answered" if site in self._last_round.answered else "not asked")
            style = "red" if failed else "green"
            table.add_row(
                site, str(declared), str(self._rounds_of.get(site, 0)), f"[{style}]{state}[/]"
            )
        if len(self._sites) > len(shown):
            table.add_row(f"… and {len(self._sites) - len(shown)} more", "", "", "")
        return table


def describe(event: LoggedEvent) -> str:
    """An event as one line of plain text."""
    match event:
        case RunStarted():
            noise = event.noise_multiplier
            terms = "no differential privacy" if noise is None else f"noise multiplier {noise:.3f}"
            absent = "".join(
                f", {site} did not join: {code}" for site, code in event.refused.items()
            )
            return (
                f"{len(event.sites)} sites, {event.rounds} rounds, "
                f"{event.parameters:,} parameters, {terms}{absent}"
            )
        case RunResumed():
            return f"resumed after round {event.after_round}"
        case WarmStarted():
            return f"warm start on public strokes: {event.steps} steps in {event.seconds:.0f} s"
        case RoundFinished():
            failures = "".join(f", {site}: {code}" for site, code in event.failed.items())
            return (
                f"round {event.round}: {len(event.answered)} of {len(event.asked)} sites, "
                f"{_loss_note(event)}, {event.seconds:.1f} s{failures}"
            )
        case ProbeFinished():
            scored = "" if event.accuracy is None else f": {event.accuracy.value:.1%}"
            cost = "not private" if event.epsilon is None else f"ε {event.epsilon:g} a site"
            return f"{event.kind} probe {event.when} the rounds{scored} ({cost})"
        case AccountsCollected():
            missing = "".join(f", none of {site}: {code}" for site, code in event.missing.items())
            return f"accounts of {len(event.accounts)} of {len(event.sites)} sites{missing}"
        case RunFinished():
            return f"finished after {event.rounds} rounds"


def _loss_note(event: RoundFinished) -> str:
    """ε, and the losses that may be shown."""
    parts = [] if event.epsilon is None else [f"ε {numbers.epsilon(event.epsilon)}"]
    parts.append(f"public loss {event.public_loss:.4f}")
    if event.train_loss is not None:
        parts.append(f"training loss {event.train_loss:.4f}")
    return ", ".join(parts)
