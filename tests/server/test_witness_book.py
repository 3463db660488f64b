"""A witness's book forgets nothing: not in another process, not after an end without warning."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tacit_common.errors import LedgerError
from tacit_common.ledger_chain import SignedHead
from tacit_server.witness.book import Book

HeadsOf = Callable[..., list[SignedHead]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heads.db"


@pytest.fixture
def book(path: Path) -> Iterator[Book]:
    with closing(Book.create(path)) as made:
        yield made


def newest(book: Book, site: str) -> SignedHead | None:
    seen = book.newest(site)
    return None if seen is None else seen.head


def test_the_newest_head_of_each_site_is_kept(book: Book, heads_of: HeadsOf) -> None:
    assert newest(book, "a") is None
    for head in [*heads_of("a", 3), heads_of("b", 1)[0]]:
        book.observe(head)
        book.observe(head)  # the same word twice is no news
    assert newest(book, "a") == heads_of("a", 3)[2]
    assert newest(book, "b") == heads_of("b", 1)[0]
    assert book.sites() == ["a", "b"]
    assert book.forks() == []


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(
    ("attack", "why"),
    [
        ("rollback", "rolled back"),
        ("fork", "forked"),
        ("older fork", "rolled back"),
        ("forged", "not signed"),
        ("key", "another key than before"),
        ("second name", "signs the ledger of another site"),
    ],
)
def test_a_head_that_does_not_follow_is_refused_also_after_a_restart(
    path: Path, book: Book, heads_of: HeadsOf, attack: str, why: str, restarted: bool
) -> None:
    good = heads_of("a", 3)
    for head in good:
        book.observe(head)
    bad = {
        "rollback": good[1],
        "fork": heads_of("a", 3, fork="x")[2],
        "older fork": heads_of("a", 3, fork="x")[1],
        "forged": good[2].model_copy(update={"seq": 9}),
        "key": heads_of("a", 4, signer="b")[3],
        "second name": heads_of("c", 1, signer="a")[0],
    }[attack]
    with closing(Book(path)) as again, pytest.raises(LedgerError, match=why):
        (again if restarted else book).observe(bad)
    assert newest(book, "a") == good[2]
    assert book.newest("c") is None


@pytest.mark.parametrize("row", [1, 2])
def test_a_fork_is_kept_as_proof_whichever_row_it_shows(
    path: Path, book: Book, heads_of: HeadsOf, row: int
) -> None:
    honest, forked = heads_of("a", 3), heads_of("a", 3, fork="x")
    for head in honest:
        book.observe(head)
    with pytest.raises(LedgerError):
        book.observe(forked[row])
    with closing(Book(path)) as again:
        (fork,) = again.forks()
    assert (fork.first, fork.second) == (honest[row], forked[row])
    assert fork.is_proof()


def test_nobody_but_the_site_can_make_evidence_against_it(book: Book, heads_of: HeadsOf) -> None:
    honest = heads_of("a", 3)
    for head in honest:
        book.observe(head)
    forged = honest[2].model_copy(update={"hash": "0" * 64})
    of_another = heads_of("a", 3, fork="x", signer="b")[2]
    for head in (forged, of_another):
        with pytest.raises(LedgerError):
            book.observe(head)
    assert book.forks() == []


def test_a_rollback_alone_is_no_proof_of_a_fork(book: Book, heads_of: HeadsOf) -> None:
    honest = heads_of("a", 3)
    for head in honest:
        book.observe(head)
    with pytest.raises(LedgerError, match="rolled back"):
        book.observe(honest[0])
    assert book.forks() == []


def test_of_eight_histories_that_race_one_is_accepted(path: Path, heads_of: HeadsOf) -> None:
    Book.create(path).close()
    sites = [f"site-{number}" for number in range(10)]
    forks = {site: [heads_of(site, 2, fork=f"{n}")[1] for n in range(8)] for site in sites}
    books = [Book(path) for _ in range(8)]  # as of eight processes

    def accepted(number: int) -> list[str]:
        taken = []
        for site in sites:
            with suppress(LedgerError):
                books[number].observe(forks[site][number])
                taken.append(site)
        return taken

    with ThreadPoolExecutor(8) as pool:
        winners = [site for taken in pool.map(accepted, range(8)) for site in taken]
    assert sorted(winners) == sites
    for site in sites:
        assert len({newest(book, site) for book in books}) == 1
    assert [fork.first.site for fork in books[0].forks()] == sites
    for book in books:
        book.close()


@pytest.mark.parametrize("content", [None, b"", b"no database at all, but some text"])
def test_a_book_that_is_lost_is_never_begun_anew_in_silence(
    path: Path, content: bytes | None
) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LedgerError, match="rollbacks go unnoticed"):
        Book(path)
    assert path.exists() == (content is not None)


def test_create_keeps_what_is_there(path: Path, book: Book, heads_of: HeadsOf) -> None:
    book.observe(heads_of("a", 1)[0])
    with closing(Book.create(path)) as again:
        assert newest(again, "a") == heads_of("a", 1)[0]


def test_a_book_that_cannot_be_written_says_so(path: Path, book: Book) -> None:
    book.require_writable()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("DROP TABLE forks")
    with pytest.raises(sqlite3.Error):
        book.require_writable()


def test_kill_minus_9_after_a_head_was_accepted_forgets_nothing(
    path: Path, heads_of: HeadsOf
) -> None:
    Book.create(path).close()
    heads = heads_of("a", 6)
    program = """
import os, signal, sys
from pathlib import Path
from tacit_common.ledger_chain import SignedHead
from tacit_server.witness.book import Book
book = Book(Path(sys.argv[1]))
for line in sys.stdin:
    book.observe(SignedHead.model_validate_json(line))
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        input="".join(f"{head.model_dump_json()}\n" for head in heads),
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert killed.returncode == -9
    with closing(Book(path)) as again:
        assert newest(again, "a") == heads[-1]
        with pytest.raises(LedgerError, match="rolled back"):
            again.observe(heads[-2])
