"""The chain: a row follows from the one before, and a ledger is checked without its site."""

import hashlib
import json
from collections.abc import Callable

import pytest

from tacit_common.errors import LedgerError, UsageError
from tacit_common.identity import Identity, is_signed
from tacit_common.ledger_chain import (
    NO_PREDECESSOR,
    Atom,
    Cap,
    Charge,
    Commit,
    Entry,
    Genesis,
    LedgerExport,
    Payload,
    Void,
    follows,
    head_of,
    next_entry,
    parse_export,
    verify_rows,
)
from tacit_common.privacy.events import GaussianRelease, PrivacyEvent

SITE = "site-0"
RELEASE: PrivacyEvent = GaussianRelease(noise_multiplier=3.0)
IDENTITY = Identity.create()


def charge(key: str, **changed: object) -> Charge:
    fields: dict[str, object] = {
        "key": key,
        "run": "run",
        "study": "study",
        "study_digest": "d" * 64,
        "action": "probe",
        "label": key,
        "unit": "record",
        "event": RELEASE,
        "planned": (RELEASE,),
        "atoms": ("a0",),
        "cap": Cap(epsilon=1.0, delta=1e-5),
    }
    return Charge.model_validate({**fields, **changed})


def atom(name: str, *parents: str) -> Atom:
    return Atom(atom=name, lineage="scans", parents=parents, tags_sha256="e" * 64)


def genesis(identity: Identity = IDENTITY) -> Genesis:
    return Genesis(site=SITE, public_key=identity.public_key)


EVERYTHING: list[Payload] = [
    genesis(),
    atom("a0"),
    charge("first"),
    Commit(key="first"),
    charge("second"),
    Void(key="second"),
    Void(run="run"),
]


def chain(payloads: list[Payload], identity: Identity = IDENTITY) -> list[Entry]:
    rows: list[Entry] = []
    for payload in payloads:
        last = rows[-1] if rows else None
        rows.append(next_entry(last, payload, at="2026-01-01", site=SITE, identity=identity))
    return rows


def test_a_sound_chain_says_what_was_written() -> None:
    rows = chain(EVERYTHING)
    ledger = verify_rows(rows)
    assert ledger.genesis == genesis()
    assert ledger.atoms == (atom("a0"),)
    assert ledger.charges == (charge("first"), charge("second"))
    assert ledger.committed == {"first"}
    assert ledger.voided == {"second"}
    assert ledger.closed_runs == {"run"}
    assert ledger.head == head_of(rows[-1], genesis())
    assert [row.parsed() for row in rows] == EVERYTHING


def test_a_hash_is_sha_256_of_what_the_row_says_and_of_the_one_before() -> None:
    first, second = chain(EVERYTHING[:2])
    text = f"{first.hash}\n1\nATOM\n{second.payload}"
    assert second.hash == hashlib.sha256(text.encode()).hexdigest()
    assert first.prev == NO_PREDECESSOR
    message = f"{SITE}\n1\n{second.hash}".encode()
    assert is_signed(IDENTITY.public_key, "ledger head", message, second.sig)


@pytest.mark.parametrize("column", ["seq", "kind", "payload", "prev", "hash", "sig"])
@pytest.mark.parametrize("number", range(len(EVERYTHING)))
def test_every_column_of_every_kind_of_row_is_protected(number: int, column: str) -> None:
    rows = chain(EVERYTHING)
    row = rows[number]
    changed = {
        "seq": row.seq + 1,
        "kind": "VOID" if row.kind == "COMMIT" else "COMMIT",
        "payload": row.payload.replace("2026", "2027"),
        "prev": "1" * 64,
        "hash": "1" * 64,
        "sig": "1" * 128,
    }[column]
    rows[number] = row.model_copy(update={column: changed})
    with pytest.raises(LedgerError, match="at row"):
        verify_rows(rows)


@pytest.mark.parametrize(
    "attack",
    [
        lambda rows: rows[:3] + rows[4:],  # a row is left out
        lambda rows: [*rows[:2], rows[3], rows[2], *rows[4:]],  # two change places
        lambda rows: [*rows, rows[-1]],  # one twice
        lambda rows: rows[1:],  # no beginning
        lambda _: [],
    ],
    ids=["gap", "order", "repeat", "headless", "empty"],
)
def test_rows_cannot_be_left_out_moved_or_repeated(
    attack: Callable[[list[Entry]], list[Entry]],
) -> None:
    with pytest.raises(LedgerError, match="damaged"):
        verify_rows(attack(chain(EVERYTHING)))


def test_a_truncated_tail_is_a_chain_that_ends_earlier_which_a_witnessed_head_shows() -> None:
    rows = chain(EVERYTHING)
    witnessed = head_of(rows[-1], genesis())
    assert verify_rows(rows[:-2]).head.seq == witnessed.seq - 2


def test_a_chain_that_another_key_signed_again_is_not_the_sites() -> None:
    thief = Identity.create()
    with pytest.raises(LedgerError, match="not signed by the site"):
        verify_rows(chain(EVERYTHING, thief))


def test_rows_of_two_sites_do_not_mix() -> None:
    other = Identity.create()
    theirs = chain([genesis(other), *EVERYTHING[1:]], other)
    with pytest.raises(LedgerError, match="damaged at row 3"):
        verify_rows([*chain(EVERYTHING)[:3], *theirs[3:]])


@pytest.mark.parametrize(
    "payloads",
    [
        [genesis(), genesis()],
        [genesis(), charge("a")],
        [genesis(), atom("a1", "a0")],
        [genesis(), atom("a0"), charge("a"), charge("a")],
        [genesis(), Commit(key="a")],
        [genesis(), Void(key="a")],
        [atom("a0")],
    ],
    ids=["two sites", "no atom", "no parent", "paid twice", "free", "void of nothing", "no site"],
)
def test_rows_that_contradict_each_other_are_refused_although_signed(
    payloads: list[Payload],
) -> None:
    with pytest.raises(LedgerError, match="damaged"):
        verify_rows(chain(payloads))


def test_a_row_that_is_not_known_is_refused_and_never_free() -> None:
    row = chain(EVERYTHING)[2]
    unknown = row.model_copy(update={"payload": row.payload.replace("gaussian", "laplace")})
    with pytest.raises(LedgerError, match="cannot be understood at row 2"):
        unknown.parsed()


def test_a_head_is_genuine_for_its_site_row_and_hash_alone() -> None:
    head = head_of(chain(EVERYTHING)[-1], genesis())
    assert head.is_genuine()
    for field, value in {
        "site": "another",
        "seq": head.seq + 1,
        "hash": "0" * 64,
        "signature": "0" * 128,
        "public_key": Identity.create().public_key,
    }.items():
        assert not head.model_copy(update={field: value}).is_genuine(), field


def test_follows_is_true_of_neighbours_alone() -> None:
    rows = chain(EVERYTHING)
    for i, row in enumerate(rows):
        assert [follows(row, before) for before in [None, *rows]] == [
            j == i for j in range(len(rows) + 1)
        ]


def test_an_export_is_read_back_as_it_was_written() -> None:
    export = LedgerExport(rows=tuple(chain(EVERYTHING)))
    assert parse_export(export.model_dump_json(), source="x") == export


@pytest.mark.parametrize("text", ["", "{}", '{"rows": []}', '{"rows": [{}]}'])
def test_a_file_that_is_no_export_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a ledger's export"):
        parse_export(text, source="x")


def test_a_payload_is_canonical_json() -> None:
    for row in chain(EVERYTHING):
        content = json.loads(row.payload)
        assert json.dumps(content, sort_keys=True, separators=(",", ":")) == row.payload
