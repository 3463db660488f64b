"""A person's consent to a study: which studies wait for it, and which have it.

    approvals.json      who consented to what, when, and what was shown to them
    pending/DIGEST.toml a study that was asked for and is not approved

Consent is bound to the digest of everything that travels, so a study that was changed in
any field is another study; to the coordinator's key, so it is given to nobody else; and to
one run of the study, the first that pays under it, and to the ε that a person was shown. A
second run of the same study asks for a second consent.
"""

import fcntl
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tacit_common.errors import RefusalCode, SiteRefusal, UsageError
from tacit_common.files import write_atomically
from tacit_common.ledger_chain import Charge, Hex64
from tacit_common.privacy.accounting import REPORT_INTERVAL, epsilon
from tacit_common.privacy.filter import events_of
from tacit_common.privacy.spend import Spend
from tacit_common.study import Study

APPROVALS_NAME = "approvals.json"
PENDING_NAME = "pending"

MOST_PENDING = 16
LONGEST_STUDY = 64 * 1024  # bytes; more is not read by a person either
SHOWN_DIGITS = 32
"""Of a digest, where it is agreed to unseen. Two studies that share fewer can be searched for."""
SHORTEST_PREFIX = 8
_ROUNDING = 1 + 1e-9  # of a sum of the same releases in another order


