"""`python -m tacit_simulations.benchmarks`: what `make bench` calls."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tacit_common.cli import run_command
from tacit_common.errors import UsageError
from tacit_simulations.benchmarks import (
    clipping,
    deploy,
    ledger,
    local_step,
    noise,
    profile,
    round_overhead,
    scaling,
    startup,
)
from tacit_simulations.benchmarks.measure import Track
from tacit_simulations.benchmarks.record import Figure, new_record

RESULTS = Path(__file__).parent / "results"

# name: what it does in full, and quickly
BENCHMARKS: dict[str, tuple[Callable[[Track], list[Figure]], Callable[[Track], list[Figure]]]] = {
    "startup": (
        partial(startup.measure, startup.FULL),
        partial(startup.measure, startup.QUICK),
    ),
    "local_step": (
        partial(local_step.measure, local_step.FULL),
        partial(local_step.measure, local_step.QUICK),
    ),
    "ledger": (
        partial(ledger.measure, ledger.FULL),
        partial(ledger.measure, ledger.QUICK),
    ),
    "noise": (
        partial(noise.measure, noise.FULL),
        partial(noise.measure, noise.QUICK),
    ),
    "round_overhead": (
        partial(round_overhead.measure, round_overhead.FULL),
        partial(round_overhead.measure, round_overhead.QUICK),
    ),
    "profile": (
        partial(profile.measure, profile.FULL),
        partial(profile.measure, profile.QUICK),
    ),
    "scaling": (
        partial(scaling.measure, scaling.FULL),
        partial(scaling.measure, scaling.QUICK),
    ),
    "deploy": (
        partial(deploy.measure, deploy.FULL),
        partial(deploy.measure, deploy.QUICK),
    ),
    "clipping": (
        partial(clipping.measure, clipping.FULL),
        partial(clipping.measure, clipping.QUICK),
    ),
}


def benchmark(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=", ".join(BENCHMARKS))
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes and repetitions.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the result files.")] = RESULTS,
) -> None:
    """Measure speed and memory; one result file a benchmark, written when it is done."""
    chosen = names or list(BENCHMARKS)
    unknown = sorted(set(chosen) - set(BENCHMARKS))
    if unknown:
        raise UsageError(
            f"there is no benchmark '{unknown[0]}'",
            why=f"the benchmarks are {', '.join(BENCHMARKS)}",
            fix="name some of them, or none for all",
        )
    progress, tables = Console(stderr=True), Console()
    for name in chosen:
        load_before = os.getloadavg()[0]
        figures = BENCHMARKS[name][quick](Track(name, progress))
        command = f"python -m {__package__} {name}{' --quick' if quick else ''}"
        record = new_record(name, command, figures, load_before=load_before)
        path = record.write(out)
        tables.print(record.table())
        tables.print(f"written to {path}\n", highlight=False)


if __name__ == "__main__":
    sys.exit(run_command(lambda: typer.run(benchmark)))
