"""The end of a simulation in the terminal: what the encoder is worth and what it cost."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from tacit_common.report import Interval, LocalPrivacy, Report
from tacit_simulations.simulate import SimulationResult

_SITES_SHOWN = 12


def print_summary(result: SimulationResult, folder: Path) -> None:
    """Two tables, the verdicts, and where everything lies."""
    console = Console()
    report = result.report
    console.print()
    if report.evaluation is not None:
        console.print(_accuracy_table(report))
    console.print(_privacy_table(report))
    for verdict in report.verdicts:
        console.print(verdict, soft_wrap=True)
    console.print()
    console.print(f"report   {result.report_html}", soft_wrap=True, highlight=False)
    console.print(f"encoder  {folder / 'encoder'}", soft_wrap=True, highlight=False)


def _accuracy_table(report: Report) -> Table:
    evaluation = report.evaluation
    table = Table(title="Held-out accuracy, 95 % intervals (simulation only, not private)")
    if evaluation is None:
        return table
    table.add_column("features")
    for column in evaluation.columns:
        table.add_column(column, justify="right")
    table.add_column("private ridge probe", justify="right")
    probes = {probe.when: _interval(probe.accuracy) for probe in report.probes}
    charged_rows = {len(evaluation.rows) - 2: "before", len(evaluation.rows) - 1: "after"}
    for number, row in enumerate(evaluation.rows):
        style = "bold" if row.role == "result" else ""
        charged = probes.get(charged_rows.get(number, ""), "")
        table.add_row(row.label, *(_interval(cell) for cell in row.cells), charged, style=style)
    return table


def _privacy_table(report: Report) -> Table:
    privacy = report.privacy
    if not isinstance(privacy, LocalPrivacy):
        table = Table(title="No differential privacy")
        table.add_column("site")
        table.add_column("releases", justify="right")
        for site in report.sites[:_SITES_SHOWN]:
            table.add_row(site.name, str(site.releases))
        return table
    table = Table(title=f"What it cost: ε at δ = {privacy.delta:g} for one {privacy.unit} of a site")
    table.add_column("site")
    table.add_column("ε spent", justify="right")
    table.add_column("cap", justify="right")
    table.add_column("releases", justify="right")
    for site in report.sites[:_SITES_SHOWN]:
        table.add_row(
            site.name,
            f"{site.epsilon_total or 0.0:.3f}",
            f"{privacy.epsilon_target:g}",
            str(site.releases),
        )
    if len(report.sites) > _SITES_SHOWN:
        table.add_row(f"… and {len(report.sites) - _SITES_SHOWN} more", "", "", "")
    table.add_section()
    table.add_row("maximum", f"{privacy.epsilon_spent:.3f}", f"{privacy.epsilon_target:g}", "")
    return table


def _interval(interval: Interval) -> str:
    return f"{interval.value:.1%} [dim]{interval.low:.1%}–{interval.high:.1%}[/dim]"