class Approval(BaseModel):
    """That a person agreed to one run of one study of one coordinator."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")

    digest: Hex64 = Field(description="Of the study as it travels.")
    study: str = Field(description="The study's name.")
    coordinator: Hex64 = Field(description="Key of the coordinator that may run it.")
    at: datetime = Field(description="When, in UTC.")
    epsilon: float | None = Field(description="ε of the whole study at δ; None without privacy.")
    delta: float = Field(description="The site's δ at that time.")
    shown: str = Field(description="What the person was shown.")
    run: str | None = Field(
        default=None, description="The run that paid under it first; null: none has so far."
    )


NEW_RUN = ""
"""The name of a run that has not begun: no consent was taken by it."""


class _Approvals(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    approvals: tuple[Approval, ...] = ()


class Approvals:
    """The consent that a site's folder holds. Every question reads it anew from the disk.

    So an approval, or its withdrawal, counts from the next request on, in whichever
    process it was given. What is written is whole and durable, or not there.
    """

    def __init__(self, folder: Path, *, coordinator: str) -> None:
        """`coordinator` is the public key that the site has pinned."""
        self._folder = folder
        self._coordinator = coordinator

    def require_approved(self, study: Study, *, run: str | None = None) -> None:
        """Refuse a study that nobody here agreed to, and keep it for somebody to look at.

        With `run`, consent has to be left for that run. The newest few that wait are kept, so
        that a server cannot fill the disk.

        Raises:
            SiteRefusal: with the code APPROVAL.
            UsageError: the approvals cannot be read, or what waits cannot be written.
        """
        digest = study.digest()
        if self.of(digest, run=run) is not None:
            return
        self._note(study, digest)
        raise _not_approved(study.name, digest, run)

    def admit(self, spend: Spend, charge: Charge) -> None:
        """Whether `charge` is part of what a person agreed to; its run is the one from now on.

        What its run has paid stays within the ε that was agreed to, by PLD, also where a round
        is paid twice. To be asked inside `Ledger.reserve`, after the policy, so that nobody
        else pays meanwhile.

        Raises:
            SiteRefusal: with the code APPROVAL, if there is no consent left for its run; or
                BUDGET, if the run would pay more than was agreed to.
            UsageError: the approvals cannot be read or written.
        """
        with self._alone():
            approval = self.of(charge.study_digest, run=charge.run)
            if approval is None:
                raise _not_approved(charge.study, charge.study_digest, charge.run)
            if approval.epsilon is not None:
                _require_within(approval.epsilon, approval.delta, spend, charge)
            if approval.run is None:
                taken = approval.model_copy(update={"run": charge.run})
                self._write([taken if found == approval else found for found in self._read()])

    def of(self, digest: str, *, run: str | None = None) -> Approval | None:
        """The approval of a study for this site's coordinator, if there is one.

        With `run`, the one that this run has, or may take.
        """
        found = [approval for approval in self.all() if approval.digest == digest]
        if run is not None:
            found = [approval for approval in found if approval.run in (run, None)]
            found.sort(key=lambda approval: approval.run is None)  # its own first
        return found[0] if found else None

    def all(self) -> tuple[Approval, ...]:
        """What is approved for this site's coordinator, the oldest first.

        Raises:
            UsageError: the file cannot be read.
        """
        return tuple(a for a in self._read() if a.coordinator == self._coordinator)

    def approve(self, study: Study, *, epsilon: float | None, delta: float, shown: str) -> Approval:
        """Note a person's consent to one run of a study, which no run has had so far.

        An earlier one that no run has taken is replaced: to agree twice is to agree once.

        Raises:
            UsageError: it cannot be written.
        """
        approval = Approval(
            digest=study.digest(),
            study=study.name,
            coordinator=self._coordinator,
            at=datetime.now(UTC),
            epsilon=epsilon,
            delta=delta,
            shown=shown,
        )
        with self._alone():
            others = self._others(approval.digest, only_untaken=True)
            self._write([*others, approval])
            self._pending_file(approval.digest).unlink(missing_ok=True)
        return approval

    def withdraw(self, digest: str) -> None:
        """Take consent back, for all runs: the study's next request is refused.

        What was paid stays paid.

        Raises:
            UsageError: there is none, or that it is withdrawn cannot be written.
        """
        with self._alone():
            if self.of(digest) is None:
                raise UsageError(
                    f"study {digest[:12]} is not approved",
                    why="there is no consent that could be withdrawn",
                    fix="look at `tacit site pending DIR`, which lists what is approved too",
                )
            self._write(self._others(digest))

    def pending(self) -> tuple[Study, ...]:
        """The studies that wait for a person, the oldest first.

        Raises:
            UsageError: a file is not the study that its name says.
        """
        with self._alone():
            return tuple(self._study_in(path) for path in self._pending_files())

    def named(self, prefix: str, *, digits: int = SHORTEST_PREFIX) -> str:
        """The one digest, waiting or approved, that begins with `prefix` of so many `digits`.

        Raises:
            UsageError: there is none, there are several, or the prefix is too short.
        """
        with self._alone():
            waiting = {path.stem for path in self._pending_files()}
        known = waiting | {approval.digest for approval in self.all()}
        found = sorted(digest for digest in known if digest.startswith(prefix))
        if len(prefix) >= digits and len(found) == 1:
            return found[0]
        raise UsageError(
            f"'{prefix}' names no single study",
            why=f"{len(found)} studies that wait or are approved begin so"
            if len(prefix) >= digits
            else f"it has fewer than {digits} digits",
            fix="give more of a digest that `tacit site pending DIR` lists",
        )

    def pending_study(self, digest: str) -> Study | None:
        """The waiting study of that digest, if there is one.

        Raises:
            UsageError: the file is not the study that its name says.
        """
        path = self._pending_file(digest)
        with self._alone():
            return self._study_in(path) if path.exists() else None

    # --- on disk -----------------------------------------------------------------------

    @property
    def _path(self) -> Path:
        return self._folder / APPROVALS_NAME

    def _pending_file(self, digest: str) -> Path:
        return self._folder / PENDING_NAME / f"{digest}.toml"

    def _pending_files(self) -> list[Path]:
        files = (self._folder / PENDING_NAME).glob("*.toml")
        return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def _note(self, study: Study, digest: str) -> None:
        """Keep a study for a person to look at, and let go of the oldest beyond a few."""
        text = tomli_w.dumps(study.model_dump(mode="json", exclude_none=True)).encode()
        if len(text) > LONGEST_STUDY:
            raise SiteRefusal(
                RefusalCode.APPROVAL,
                why=f"the study takes {len(text)} bytes, and nobody reads so much",
                fix=f"propose one of {LONGEST_STUDY} bytes at most",
            )
        with self._alone():
            if self._pending_file(digest).exists():
                return
            self._save(self._pending_file(digest), text)
            for stale in self._pending_files()[:-MOST_PENDING]:
                stale.unlink()

    def _study_in(self, path: Path) -> Study:
        try:
            study = Study.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError):
            study = None
        if study is None or study.digest() != path.stem:
            raise UsageError(
                f"'{PENDING_NAME}/{path.name}' is not the study that was asked for",
                why="the file is damaged, or somebody changed it",
                fix="delete it; it is written again when the coordinator asks again",
            )
        return study

    def _read(self) -> tuple[Approval, ...]:
        try:
            return _Approvals.model_validate_json(self._path.read_bytes()).approvals
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError):
            raise UsageError(
                f"'{APPROVALS_NAME}' cannot be read",
                why="it is damaged, or another version of Tacit wrote it",
                fix="restore it from a backup, or delete it and approve the studies again",
            ) from None

    def _others(self, digest: str, *, only_untaken: bool = False) -> list[Approval]:
        """All but those of a study, or all but the one of it that no run has taken."""
        own = (digest, self._coordinator)
        return [
            found
            for found in self._read()
            if (found.digest, found.coordinator) != own or (only_untaken and found.run is not None)
        ]

    def _write(self, approvals: list[Approval]) -> None:
        content = _Approvals(approvals=tuple(approvals))
        self._save(self._path, content.model_dump_json(indent=2).encode() + b"\n")

    def _save(self, path: Path, content: bytes) -> None:
        try:
            write_atomically(path, content)
        except OSError as error:
            raise _unwritable(path.name, error) from None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing approvals meanwhile."""
        try:
            lock = (self._folder / APPROVALS_NAME).with_suffix(".lock").open("w")
        except OSError as error:
            raise _unwritable(APPROVALS_NAME, error) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _not_approved(study: str, digest: str, run: str | None) -> SiteRefusal:
    which = "" if run is None else f" for run {run}" if run else " for another run"
    return SiteRefusal(
        RefusalCode.APPROVAL,
        why=f"nobody at the site has approved study '{study}', {digest[:SHOWN_DIGITS]}{which}",
        fix=f"run `tacit site approve DIR {digest[:SHOWN_DIGITS]}` if it shall take part",
    )


def _require_within(agreed: float, delta: float, spend: Spend, charge: Charge) -> None:
    for releases in spend.beyond_plan(charge):
        cost = epsilon(events_of(releases), delta, interval=REPORT_INTERVAL)
        if cost > agreed * _ROUNDING:
            raise SiteRefusal(
                RefusalCode.BUDGET,
                why=f"run {charge.run} would have paid ε = {cost:.4g} at δ = {delta:g}, and a "
                f"person agreed to {agreed:.4g}: it was asked for a round twice",
                fix="end the run, and agree to another one if it shall take part in that",
            )


def _unwritable(name: str, error: OSError) -> UsageError:
    return UsageError(
        f"'{name}' cannot be written",
        why=error.strerror or type(error).__name__,
        fix="check that the site's folder is there, is writable and has space",
    )
