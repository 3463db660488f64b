"""Figures, and the file and the table that they go to."""

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from tacit_common.files import write_atomically

_PACKAGES = ("tacit", "torch", "flwr", "ray", "opacus", "dp-accounting", "numpy", "pydantic")

_EXTENSIONS = {"avx512f": "AVX-512", "amx_tile": "AMX"}  # as /proc/cpuinfo has them


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Frozen):
    """One measured number and what it holds for."""

    name: str
    value: float
    unit: str
    statistic: str = Field(description="For example 'median of 20'.")
    condition: str
    target: float | None = Field(default=None, description="The most that it should be.")
    series: str | None = Field(default=None, description="The curve that it is a point of.")
    x: float | None = Field(default=None, description="Where on the curve it lies.")

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.value <= self.target


class Machine(_Frozen):
    """What the figures were measured on; never which machine it was."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    extensions: list[str] = Field(default=[], description="Of the instruction set, for matrices.")

    @classmethod
    def here(cls) -> "Machine":
        """This machine."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            cpu=_cpu_model(),
            cores=os.cpu_count() or 1,
            memory_gib=round(memory / 2**30, 1),
            system=f"{platform.system()} {platform.machine()}",
            extensions=_extensions(),
        )

    def in_words(self) -> str:
        """One phrase, such as "2 cores of Intel … with AVX-512 and AMX, 16 GiB"."""
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        extended = f" with {' and '.join(self.extensions)}" if self.extensions else ""
        cpu = self.cpu.replace("(R)", "").replace("(TM)", "")
        return f"{cores} of an {cpu}{extended}, {self.memory_gib:g} GiB, {self.system}"


class Record(_Frozen):
    """Everything that one run of a benchmark found: the content of its result file."""

    benchmark: str
    command: str
    date: datetime
    load_before: float = Field(description="Processes wanting a core, mean of a minute.")
    machine: Machine
    versions: dict[str, str]
    figures: list[Figure]

    def write(self, folder: Path) -> Path:
        """Write the record to `folder`, whole or not at all, and return the file."""
        path = folder / f"{self.benchmark}.json"
        write_atomically(path, self.model_dump_json(indent=2).encode(), b"\n")
        return path

    def value(self, name: str, condition: str = "", *, statistic: str = "") -> float:
        """The one figure of this name whose condition holds and statistic begins with the words.

        Raises:
            LookupError: there is none, or there are several.
        """
        found = [
            figure.value
            for figure in self.figures
            if figure.name == name
            and condition in figure.condition
            and figure.statistic.startswith(statistic)
        ]
        if len(found) != 1:
            raise LookupError(f"{self.benchmark}: {len(found)} figures '{name}' ({condition})")
        return found[0]

    def curve(self, series: str, name: str, *, statistic: str = "") -> list[tuple[float, float]]:
        """The points of a curve, by rising x; of figures whose statistic begins so."""
        return sorted(
            (figure.x, figure.value)
            for figure in self.figures
            if figure.series == series
            and figure.name == name
            and figure.x is not None
            and figure.statistic.startswith(statistic)
        )

    def table(self) -> Table:
        """The figures for a terminal: one section a condition, one row a quantity."""
        table = Table(title=self.benchmark, title_justify="left")
        table.add_column("figure", ratio=1)
        for heading in ("minimum", "median or only", "target", "met"):
            table.add_column(heading, justify="right", no_wrap=True)
        by_condition: dict[str, dict[str, list[Figure]]] = {}
        for figure in self.figures:
            rows = by_condition.setdefault(figure.condition, {})
            rows.setdefault(figure.name, []).append(figure)
        for condition, rows in by_condition.items():
            table.add_section()
            table.add_row(f"[bold]{condition}[/]")
            for name, found in rows.items():
                table.add_row(name, *_cells(found))
        return table


def _cells(found: Sequence[Figure]) -> list[str]:
    """Minimum, median or only figure, target, and whether it is met."""
    least = next((f for f in found if f.statistic.startswith("minimum")), None)
    figure = next(f for f in found if f is not least)
    cells = ["" if least is None else f"{least.value:g}", f"{figure.value:g} {figure.unit}"]
    if figure.target is None:
        return cells
    met = "[green]yes[/]" if figure.met else "[red]no[/]"
    return [*cells, f"≤ {figure.target:g} {figure.unit}", met]


def new_record(
    benchmark: str, command: str, figures: Sequence[Figure], *, load_before: float
) -> Record:
    """A record of `figures`, measured now on this machine."""
    return Record(
        benchmark=benchmark,
        command=command,
        date=datetime.now(UTC).replace(microsecond=0),
        load_before=round(load_before, 2),
        machine=Machine.here(),
        versions=_versions(),
        figures=list(figures),
    )


def summarise(
    name: str,
    samples: Sequence[float],
    unit: str,
    condition: str,
    *,
    target: float | None = None,
) -> list[Figure]:
    """Minimum and median of `samples`; the target is for the median, the harder of the two."""
    return [
        exact(name, min(samples), unit, f"minimum of {len(samples)}", condition),
        exact(
            name,
            statistics.median(samples),
            unit,
            f"median of {len(samples)}",
            condition,
            target=target,
        ),
    ]


def median(name: str, samples: Sequence[float], unit: str, condition: str) -> Figure:
    """The median alone, where a minimum says nothing: ratios, stages."""
    value = statistics.median(samples)
    return exact(name, value, unit, f"median of {len(samples)}", condition)


def exact(
    name: str,
    value: float,
    unit: str,
    statistic: str,
    condition: str,
    *,
    target: float | None = None,
) -> Figure:
    """One figure, to four significant digits."""
    return Figure(
        name=name,
        value=float(f"{value:.4g}"),
        unit=unit,
        statistic=statistic,
        condition=condition,
        target=target,
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def _extensions() -> list[str]:
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for flag, name in _EXTENSIONS.items() if flag in words]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
