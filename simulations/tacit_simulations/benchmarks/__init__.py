"""Speed and memory as figures: `python -m tacit_simulations.benchmarks [NAME …] [--quick]`.

Each benchmark is one file. What is measured runs in fresh processes, and each figure is
written with its condition, the machine and the command.
"""

from tacit_simulations.benchmarks.record import Figure, Record

__all__ = ["Figure", "Record"]
