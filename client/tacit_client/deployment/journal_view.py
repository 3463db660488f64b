"""`tacit site log`: the journal as a readable account, one line a request."""

import time
from collections.abc import Iterator

from tacit_client.deployment.journal import HandledLine, JournalLine, read_journal
from tacit_client.deployment.site_folder import SiteFolder

_LOOK_S = 0.5


def account(folder: SiteFolder, *, last: int | None) -> Iterator[JournalLine]:
    """The lines so far, or the `last` few of them. All of them are verified.

    Raises:
        LedgerError: the journal cannot be trusted.
    """
    yield from _newest(read_journal(folder.journal, folder.read_identity().public_key), last)


def follow(folder: SiteFolder, *, last: int | None) -> Iterator[JournalLine]:
    """The same, and then every line as it is written, without end.

    Raises:
        LedgerError: the journal cannot be trusted, or changed while it was followed.
    """
    public_key, size = folder.read_identity().public_key, folder.journal.stat().st_size
    lines = read_journal(folder.journal, public_key)
    yield from _newest(lines, last)
    while True:
        time.sleep(_LOOK_S)
        if (grown := folder.journal.stat().st_size) == size:
            continue
        size = grown
        added = read_journal(folder.journal, public_key, after=lines[-1] if lines else None)
        yield from added
        lines = added or lines


def _newest(lines: list[JournalLine], last: int | None) -> list[JournalLine]:
    return lines if last is None else lines[len(lines) - min(last, len(lines)) :]


def sentence(line: JournalLine) -> str:
    """One line for people: when, who asked for what, what was answered, how much left.

    Names that came from outside are printed without anything that could move a cursor.
    """
    when = line.at.strftime("%Y-%m-%d %H:%M:%S")
    entry = line.entry
    if not isinstance(entry, HandledLine):
        return f"{when}  a line torn by a kill was set aside ({entry.bytes_set_aside} bytes)"
    asked = [entry.action if entry.label is None else entry.label]
    if entry.study is not None:
        digest = "" if entry.study_digest is None else f" ({entry.study_digest[:12]})"
        asked.append(f"of {entry.study}{digest}")
    if entry.run is not None:
        asked.append(f"in run {entry.run}")
    answer = "answered" if entry.code is None else f"refused: {entry.code.value}"
    said = f"{when}  {' '.join(asked)}: {answer}; {_size(entry.bytes_out)} left"
    return "".join(character if character.isprintable() else "·" for character in said)


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
