"""The site's account of every request: who asked for what, what was answered, how much left.

A request of the coordinator's is noted twice: when it is received, before any work, and
when it has its answer. So a request that ends the process is seen too, and nothing is paid
while the journal cannot be written.

One JSON object a line, in a file that only grows. Each line names the hash of the one
before and is signed by the site, so that a line that was changed, taken out of the middle
or put in is noticed. Lines cut off at the end are not: a copy kept elsewhere shows those.

The journal says nothing of records. What it repeats of a request (the names of a run and
a study) comes from outside, and is cut to a length.
"""

import errno
import fcntl
import hashlib
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tacit_common.errors import LedgerError, RefusalCode
from tacit_common.identity import Identity, is_signed
from tacit_common.ledger_chain import NO_PREDECESSOR, Hex64, Signature

Action = Literal["describe", "train", "probe", "account", "unknown"]

Outcome = Literal["received", "answered", "refused"]

LONGEST_TEXT = 100
"""Characters that are kept of a name which somebody else chose."""

_DOMAIN = "journal line"  # of a line's signature
_MODE = 0o600


@dataclass(frozen=True)
class Handled:
    """One request, and what became of it so far. `None` where it could not be read."""

    action: Action
    run: str | None
    study: str | None
    study_digest: str | None
    label: str | None
    outcome: Outcome
    code: RefusalCode | None
    bytes_in: int
    bytes_out: int


class HandledLine(BaseModel):
    """`Handled`, as it stands in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action
    run: str | None = Field(max_length=LONGEST_TEXT)
    study: str | None = Field(max_length=LONGEST_TEXT)
    study_digest: str | None = Field(max_length=LONGEST_TEXT)
    label: str | None = Field(max_length=LONGEST_TEXT)
    outcome: Outcome
    code: RefusalCode | None
    bytes_in: int = Field(ge=0)
    bytes_out: int = Field(ge=0)


class Mended(BaseModel):
    """A line was being written when the machine or the process died; it was set aside."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes_set_aside: int = Field(ge=1)
    file: str = Field(description="Where they are, in the site's folder.")


class JournalLine(BaseModel):
    """One line: its place, when it was written, what it says, and what makes it genuine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seq: int = Field(ge=0)
    at: datetime
    entry: HandledLine | Mended
    prev: Hex64
    hash: Hex64
    signature: Signature

    def content_hash(self) -> str:
        """What `hash` has to be."""
        return _content_hash(self.seq, self.at, self.entry, self.prev)


class Journal:
    """The journal of one site, open for appending. Threads and processes may share the file.

    Opening checks every hash, and the signature of the last line, which covers the chain; a
    line that was torn by a kill is set aside, and noted.

    Raises:
        LedgerError: the file cannot be opened, or a line does not follow from the one before.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path = path
        self._identity = identity
        self._last: JournalLine | None = None
        self._size = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked() as file:
                self._catch_up(file)
            _flush_folder(path.parent)
        except OSError as error:
            raise _unusable(path, error) from None

    def append(self, handled: Handled) -> JournalLine:
        """Add one line; it is on the disk when this returns.

        Raises:
            LedgerError: it cannot be written, or the file is no longer what it was.
        """
        entry = HandledLine.model_validate(
            {key: _cut(value) for key, value in asdict(handled).items()}
        )
        try:
            with self._locked() as file:
                self._catch_up(file)
                return self._add(file, entry)
        except OSError as error:
            raise _unusable(self._path, error) from None

    def _locked(self) -> FileIO:
        """The file, held against everybody else until it is closed."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, _MODE)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    def _add(self, file: FileIO, entry: HandledLine | Mended) -> JournalLine:
        line = _next(self._last, entry, self._identity)
        content = line.model_dump_json().encode() + b"\n"
        # A line that is written in part, on a full disk, is set aside by the next look.
        if file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
        self._last, self._size = line, self._size + len(content)
        return line

    def _catch_up(self, file: FileIO) -> None:
        """Check what was added since the last look, and set a torn end aside."""
        file.seek(0, os.SEEK_END)
        end = file.tell()
        if end < self._size:
            raise _damaged(self._path, self._next_seq(), "its end was cut off")
        if end == self._size:
            return
        file.seek(self._size)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        lines = _parse(self._path, whole, self._last)
        if lines and not _is_genuine(lines[-1], self._identity.public_key):
            raise _damaged(self._path, lines[-1].seq, "this site's key did not sign it")
        if lines:
            self._last = lines[-1]
        self._size += len(whole)
        if torn := content[len(whole) :]:
            self._set_aside(file, torn)

    def _set_aside(self, file: FileIO, torn: bytes) -> None:
        aside = self._path.with_name(f"{self._path.stem}.torn-{self._next_seq()}")
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE), "wb") as kept:
            kept.write(torn)
            kept.flush()
            os.fsync(kept.fileno())
        file.truncate(self._size)
        self._add(file, Mended(bytes_set_aside=len(torn), file=aside.name))

    def _next_seq(self) -> int:
        return 0 if self._last is None else self._last.seq + 1


def read_journal(
    path: Path, public_key: str, *, after: JournalLine | None = None
) -> list[JournalLine]:
    """The lines of a journal, every hash and signature checked, beside a working site.

    A line that is being written is not among them. With `after`, the lines that follow it.

    Raises:
        LedgerError: there is no journal, or it cannot be trusted.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unusable(path, error) from None
    whole = content[: content.rfind(b"\n") + 1]
    lines = _parse(path, whole, None)
    known = 0 if after is None else after.seq + 1
    if after is not None and (len(lines) < known or lines[after.seq] != after):
        raise _damaged(path, after.seq, "it has changed since it was read")
    for line in lines[known:]:
        if not _is_genuine(line, public_key):
            raise _damaged(path, line.seq, "this site's key did not sign it")
    return lines[known:]


