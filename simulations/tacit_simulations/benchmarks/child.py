"""The fresh process in which one measurement runs: see `measure.in_fresh_process`."""

import importlib
import json
import sys
from pathlib import Path

from tacit_common.cli import ask_for_tracebacks, run_command
from tacit_common.files import write_atomically
from tacit_simulations.benchmarks.measure import SAMPLES


def main(case: str, arguments: str, result: str) -> None:
    """Call `case`, "module:function" of this package, and write what it returns."""
    module, _, function = case.partition(":")
    measure = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    samples = SAMPLES.validate_python(measure(**json.loads(arguments)))
    write_atomically(Path(result), SAMPLES.dump_json(samples))


if __name__ == "__main__":
    ask_for_tracebacks()  # they go to the log, whose end a failure shows
    sys.exit(run_command(lambda: main(*sys.argv[1:4])))
