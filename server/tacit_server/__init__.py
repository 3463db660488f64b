"""The coordinator: rounds, strategies, checkpoints and probes."""

from tacit_common import __version__

__all__ = ["__version__"]