def _next(
    previous: JournalLine | None, entry: HandledLine | Mended, identity: Identity
) -> JournalLine:
    seq, prev = (0, NO_PREDECESSOR) if previous is None else (previous.seq + 1, previous.hash)
    at = datetime.now(UTC)
    digest = _content_hash(seq, at, entry, prev)
    return JournalLine(
        seq=seq,
        at=at,
        entry=entry,
        prev=prev,
        hash=digest,
        signature=identity.sign(_DOMAIN, digest.encode()),
    )


def _content_hash(seq: int, at: datetime, entry: HandledLine | Mended, prev: str) -> str:
    content = f"{prev}\n{seq}\n{at.isoformat()}\n{entry.model_dump_json()}"
    return hashlib.sha256(content.encode()).hexdigest()


def _parse(path: Path, content: bytes, previous: JournalLine | None) -> list[JournalLine]:
    """The lines in `content`, each of which follows from the one before. Not their signatures."""
    lines = []
    for text in content.split(b"\n")[:-1]:
        seq, prev = (0, NO_PREDECESSOR) if previous is None else (previous.seq + 1, previous.hash)
        try:
            line = JournalLine.model_validate_json(text)
        except ValidationError:
            raise _damaged(path, seq, "it is not a line that this version writes") from None
        if (line.seq, line.prev, line.hash) != (seq, prev, line.content_hash()):
            raise _damaged(path, seq, "it does not follow from the line before")
        lines.append(line)
        previous = line
    return lines


def _is_genuine(line: JournalLine, public_key: str) -> bool:
    return is_signed(public_key, _DOMAIN, line.hash.encode(), line.signature)


def _cut(value: object) -> object:
    return value[:LONGEST_TEXT] if isinstance(value, str) else value


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, seq: int, why: str) -> LedgerError:
    return LedgerError(
        f"the site's journal '{path.name}' is damaged at line {seq + 1}",
        why=why,
        fix="keep the file as evidence, restore it from a backup or move it away, and ask who "
        "changed it",
    )


def _unusable(path: Path, error: OSError) -> LedgerError:
    return LedgerError(
        f"the site's journal '{path.name}' cannot be used",
        why=error.strerror or type(error).__name__,
        fix="check that the site's folder is writable and has space; a site that cannot keep its "
        "journal answers nothing",
    )
