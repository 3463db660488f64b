"""The data site: policy, ledger, private pretraining and probes."""

from tacit_common import __version__

__all__ = ["__version__"]
