"""`tacit site log`: the journal as a readable account, one line a request."""

import time
from collections.abc import Iterator

from tacit_client.deployment.journal import HandledLine, JournalLine, read_journal
from tacit_client.deployment.site_folder import SiteFolder
from tacit_common.cli import printable

_LOOK_S = 0.5


def account(folder: SiteFolder, *, last: int | None) -> Iterator[JournalLine]:
    """The lines so far, or the `last` few of them. All of them are verified.

    That a request was received is not repeated where its answer follows.

    Raises:
        LedgerError: the journal cannot be trusted.
    """
    lines = read_journal(folder.journal, folder.read_identity().public_key)
    yield from _newest(_settled(lines), last)


def follow(folder: SiteFolder, *, last: int | None) -> Iterator[JournalLine]:
    """The same, and then every line as it is written, without end.

    Raises:
        LedgerError: the journal cannot be trusted, or changed while it was followed.
    """
    public_key, size = folder.read_identity().public_key, folder.journal.stat().st_size
    lines = read_journal(folder.journal, public_key)
    yield from _newest(_settled(lines), last)
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


def _settled(lines: list[JournalLine]) -> list[JournalLine]:
    following = [*lines[1:], None]
    pairs = zip(lines, following, strict=False)  # neither has lines if the other has none
    return [line for line, after in pairs if not _is_answered(line, after)]


def _is_answered(line: JournalLine, after: JournalLine | None) -> bool:
    """Whether a line notes a request whose answer is noted by the line after it.

    A site answers one request at a time.
    """
    if after is None or not isinstance(line.entry, HandledLine):
        return False
    then = after.entry
    return (
        line.entry.outcome == "received"
        and isinstance(then, HandledLine)
        and then.outcome != "received"
        and (then.action, then.run, then.study_digest, then.label)
        == (line.entry.action, line.entry.run, line.entry.study_digest, line.entry.label)
    )


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
    if entry.outcome == "received":
        said = f"{when}  {' '.join(asked)}: received"
    else:
        answer = "answered" if entry.code is None else f"refused: {entry.code.value}"
        said = f"{when}  {' '.join(asked)}: {answer}; {_size(entry.bytes_out)} left"
    return printable(said)


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
