"""The comparison as Markdown, from its result file."""

from tacit_simulations.benchmarks.peers.compare import APART, PEAK, ROUND, START
from tacit_simulations.benchmarks.record import Figure, Record

_YES, _NO = "yes", "–"

# Who does what beside the arithmetic. Read from the versions in requirements.txt.
_COLUMNS = (
    "ledger of every charge",
    "ε of the run",
    "noise",
    "separability check",
    "resumes after kill -9",
    "report",
)
_DOES = {
    "Tacit": (
        "yes, hash-chained, at every site",
        "PLD, checked by RDP and PRV; calibrated before the first round, refused beyond the cap",
        "per record; cryptographic source, on a lattice",
        _YES,
        "yes, without paying twice",
        _YES,
    ),
    "Flower on Ray, Opacus": (
        _NO,
        "of one round, if asked (the engine is made anew each round)",
        "per record; seeded generator, floats",
        "types of layers",
        _NO,
        _NO,
    ),
    "pfl": (
        _NO,
        "PLD, PRV or RDP, if asked",
        "per site, on the sum; seeded generator, floats",
        "not needed for a site's update",
        "by a callback",
        _NO,
    ),
    "plain Opacus loop": (
        _NO,
        "if asked",
        "per record; seeded generator, floats",
        "types of layers",
        _NO,
        _NO,
    ),
    "plain PyTorch loop": (_NO, _NO, "none", _NO, _NO, _NO),
}


def markdown(record: Record) -> str:
    """Tables of seconds, ratios and memory, one a work, and of who does what besides."""
    conditions = list(dict.fromkeys(figure.condition for figure in record.figures))
    parts = [_work(record, condition) for condition in conditions]
    parts.append(_does())
    return "\n\n".join(parts) + "\n"


def _work(record: Record, condition: str) -> str:
    figures = [figure for figure in record.figures if figure.condition == condition]
    titles = [
        figure.name.removesuffix(f": {ROUND}")
        for figure in figures
        if figure.name.endswith(ROUND) and figure.statistic.startswith("median")
    ]
    medians = {title: _find(figures, f"{title}: {ROUND}", "median") for title in titles}
    tacit = min(f.value for t, f in medians.items() if t.startswith("Tacit"))
    rows = []
    for title in titles:
        least = _find(figures, f"{title}: {ROUND}", "minimum")
        apart = [figure for figure in figures if figure.name == f"{title}: {APART}"]
        rows.append(
            [
                title,
                f"{medians[title].value:.3g}",
                f"{least.value:.3g}",
                f"{medians[title].value / tacit:.2f}",
                f"{_find(figures, f'{title}: {START}').value:.1f}",
                f"{_find(figures, f'{title}: {PEAK}').value:,.0f}",
                f"{apart[0].value:.2g} {apart[0].unit}" if apart else _NO,
            ]
        )
    headings = [
        "",
        "s a round, median",
        "minimum",
        "× Tacit's best",
        "start-up, s",
        "peak memory, MiB",
        APART,
    ]
    return f"**{condition}**\n\n{_table(headings, rows)}"


def _does() -> str:
    return _table(["", *_COLUMNS], [[who, *what] for who, what in _DOES.items()])


def _find(figures: list[Figure], name: str, statistic: str = "") -> Figure:
    return next(f for f in figures if f.name == name and f.statistic.startswith(statistic))


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
