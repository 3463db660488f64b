"""`ServerStatus` as a terminal shows it."""

import time
from collections.abc import Callable
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tacit_common.report import numbers
from tacit_server.deployment.status import RunStatus, ServerStatus, SiteStatus, in_words, is_refusal

_STAGE_STYLE = {"finished": "green", "failed": "red", "stopped": "yellow"}
_RUNS_SHOWN = 10


def view(status: ServerStatus, only: str | None = None) -> RenderableType:
    """Sites, then runs, the newest last; of one run, if it is named, everything."""
    runs = [run for run in status.runs if only in (None, run.name)]
    parts: list[RenderableType] = []
    if not status.superlink:
        parts.append(Text("the server is not running: tacit server run DIR", style="yellow"))
    parts.append(_sites(status.sites, status.at))
    if len(runs) > _RUNS_SHOWN:
        parts.append(Text(f"… {len(runs) - _RUNS_SHOWN} older runs", style="dim"))
    parts.extend(_run(run) for run in runs[-_RUNS_SHOWN:])
    if not runs:
        parts.append(Text("no run yet: tacit server submit DIR STUDY.toml", style="dim"))
    return Group(*parts)


def _sites(sites: tuple[SiteStatus, ...], now: datetime) -> RenderableType:
    if not sites:
        return Text("no site yet: tacit server enroll DIR NAME.site.json", style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("site")
    table.add_column("connection")
    for site in sites:
        table.add_row(site.site, _connection(site, now))
    return table


def _connection(site: SiteStatus, now: datetime) -> Text:
    if site.online is None:
        return Text("unknown", style="dim")
    if site.last_heartbeat is None:
        return Text("never seen", style="yellow")
    silent_s = max((now - site.last_heartbeat).total_seconds(), 0)
    if site.online:
        return Text(f"connected, last heartbeat {silent_s:.0f} s ago", style="green")
    return Text(f"away, last heartbeat {silent_s / 60:.0f} min ago", style="red")


def _run(run: RunStatus) -> RenderableType:
    style = _STAGE_STYLE.get(run.stage, "cyan")
    head = Text.assemble("\n", (run.name, "bold"), "  ", (run.stage, style))
    lines: list[RenderableType] = [head]
    if run.stage == "gathering":
        lines.append(Text(f"  {len(run.joined)} of {run.sites_wanted} sites have joined"))
    if run.rounds is not None:
        cost = (
            ""
            if run.epsilon is None
            else f", ε {numbers.epsilon(run.epsilon)} a site by the study's plan"
        )
        quorum = f", quorum {run.quorum} of {len(run.joined)} sites" if run.joined else ""
        lines.append(Text(f"  {run.rounds_done} of {run.rounds} rounds{quorum}{cost}"))
    if run.stage == "running" and run.doing:
        lines.append(Text(f"  now: {run.doing} ({run.done} of {run.total})"))  # sites, or steps
    if run.joined:
        lines.append(Text(f"  sites: {', '.join(run.joined)}", style="dim"))
    for site, spent in run.accounts.items():
        if spent.epsilon is not None:
            of = "" if spent.cap is None else f" of {numbers.epsilon(spent.cap)}"
            told = f"  {site} says that ε {numbers.epsilon(spent.epsilon)}{of} is spent there"
            lines.append(Text(told, style="dim"))
    for site, code in run.refused.items():
        did = "refused" if is_refusal(code) else "gave nothing usable"
        lines.append(Text(f"  site {site} {did} ({code}): {in_words(code)}", style="yellow"))
    if run.trouble is not None:
        trouble = run.trouble
        lines.append(
            Text(f"  {trouble.what}\n    why: {trouble.why}\n    fix: {trouble.fix}", "red")
        )
    return Group(*lines)


def watch_live(look: Callable[[], ServerStatus], only: str | None, console: Console) -> None:
    """Draw anew each second, until the run that is watched, or all of them, are over."""
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while True:
            status = look()
            live.update(view(status, only))
            runs = [run for run in status.runs if only in (None, run.name)]
            if all(run.stage in _STAGE_STYLE for run in runs):
                return
            time.sleep(1.0)
