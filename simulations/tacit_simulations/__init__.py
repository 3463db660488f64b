"""Rehearsals: the same server and client code with many sites on one machine."""

from tacit_common import __version__

__all__ = ["__version__"]
