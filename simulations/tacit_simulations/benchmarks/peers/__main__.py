"""`python -m tacit_simulations.benchmarks.peers`: what `make bench-peers` calls."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tacit_common.cli import run_command
from tacit_common.errors import UsageError
from tacit_simulations.benchmarks.measure import Track
from tacit_simulations.benchmarks.peers.compare import FULL, QUICK, measure
from tacit_simulations.benchmarks.peers.contestants import versions_of
from tacit_simulations.benchmarks.peers.render import markdown
from tacit_simulations.benchmarks.record import new_record

NAME = "peers"
RESULTS = Path(__file__).parents[1] / "results"
PYTHON = Path(".venv-peers/bin/python")


def compare(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds and repetitions.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the result file.")] = RESULTS,
    python: Annotated[Path, typer.Option(help="Python of the peers' environment.")] = PYTHON,
) -> None:
    """Measure Tacit and its peers on the same work, and write `peers.json`."""
    if not python.exists():
        raise UsageError(
            "the peers are not installed",
            why=f"there is no '{python}'",
            fix="run `make bench-peers`, which makes that environment",
        )
    load_before = os.getloadavg()[0]
    figures = measure(QUICK if quick else FULL, Track(NAME, Console(stderr=True)), python)
    command = f"python -m {__package__}{' --quick' if quick else ''}"
    record = new_record(NAME, command, figures, load_before=load_before)
    record = record.model_copy(update={"versions": record.versions | versions_of(python)})
    tables = Console()
    tables.print(record.table())
    tables.print(markdown(record), highlight=False, markup=False, soft_wrap=True)
    tables.print(f"written to {record.write(out)}\n", highlight=False)


if __name__ == "__main__":
    sys.exit(run_command(lambda: typer.run(compare)))
