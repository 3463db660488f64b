"""`tacit plan --plot`: three panels, as SVG or PNG."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tacit_common.errors import UsageError
from tacit_common.privacy.planner.figures import Alternative, PlanFigures
from tacit_common.privacy.planner.numbers import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")
_INK, _QUIET, _MARK = "#1f4e8c", "#8aa0bd", "#c2561a"


def check_plot_path(path: Path) -> None:
    """Refuse a plot that could not be written, before anything is computed.

    Raises:
        UsageError: the name does not end in .svg or .png, or the folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"a plot cannot be written to '{path.name}'",
            why="its name says neither SVG nor PNG",
            fix="end the name with .svg or .png",
        )
    if not path.parent.is_dir():
        raise UsageError(
            f"there is no folder '{path.parent}'",
            why="the plot would be written into it",
            fix="make the folder, or give another path",
        )


def write_plot(figures: PlanFigures, path: Path) -> None:
    """Draw ε against rounds, noise against batch, and signal against batch.

    Raises:
        UsageError: the path is not fit for a plot, or cannot be written.
    """
    check_plot_path(path)
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    # Text stays text, and the same plan always gives the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tacit", "font.size": 9}):
        figure = Figure(figsize=(11, 3.8))
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.06, right=0.985, bottom=0.13, top=0.84, wspace=0.24)
        _draw_curve(left, figures)
        _draw_noise(middle, figures)
        _draw_signal(right, figures)
        figure.suptitle(
            f"ε = {figures.epsilon:g} at δ = {figures.delta:g}, {figures.sites:,} × "
            f"{figures.records:,} declared {figures.unit}s",
            fontsize=10,
        )
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        try:
            figure.savefig(path, dpi=150, metadata=metadata)
        except OSError as error:
            raise UsageError(
                f"the plot cannot be written to '{path}'",
                why=error.strerror or "the system refused",
                fix="give another path",
            ) from error


def _draw_curve(axes: "Axes", figures: PlanFigures) -> None:
    axes.set(title="budget spent", xlabel="rounds", ylabel="ε (PLD)")
    points = figures.curve
    axes.axhline(figures.epsilon, color=_MARK, linewidth=1, linestyle="--")
    axes.annotate("budget", (0, figures.epsilon), color=_MARK, va="bottom", fontsize=8)
    axes.plot([p.rounds for p in points], [p.epsilon for p in points], color=_INK, marker="o")
    axes.set_ylim(0, figures.epsilon * 1.12)
    axes.set_xlim(left=0)


def _draw_noise(axes: "Axes", figures: PlanFigures) -> None:
    axes.set(title="noise that keeps it", ylabel="noise multiplier σ")
    axes.set_yscale("log")
    _draw_rows(axes, figures, lambda row: row.noise_multiplier)


def _draw_signal(axes: "Axes", figures: PlanFigures) -> None:
    axes.set(title="signal left (heuristic)")
    if figures.parameters is None:
        axes.set(ylabel="share of the signal that ε can buy", ylim=(0, 1.05))
        _draw_rows(axes, figures, lambda row: row.share_of_best)
        return
    axes.set(ylabel="signal-to-noise of the run, ρ", yscale="log")
    axes.axhline(1, color=_MARK, linewidth=1, linestyle="--")
    axes.annotate(
        "below: noise outweighs any signal",
        (0.02, 1),
        xycoords=("axes fraction", "data"),
        color=_MARK,
        va="bottom",
        fontsize=8,
    )
    _draw_rows(axes, figures, lambda row: row.run_signal_to_noise)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.5), max(high, 2.0))


def _draw_rows(
    axes: "Axes", figures: PlanFigures, height: Callable[[Alternative], float | None]
) -> None:
    """One line for each number of rounds; the recommended row is ringed."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415

    rows = [row for row in figures.alternatives if row.noise_multiplier is not None]
    for number, rounds in enumerate(sorted({row.rounds for row in rows})):
        points = [(row.expected_batch, height(row)) for row in rows if row.rounds == rounds]
        axes.plot(
            [x for x, _ in points],
            [y or 0.0 for _, y in points],
            marker="osD^v"[number % 5],
            color=_INK if rounds == figures.rounds else _QUIET,
            linewidth=1,
            label=f"{rounds:,} rounds",
        )
    best = figures.recommended
    if best is not None:
        axes.plot(
            [best.expected_batch],
            [height(best) or 0.0],
            marker="o",
            color=_MARK,
            markersize=10,
            markerfacecolor="none",
            linestyle="none",
            label="recommended",
        )
    if rows:
        axes.legend(frameon=False, fontsize=8)
    axes.set(xscale="log", xlabel="expected batch")
    plain = FuncFormatter(lambda value, _: f"{value:,.4g}")
    axes.xaxis.set_major_locator(FixedLocator(sorted({row.expected_batch for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(plain)
