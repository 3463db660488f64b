"""`audit.json`: what an audit found, kept in a run's folder for its report."""

from pathlib import Path

from pydantic import ValidationError

from tacit_common.errors import CheckpointError
from tacit_common.files import write_atomically
from tacit_common.report import Audit

_FILE = "audit.json"


def write_audit(folder: Path, found: Audit) -> Path:
    """Write what was found; returns where."""
    path = folder / _FILE
    write_atomically(path, found.model_dump_json(indent=2).encode())
    return path


def read_audit(folder: Path) -> Audit | None:
    """The audit in a run's folder, if there was one.

    Raises:
        CheckpointError: the file is there and cannot be understood.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        return Audit.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise CheckpointError(
            f"'{path.name}' cannot be read",
            why="it is not what an audit of this version wrote",
            fix="run `tacit audit` again",
        ) from None
