"""The vocabulary that Tacit's server and sites share.

Importing this package loads neither torch nor Flower: import the modules that
you need, for example `tacit_common.study` or `tacit_common.encoders`.
"""

import os

__version__ = "0.1.0"

__all__ = ["__version__"]

# Flower calls home unless told not to, and reads these when it is imported. Nothing of
# ours contacts an address that the configuration does not name.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
