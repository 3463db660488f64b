"""How a process without a port shows that it is at work: it says so every few seconds."""

import time
from pathlib import Path

LONGEST_SILENCE_S = 15.0


def beat(file: Path) -> None:
    """Say in `file` that this process is at work now. Call it at least every five seconds."""
    draft = file.with_name(file.name + ".new")
    draft.write_text(f"{time.monotonic()}\n", encoding="ascii")  # rounded, it could lie ahead
    draft.replace(file)


def is_beating(file: Path) -> bool:
    """Whether the last beat is recent.

    Guarantees: false without a beat since the machine started; a clock that is set does
    not change the answer.
    """
    try:
        age_s = time.monotonic() - float(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    return 0 <= age_s < LONGEST_SILENCE_S
