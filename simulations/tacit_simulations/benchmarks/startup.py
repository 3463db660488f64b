"""How long one waits: for an import, for the command's help, and for the first round.

Each sample is a process of its own, so nothing is warm but the disk's cache.
"""

import importlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tacit_server import run as server_run
from tacit_simulations.benchmarks.measure import Samples, Track, in_fresh_process
from tacit_simulations.benchmarks.record import Figure, summarise
from tacit_simulations.cli import app
from tacit_simulations.recipes import recipe_text
from tacit_common.study import parse_study

IMPORT_TARGET_S = 0.3
FIRST_ROUND_TARGET_S = 3.0
