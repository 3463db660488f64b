"""The end of a simulation in the terminal: what the encoder is worth and what it cost."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tacit_common.report import Evaluation, Interval, LocalPrivacy, Report, numbers
from tacit_simulations.simulate import SimulationResult

_SITES_SHOWN = 12


def print_summary(result: SimulationResult, folder: Path) -> None:
    """Two tables, the verdicts, and where everything lies."""
    console = Console(highlight=False)
    report = result.report
    if report.evaluation is not None:
        console.print("\n[bold]How good the features are[/]: held-out accuracy, 95 % intervals")
        console.print(_accuracy_table(report.evaluation, report))
    privacy = report.privacy
    if isinstance(privacy, LocalPrivacy):
        console.print(
            f"\n[bold]What it cost[/]: ε at δ = {privacy.delta:g} for one {privacy.unit} of a site"
        )
        console.print(_cost_table(privacy, report))
    else:
        console.print(f"\n[bold]No differential privacy[/]: {privacy.plain_statement}\n")
    for verdict in report.verdicts:
        console.print(verdict)
    console.print()
    console.print(f"report   {result.report_html}", soft_wrap=True)
    console.print(f"encoder  {folder / 'encoder'}", soft_wrap=True)


def _accuracy_table(evaluation: Evaluation, report: Report) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("features", no_wrap=True)
    for column in evaluation.columns:
        table.add_column(column, justify="right", no_wrap=True)
    name = "DP probe" if isinstance(report.privacy, LocalPrivacy) else "probe"
    table.add_column(name, justify="right", no_wrap=True)
    # Only two encoders were ever probed at the sites: the one before and the one after.
    probes = {
        probe.when: _interval(probe.accuracy)
        for probe in report.probes
        if probe.accuracy is not None
    }
    *others, start, result = evaluation.rows
    charged = [*("" for _ in others), probes.get("before", ""), probes.get("after", "")]
    for row, probe in zip([*others, start, result], charged, strict=True):
        style = "bold" if row.role == "result" else ""
        table.add_row(row.label, *(_interval(cell) for cell in row.cells), probe, style=style)
    return table


def _cost_table(privacy: LocalPrivacy, report: Report) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("site")
    table.add_column("ε spent", justify="right")
    table.add_column("cap", justify="right")
    table.add_column("releases", justify="right")
    for site in report.sites[:_SITES_SHOWN]:
        cap = "none" if site.epsilon_cap is None else f"{site.epsilon_cap:g}"
        table.add_row(
            site.name, numbers.epsilon(site.epsilon_total or 0.0), cap, str(site.releases)
        )
    if len(report.sites) > _SITES_SHOWN:
        table.add_row(f"… and {len(report.sites) - _SITES_SHOWN} more", "", "", "")
    table.add_section()
    table.add_row("maximum", numbers.epsilon(privacy.epsilon_spent), "", "")
    return table


def _interval(interval: Interval) -> str:
    return f"{interval.value:.1%}\n[dim]{100 * interval.low:.1f} to {100 * interval.high:.1f}[/dim]"
