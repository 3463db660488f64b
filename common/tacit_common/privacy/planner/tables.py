"""`tacit plan` for people: three tables and a sentence for each finding, in 80 columns."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tacit_common.privacy.planner.figures import Alternative, Finding, ModeFigures, PlanFigures
from tacit_common.privacy.planner.numbers import bound, short

_STYLES = {"problem": "bold red", "warning": "yellow", "note": "none"}


def print_plan(figures: PlanFigures, console: Console) -> None:
    """All of it, in the order in which it is read: what was asked, the answer, the reasons."""
    unit = (
        figures.unit
        if figures.records_per_subject is None
        else (f"subject of at most {figures.records_per_subject:,} records")
    )
    proposed = " (proposed)" if figures.delta_proposed else ""
    sites = "1 site" if figures.sites == 1 else f"{figures.sites:,} sites"
    steps = "1 step" if figures.local_steps == 1 else f"{figures.local_steps:,} steps"
    console.print(
        f"\n[bold]Plan[/]: ε = {figures.epsilon:g} at δ = {figures.delta:g}{proposed} for one "
        f"{unit}, over {figures.rounds:,} rounds of {steps}; {sites} with "
        f"{figures.records:,} declared {figures.unit}s each"
    )
    if figures.probe_epsilons:
        noises = ", ".join(f"{sigma:.4g}" for sigma in figures.probe_noise_multipliers)
        console.print(f"Probe releases are part of it; their noise multipliers: {noises}")
    console.print()
    console.print(_findings(figures.findings))
    console.print("\n[bold]Alternatives[/] under mode local; ▶ is recommended")
    console.print(f"[dim]{_legend(figures)}[/dim]")
    console.print(_alternatives(figures))
    if figures.curve:
        console.print("[bold]ε spent[/] on the way, recommended row, probes counted from the start")
        console.print(_curve(figures))
        console.print("[bold]The same terms under each mode[/]")
        console.print(_modes(figures))
        console.print(_notes(figures.modes))
    console.print(f"\n[dim]{figures.heuristic}[/dim]")


def _findings(found: list[Finding]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for finding in found:
        grid.add_row(" •", Text(finding.text, style=_STYLES[finding.kind]))
    return grid


def _notes(modes: list[ModeFigures]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for mode in modes:
        grid.add_row(f" {mode.mode}", f"protects {mode.protects}: {mode.note}")
    return grid


def _alternatives(figures: PlanFigures) -> Table:
    table = _table("", "rounds", "steps", "rate", "batch", "noise σ", "ε", "of best")
    table.add_column(_snr_heading(figures), justify="right", no_wrap=True)
    previous = None
    for row in figures.alternatives:
        if previous is not None and previous != row.rounds:
            table.add_section()
        previous = row.rounds
        table.add_row(*_cells(row, figures), style="bold" if row.recommended else "")
    return table


def _cells(row: Alternative, figures: PlanFigures) -> list[str]:
    cells = [
        "▶" if row.recommended else "",
        f"{row.rounds:,}",
        f"{row.steps:,}",
        f"{row.sampling_rate:.3g}",
        short(row.expected_batch),
    ]
    if row.noise_multiplier is None or row.epsilon is None or row.share_of_best is None:
        return [*cells, "none fits", "", "", ""]
    last = row.run_signal_to_noise if figures.parameters is not None else row.largest_model
    return [
        *cells,
        f"{row.noise_multiplier:.4g}",
        bound(row.epsilon),
        f"{row.share_of_best:.0%}",
        short(last or 0),
    ]


def _legend(figures: PlanFigures) -> str:
    of_best = "of best: share of the signal that this ε could buy at rate 1; "
    if figures.parameters is not None:
        return of_best + "S/N: the run's signal-to-noise, a heuristic (below)"
    return of_best + "most P: parameters at which noise and signal are even (below)"


def _snr_heading(figures: PlanFigures) -> str:
    return "S/N" if figures.parameters is not None else "most P"


def _curve(figures: PlanFigures) -> Table:
    table = _table("rounds", *(f"{point.rounds:,}" for point in figures.curve))
    table.add_row("ε", *(bound(point.epsilon, 3) for point in figures.curve))
    return table


def _modes(figures: PlanFigures) -> Table:
    table = _table("mode", "releases", "rate", "units", "noise σ", "ε")
    if figures.parameters is not None:
        table.add_column("S/N", justify="right", no_wrap=True)
    for mode in figures.modes:
        cells = [
            mode.mode,
            f"{mode.releases:,}",
            f"{mode.sampling_rate:.3g}",
            short(mode.expected_batch),
            *_noise(mode),
        ]
        if figures.parameters is not None:
            cells.append(
                "" if mode.run_signal_to_noise is None else short(mode.run_signal_to_noise)
            )
        table.add_row(*cells, style="" if mode.available else "dim")
    return table


def _noise(mode: ModeFigures) -> tuple[str, str]:
    if mode.mode == "none":
        return "0", "∞"
    if mode.noise_multiplier is None or mode.epsilon is None:
        return "none fits", ""
    return f"{mode.noise_multiplier:.4g}", bound(mode.epsilon)


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
