"""`audit.json`: what audits found, kept in a run's folder for its report.

All of them are kept, and the report has the one that found most: whoever audits until
the figure looks good does not get to choose.
"""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tacit_common.errors import CheckpointError
from tacit_common.files import write_atomically
from tacit_common.report import Audit

_FILE = "audit.json"
_AUDITS: TypeAdapter[list[Audit]] = TypeAdapter(list[Audit])


def write_audit(folder: Path, found: Audit) -> Path:
    """Add what was found to what is there; returns where.

    Raises:
        CheckpointError: what is there cannot be understood.
    """
    path = folder / _FILE
    write_atomically(path, _AUDITS.dump_json([*_audits(path), found], indent=2))
    return path


def read_audit(folder: Path) -> Audit | None:
    """Of all audits in a run's folder the one that found most; None if there was none.

    Raises:
        CheckpointError: the file is there and cannot be understood.
    """
    return max(_audits(folder / _FILE), key=lambda a: a.epsilon_lower_bound, default=None)


def _audits(path: Path) -> list[Audit]:
    if not path.exists():
        return []
    try:
        return _AUDITS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise CheckpointError(
            f"'{path.name}' cannot be read",
            why="it is not what an audit of this version wrote",
            fix="run `tacit audit` again",
        ) from None
