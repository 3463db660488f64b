"""The rows of a site's ledger, and how anybody can check them without the site.

    GENESIS   who the site is
    ATOM      a set of units that were always used together, by name; no tag, no count
    RESERVE   a cost, paid before any record is read
    COMMIT    the answer is on disk and may leave
    VOID      what was reserved gave no answer but a code, or a run's rest is given up

Each row is chained to the one before by hash and signed by the site. The signature of a
row is the signed head of the ledger at that row. A row's meaning never changes: a new
meaning is a new kind, or a new `format`.
"""

import hashlib
import json
from collections.abc import Container, Iterable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tacit_common.errors import LedgerError, UsageError
from tacit_common.identity import Identity, is_signed
from tacit_common.privacy.events import PrivacyEvent

FORMAT: Literal[2] = 2
NO_PREDECESSOR = "0" * 64

_HEAD = "ledger head"  # the domain of signatures over heads

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
RowKind = Literal["GENESIS", "ATOM", "RESERVE", "COMMIT", "VOID"]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- payloads --------------------------------------------------------------------------


class Genesis(_Row):
    """The first row: whose ledger this is."""

    format: Literal[2] = FORMAT
    site: str
    public_key: Hex64


class Atom(_Row):
    """Units of the site's data that every run so far used together or not at all.

    An atom that was cut in two has two children, which inherit all that it was charged.
    """

    atom: str = Field(description="Its name in this ledger: 'a0', 'a1', …")
    lineage: str = Field(description="What the operator calls the data set it came from.")
    parents: tuple[str, ...] = Field(description="The atom that it is a part of, if it is one.")
    tags_sha256: Hex64 = Field(description="Of its sorted secret tags: fixes which units it holds.")


class Cap(_Row):
    """The site's bound on everything ever released of one atom."""

    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)


class Charge(_Row):
    """What one request costs, and on whose behalf: the payload of a RESERVE."""

    key: str = Field(description="Identity of the request (RoundPlan.key, ProbePlan.key).")
    run: str
    study: str = Field(description="The study's name.")
    study_digest: Hex64
    action: Literal["train", "probe", "audit"]
    label: str = Field(description="'round 3' or 'probe 0 before'.")
    unit: Literal["record", "subject"] | None = Field(
        description="What the event's figures are about; None without DP."
    )
    event: PrivacyEvent
    planned: tuple[PrivacyEvent, ...] = Field(
        description="Everything that the whole study releases at this site, fixed before its "
        "first release."
    )
    atoms: tuple[str, ...] = Field(min_length=1, description="The atoms that it touches.")
    cap: Cap | None = Field(description="The cap that it was admitted under; None without DP.")

    @property
    def block(self) -> tuple[str, str]:
        """The plan that this charge is a part of."""
        return self.run, self.study_digest


class Commit(_Row):
    """The answer to a reserved request is on disk and may leave."""

    key: str


class Void(_Row):
    """No answer with content will ever leave: nothing is refunded.

    With `key`: the work of that reserve failed. With `run`: the rest of that run's plan is
    given up, and no longer held ready.
    """

    key: str | None = None
    run: str | None = None


Payload = Genesis | Atom | Charge | Commit | Void
_PAYLOADS: dict[str, type[Payload]] = {
    "GENESIS": Genesis,
    "ATOM": Atom,
    "RESERVE": Charge,
    "COMMIT": Commit,
    "VOID": Void,
}


# --- rows ------------------------------------------------------------------------------


class Entry(_Row):
    """One row. `payload` is canonical JSON: a payload above, and `at`, when it was written."""

    seq: int = Field(ge=0)
    kind: RowKind
    payload: str
    prev: Hex64
    hash: Hex64
    sig: Signature

    def parsed(self) -> Payload:
        """The payload.

        Raises:
            LedgerError: this version does not know it, so it cannot tell what it costs.
        """
        try:
            content = json.loads(self.payload)
            content.pop("at")
            return _PAYLOADS[self.kind].model_validate(content)
        except (ValueError, KeyError, AttributeError, TypeError, ValidationError):
            raise LedgerError(
                f"the ledger cannot be understood at row {self.seq}",
                why=f"it holds a {self.kind} that this version does not know",
                fix="use the version of Tacit that wrote it, or a newer one",
            ) from None


class SignedHead(_Row):
    """Where a ledger stood, in the site's own words."""

    site: str
    public_key: Hex64
    seq: int = Field(ge=0, lt=2**63)
    hash: Hex64
    signature: Signature

    def is_genuine(self) -> bool:
        """Whether the holder of `public_key` signed it."""
        message = _head_message(self.site, self.seq, self.hash)
        return is_signed(self.public_key, _HEAD, message, self.signature)


def next_entry(
    previous: Entry | None, payload: Payload, *, at: str, site: str, identity: Identity
) -> Entry:
    """The row that follows `previous`, chained and signed. `at` is an ISO 8601 time."""
    kind = next(kind for kind, known in _PAYLOADS.items() if isinstance(payload, known))
    seq, prev = (0, NO_PREDECESSOR) if previous is None else (previous.seq + 1, previous.hash)
    text = json.dumps(
        {"at": at, **payload.model_dump(mode="json")}, sort_keys=True, separators=(",", ":")
    )
    row_hash = _row_hash(seq, kind, text, prev)
    signature = identity.sign(_HEAD, _head_message(site, seq, row_hash))
    return Entry(seq=seq, kind=kind, payload=text, prev=prev, hash=row_hash, sig=signature)


