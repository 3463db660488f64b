"""docs/performance.md, its pictures, and what the README quotes: built from the result files.

Nothing on the page is typed by hand but words, so a new measurement is on it as soon as
`make docs` has run, and a test fails until it has.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tacit_simulations.benchmarks import scaling
from tacit_simulations.benchmarks.peers import render
from tacit_simulations.benchmarks.plots import Panel, Series, picture
from tacit_simulations.benchmarks.profile import WHOLE
from tacit_simulations.benchmarks.reasons import REASONS
from tacit_simulations.benchmarks.record import Figure, Record
from tacit_simulations.benchmarks.round_clock import END, START

RESULTS = Path(__file__).parent / "results"

_OURS, _OVER_PLAIN = "book-keeping", " over plain: time"

_MODES = {"local": "local differential privacy", "none": "without privacy"}
_CURVES = {"sites": "registered sites", "parameters": "parameters", "records": "records a site"}


def read_results(folder: Path = RESULTS) -> dict[str, Record]:
    """Every result file, by the name of its benchmark."""
    files = sorted(folder.glob("*.json"))
    records = [Record.model_validate_json(path.read_bytes()) for path in files]
    return {record.benchmark: record for record in records}


# --- the page --------------------------------------------------------------------------


def page(results: dict[str, Record]) -> str:
    """docs/performance.md."""
    parts = [_INTRODUCTION, *_targets(results)]
    for name, (title, words, body) in _SECTIONS.items():
        if name in results:
            parts += [f"## {title}\n", words, _conditions(results[name]), *body(results[name])]
    return "\n".join(parts)


_INTRODUCTION = """# How fast

Every figure here is read from `simulations/tacit_simulations/benchmarks/results`, where each
file holds what one command measured, and on what. `make bench` measures everything again but
the comparison with others, which is `make bench-peers`, and `make docs` writes this page from it.
A command with `--quick` had fewer sizes and repetitions. What is measured runs in fresh processes,
with one thread in each unless it says otherwise; start-up runs as a user's would.