def follows(entry: Entry, previous: Entry | None) -> bool:
    """Whether `entry` is chained to `previous` (None: is the first row). Not its signature."""
    seq, prev = (0, NO_PREDECESSOR) if previous is None else (previous.seq + 1, previous.hash)
    expected = _row_hash(seq, entry.kind, entry.payload, prev)
    return (entry.seq, entry.prev, entry.hash) == (seq, prev, expected)


def head_of(entry: Entry, genesis: Genesis) -> SignedHead:
    """The signed head of a ledger whose last row is `entry`."""
    return SignedHead(
        site=genesis.site,
        public_key=genesis.public_key,
        seq=entry.seq,
        hash=entry.hash,
        signature=entry.sig,
    )


def _row_hash(seq: int, kind: str, payload: str, prev: str) -> str:
    return hashlib.sha256(f"{prev}\n{seq}\n{kind}\n{payload}".encode()).hexdigest()


def _head_message(site: str, seq: int, row_hash: str) -> bytes:
    return f"{site}\n{seq}\n{row_hash}".encode()


# --- a whole ledger, outside its site ----------------------------------------------------


class LedgerExport(_Row):
    """All rows of a ledger, for whoever verifies a report. Holds no tag and no count."""

    format: Literal[2] = FORMAT
    rows: tuple[Entry, ...] = Field(min_length=1)


class VerifiedLedger(_Row):
    """What a sound chain of rows says."""

    genesis: Genesis
    head: SignedHead
    atoms: tuple[Atom, ...]
    charges: tuple[Charge, ...]
    committed: frozenset[str] = Field(description="Keys of answers that may have left.")
    voided: frozenset[str] = Field(description="Keys whose work failed.")
    closed_runs: frozenset[str]


def verify_rows(rows: Sequence[Entry]) -> VerifiedLedger:
    """Check every hash and every signature of a ledger.

    Raises:
        LedgerError: the rows are not a chain that one site wrote and signed.
    """
    genesis = rows[0].parsed() if rows else None
    if not isinstance(genesis, Genesis):
        raise _broken(None, 0, "a ledger begins with a GENESIS")
    previous: Entry | None = None
    for row in rows:
        if not follows(row, previous):
            raise _broken(genesis.site, row.seq, "a row does not follow from the one before it")
        if not head_of(row, genesis).is_genuine():
            raise _broken(genesis.site, row.seq, "a row is not signed by the site")
        previous = row
    return _read(genesis, rows)


def parse_export(text: str, *, source: str) -> LedgerExport:
    """Read what `LedgerExport.model_dump_json` wrote.

    Raises:
        UsageError: it is not an export of this version.
    """
    try:
        return _EXPORT.validate_json(text)
    except ValidationError:
        raise UsageError(
            f"'{source}' is not a ledger's export",
            why="it does not have the fields of one, or was written by another version",
            fix="make it with: tacit site budget FOLDER --export FILE",
        ) from None


_EXPORT: TypeAdapter[LedgerExport] = TypeAdapter(LedgerExport)


def _read(genesis: Genesis, rows: Sequence[Entry]) -> VerifiedLedger:
    atoms: dict[str, Atom] = {}
    charges: dict[str, Charge] = {}
    committed: set[str] = set()
    voided: set[str] = set()
    closed: set[str] = set()

    def require_known(names: Iterable[str], known: Container[str], seq: int) -> None:
        if not all(name in known for name in names):
            raise _broken(genesis.site, seq, "it speaks of something that no earlier row names")

    for row in rows[1:]:
        match row.parsed():
            case Genesis():
                raise _broken(genesis.site, row.seq, "a ledger has one GENESIS")
            case Atom() as atom:
                require_known(atom.parents, atoms, row.seq)
                atoms[atom.atom] = atom
            case Charge() as charge:
                if charge.key in charges:
                    raise _broken(genesis.site, row.seq, "a request is paid for twice")
                require_known(charge.atoms, atoms, row.seq)
                charges[charge.key] = charge
            case Commit(key=key):
                require_known([key], charges, row.seq)
                committed.add(key)
            case Void(key=voided_key, run=run):
                if voided_key is not None:
                    require_known([voided_key], charges, row.seq)
                    voided.add(voided_key)
                if run is not None:
                    closed.add(run)
    return VerifiedLedger(
        genesis=genesis,
        head=head_of(rows[-1], genesis),
        atoms=tuple(atoms.values()),
        charges=tuple(charges.values()),
        committed=frozenset(committed),
        voided=frozenset(voided),
        closed_runs=frozenset(closed),
    )


def _broken(site: str | None, seq: int, why: str) -> LedgerError:
    whose = "the ledger" if site is None else f"the ledger of '{site}'"
    return LedgerError(
        f"{whose} is damaged at row {seq}",
        why=why,
        fix="restore the ledger from a backup; do not delete it: what was spent stays spent",
    )