Everything that privacy stands on is switched on: ledgers are written and signed, noise comes
from the AES-256 generator, sums are in float64, and every round ends in a checkpoint. Simulated
sites and their checkpoints survive `kill -9`, but not a power cut; a deployment flushes both to
the disk, and so does a simulation whose ledgers outlive it (`simulation.sites_dir`).
"""


def _targets(results: dict[str, Record]) -> Iterator[str]:
    """What was aimed at, and what came of it."""
    yield "## Targets\n"
    yield "| what | condition | target | measured | met |\n|---|---|---:|---:|---|"
    missed: list[str] = []
    for name, record in results.items():
        for figure in record.figures:
            if figure.target is None:
                continue
            target, value = (_number(v, figure.unit) for v in (figure.target, figure.value))
            met = "yes" if figure.met else "no"
            yield f"| {figure.name} | {figure.condition} | {target} | {value} | {met} |"
            if not figure.met:
                missed.append(f"- {figure.name}: {reason_for(name, figure)}")
    if missed:
        yield "\nWhat was missed, why, and the next idea:\n"
        yield from dict.fromkeys(missed)
    yield ""


def reason_for(benchmark: str, figure: Figure) -> str:
    """Why a target is missed.

    Raises:
        LookupError: nobody has said it.
    """
    try:
        return REASONS[benchmark, figure.name]
    except KeyError:
        raise LookupError(
            f"{benchmark}: '{figure.name}' misses its target ({figure.condition}): measure why, "
            "and write it in benchmarks/reasons.py"
        ) from None


def _conditions(record: Record) -> str:
    versions = ", ".join(f"{name} {record.versions[name]}" for name in ("python", "torch", "flwr"))
    return (
        f"`{record.command}`, {record.date:%-d %B %Y}, on {record.machine.in_words()}; "
        f"{versions}; load average before: {record.load_before:.2f}.\n"
    )


def _everything(record: Record) -> Iterator[str]:
    """One row a figure, in the order in which they were measured."""
    rows: dict[tuple[str, str], list[Figure]] = {}
    for figure in record.figures:
        rows.setdefault((figure.condition, figure.name), []).append(figure)
    yield "| | | minimum | median, or only |\n|---|---|---:|---:|"
    above = ""
    for (condition, name), figures in rows.items():
        shown = condition if condition != above else ""
        yield f"| {shown} | {name} | {_minimum(figures)} | {_other(figures)} |"
        above = condition
    yield ""


def _gradients(record: Record) -> Iterator[str]:
    """One row a size and batch: the ordinary gradient, and each way to clip over it."""
    ways = [f.name.partition(" over ")[0] for f in record.figures if f.name.endswith(_OVER_PLAIN)]
    columns = list(dict.fromkeys(ways))
    yield "Minima of the turns. What a row lacks takes more memory or time than was spent on it.\n"
    yield f"| | ordinary gradient | {' | '.join(columns)} | memory of {_OURS} over ordinary |"
    yield "|---|---:|" + "---:|" * (len(columns) + 1)
    for condition in dict.fromkeys(figure.condition for figure in record.figures):
        found = {
            figure.name: _number(figure.value, figure.unit)
            for figure in record.figures
            if figure.condition == condition and not figure.statistic.startswith("median")
        }
        names = ["plain: time", *(f"{way}{_OVER_PLAIN}" for way in columns)]
        cells = [found.get(name, "") for name in [*names, f"{_OURS} over plain: memory"]]
        yield f"| {condition} | {' | '.join(cells)} |"
    yield ""


def _totals(record: Record) -> Iterator[str]:
    """Cost per round, and per site and round, of each case, without the stages."""
    yield "| | a round | a site and round | first round | start |\n|---|---:|---:|---:|---:|"
    conditions = dict.fromkeys(f.condition for f in record.figures if f.name == "cost per round")
    for condition in conditions:
        cells = [
            _number(record.value(name, condition, statistic=kind), "ms")
            for name, kind in (
                ("cost per round", "median"),
                ("cost per site and round", "median"),
                ("first round", ""),
                ("start and meeting the sites", ""),
            )
        ]
        yield f"| {condition} | {' | '.join(cells)} |"
    yield ""


def _stages(record: Record) -> Iterator[str]:
    """Milliseconds of each stage in one table, the longest first, a column a case."""
    by_case: dict[str, dict[str, float]] = {}
    for figure in record.figures:
        by_case.setdefault(figure.condition, {})[figure.name] = figure.value
    for number, condition in enumerate(by_case, start=1):
        yield f"{number}. {condition}"
    yield "\n| ms a round | " + " | ".join(map(str, range(1, len(by_case) + 1))) + " |"
    yield "|---|" + "---:|" * len(by_case)
    names = dict.fromkeys(name for stages in by_case.values() for name in stages)
    most = {name: max(stages.get(name, 0.0) for stages in by_case.values()) for name in names}
    for name in sorted(names, key=lambda name: -most[name]):
        cells = []
        for stages in by_case.values():
            value = stages.get(name)
            share = "" if value is None or name == WHOLE else f" ({value / stages[WHOLE]:.1%})"
            cells.append("–" if value is None else f"{_plain(value)}{share}")
        label = f"**{name}**" if name == WHOLE else name
        yield f"| {label} | {' | '.join(cells)} |"
    yield ""


def _curves(record: Record) -> Iterator[str]:
    for name, x_label in _CURVES.items():
        series = {mode: f"{name}, {mode}" for mode in _MODES}
        fixed = next(
            (f.condition.partition("; ")[2] for f in record.figures if f.series in series.values()),
            "",
        )
        yield f"### By {x_label}\n\n{fixed[:1].upper()}{fixed[1:]}.\n"
        yield f"![Curves of time and memory by {x_label}](pictures/{_file_of(name)})\n"
        yield (
            f"| {x_label} | | a round | a site and round | start-up | check, once | "
            "after the rounds | peak memory |\n|---:|---|---:|---:|---:|---:|---:|---:|"
        )
        for mode, words in _MODES.items():
            yield from _rows_of_curve(record, series[mode], words)
        yield ""


def _rows_of_curve(record: Record, series: str, mode: str) -> Iterator[str]:
    columns = (
        (scaling.SECONDS, "median"),
        (scaling.OF_A_SITE, "median"),
        (scaling.PARTS[START], ""),
        (scaling.PARTS[scaling.CHECK], ""),
        (scaling.PARTS[END], ""),
        (scaling.MEMORY, ""),
    )
    at_x: dict[float, list[Figure]] = {}
    for figure in record.figures:
        if figure.series == series and figure.x is not None:
            at_x.setdefault(figure.x, []).append(figure)
    for x, figures in sorted(at_x.items()):
        cells = [
            next(
                _number(f.value, f.unit)
                for f in figures
                if f.name == name and f.statistic.startswith(statistic)
            )
            for name, statistic in columns
        ]
        yield f"| {x:,.0f} | {mode} | {' | '.join(cells)} |"


Section = tuple[str, str, Callable[[Record], Iterator[str]]]
_SECTIONS: dict[str, Section] = {
    "startup": (
        "Start-up",
        "Whole processes, from their start. Files are in the disk's cache, and the gate has "
        "passed the model before.\n",
        _everything,
    ),
    "clipping": (
        "The private gradient",
        "The clipped sum of one step by each way of forming it, beside the same step's ordinary "
        "gradient. They take turns in one process.\n",
        _gradients,
    ),
    "local_step": (
        "A local step",
        "A whole step of a site: sample, read, views, gradient, noise, optimiser.\n",
        _everything,
    ),
    "profile": (
        "Where the time goes",
        "Medians over the rounds of a simulation in one process, by the functions that "
        "`simulations/tacit_simulations/benchmarks/stages.py` names. Time within another stage "
        "counts once, in the inner one.\n",
        _stages,
    ),
    "round_overhead": (
        "A round beyond local training",
        "Real sites whose training takes no time. The result file holds the stages too.\n",
        _totals,
    ),
    "scaling": (
        "How it grows",
        "Whole simulations, from a file of images to the report, with as many workers as it says. "
        "What a simulation checks once for a new study on a machine (the noise, and under privacy "
        "the gate) starts from an empty cache, and has a column of its own. Memory is that of the "
        "whole process tree, torch and Python included.\n",
        _curves,
    ),
    "peers": (
        "Beside other frameworks",
        "One model, one loss, the same data, batches and steps, in turn on the same cores.\n",
        lambda record: iter([render.markdown(record)]),
    ),
    "noise": ("Noise", "What a core draws from the AES-256 generator.\n", _everything),
    "ledger": ("The ledger", "What a site's ledger takes to write and to open.\n", _everything),
    "deploy": (
        "A deployed round",
        "Server and sites as processes on one machine, with TLS and signatures.\n",
        _everything,
    ),
}


# --- pictures --------------------------------------------------------------------------


def pictures(results: dict[str, Record]) -> dict[str, str]:
    """The curves as SVG, by the name of their file."""
    record = results.get("scaling")
    if record is None:
        return {}
    return {
        _file_of(name): picture(
            f"Time and memory by {x_label}",
            [
                _panel(record, name, "Seconds a round", x_label, scaling.SECONDS, "median"),
                _panel(record, name, "Peak memory, MiB", x_label, scaling.MEMORY, ""),
            ],
        )
        for name, x_label in _CURVES.items()
    }


def _file_of(curve: str) -> str:
    return f"scaling-{curve}.svg"


def _panel(
    record: Record, curve: str, title: str, x_label: str, name: str, statistic: str
) -> Panel:
    series = [
        Series(words, record.curve(f"{curve}, {mode}", name, statistic=statistic))
        for mode, words in _MODES.items()
    ]
    return Panel(title, x_label, series)


# --- the README ------------------------------------------------------------------------


def headlines(results: dict[str, Record]) -> str:
    """What the README quotes: a table, and the machine in a sentence."""
    parts = (_gradient_rows, _peer_rows, _sites_rows, _startup_rows)
    rows = [row for part in parts for row in part(results)]
    machine = results["scaling"].machine.in_words()
    return (
        "| | measured | target |\n|---|---:|---:|\n"
        + "\n".join(f"| {what} | {value} | {target} |" for what, value, target in rows)
        + f"\n\nMeasured on {machine}. A ratio below 1 means that Tacit takes less.\n"
    )


Row = tuple[str, str, str]
"""What, the figure, and the most that was aimed at."""


def _gradient_rows(results: dict[str, Record]) -> Iterator[Row]:
    """The private gradient of the largest model, at its first batch."""
    record = results.get("clipping")
    if record is None:
        return
    largest = max(
        dict.fromkeys(figure.condition for figure in record.figures),
        key=lambda condition: int(condition.split()[0].replace(",", "")),
    )
    for figure in record.figures:
        if figure.condition == largest and figure.target is not None:
            yield _row(f"clipped sum, {figure.name} ({largest})", figure)


def _peer_rows(results: dict[str, Record]) -> Iterator[Row]:
    record = results.get("peers")
    for figure in record.figures if record is not None else ():
        if figure.target is not None:
            work = figure.condition.partition(": ")[2]
            yield _row(f"{figure.name} ({work})", figure)


def _row(what: str, figure: Figure) -> Row:
    target = "" if figure.target is None else _number(figure.target, figure.unit)
    return what, _number(figure.value, figure.unit), target


def _startup_rows(results: dict[str, Record]) -> Iterator[Row]:
    record = results["startup"]
    for figure in record.figures:
        if figure.target is not None:
            yield _row(f"{figure.name} ({figure.condition})", figure)


def _sites_rows(results: dict[str, Record]) -> Iterator[Row]:
    record = results["scaling"]
    for mode, words in _MODES.items():
        series = f"sites, {mode}"
        sites, seconds = record.curve(series, scaling.SECONDS, statistic="median")[-1]
        _, asked = record.curve(series, scaling.ASKED)[-1]
        _, memory = record.curve(series, scaling.MEMORY)[-1]
        yield (
            f"a simulated round of {asked:,.0f} sites out of {sites:,.0f}, {words}",
            f"{_number(seconds, 's')}, {_number(memory, 'MiB')}",
            f"{_number(scaling.LARGEST_MEMORY_MIB, 'MiB')}" if sites >= 10_000 else "",
        )


# --- numbers ---------------------------------------------------------------------------


def _minimum(figures: Sequence[Figure]) -> str:
    least = (f for f in figures if f.statistic.startswith("minimum"))
    return next((_number(figure.value, figure.unit) for figure in least), "")


def _other(figures: Sequence[Figure]) -> str:
    other = (f for f in figures if not f.statistic.startswith("minimum"))
    return next((_number(figure.value, figure.unit) for figure in other), "")


def _number(value: float, unit: str) -> str:
    if unit == "s" and value < 0.1:
        value, unit = 1e3 * value, "ms"
    if unit == "MiB" and value >= 2048:
        value, unit = value / 1024, "GiB"
    return f"{_plain(value)}{'×' if unit == 'x' else f' {unit}'.rstrip()}"


def _plain(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")
