"""`tacit witness init | admit | log`: what an operator types, and what is answered."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tacit_common.certificates import make_client_certificate
from tacit_common.cli import run_command
from tacit_common.countersign import read_witness_card
from tacit_common.enrolment import SiteCard
from tacit_common.errors import LedgerError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import SignedHead
from tacit_server.witness.book import Book
from tacit_server.witness.cli import witness_app
from tacit_server.witness.folder import WitnessFolder

INIT = ("--address", "witness.example.org:9446")


def run(*arguments: object) -> int:
    return run_command(lambda: witness_app(list(map(str, arguments)), standalone_mode=False))


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A new witness."""
    assert run("init", tmp_path / "witness", *INIT) == 0
    capsys.readouterr()
    return tmp_path / "witness"


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A site's card, as it sent it."""
    made = SiteCard.signed(
        Identity.create(),
        site="a",
        node_key="ecdsa-sha2-nistp384 AAAA",
        witness_certificate=make_client_certificate("a").certificate.decode(),
    )
    made.write(tmp_path / "a.site.json")
    return tmp_path / "a.site.json"


def test_init_says_what_to_do_next_and_what_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("init", tmp_path / "witness", *INIT) == 0
    out = capsys.readouterr().out
    made = WitnessFolder.open(tmp_path / "witness")
    assert read_witness_card(made.card_file).fingerprint in out
    assert f"tacit witness run {made.path}" in out
    config = made.config()
    assert (config.listen, config.health_address) == ("0.0.0.0:9446", "127.0.0.1:9447")


@pytest.mark.parametrize(
    "options",
    [
        ("--address", "witness.example.org"),
        ("--address", "witness.example.org:0"),
        ("--address", "witness.example.org:70000"),
        (*INIT, "--name", "Not A Name"),
        (*INIT, "--health", "9447"),
    ],
)
def test_init_with_options_that_make_no_witness_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert run("init", tmp_path / "witness", *options) == 2
    assert capsys.readouterr().err.startswith("error: these options make no witness\n  why: '")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_an_operator_broke_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder / "witness.toml"
    config.write_text(config.read_text().replace("listen =", "listens ="))
    assert run("run", folder) == 2
    assert "did you mean 'listen'" in capsys.readouterr().err


def test_a_card_is_admitted_by_its_fingerprint_and_log_shows_it(
    folder: Path, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("log", folder) == 0
    assert "no site is admitted yet" in capsys.readouterr().out
    read_out = SiteCard.model_validate_json(card.read_text()).fingerprint
    assert run("admit", folder, card, "--fingerprint", read_out) == 0
    capsys.readouterr()
    assert run("log", folder) == 0
    assert capsys.readouterr().out.startswith("a  no head yet  certificate until ")


def test_a_card_that_was_changed_is_not_admitted(
    folder: Path, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card.write_text(card.read_text().replace('"site": "a"', '"site": "b"'))
    assert run("admit", folder, card) == 1
    assert "cannot be trusted" in capsys.readouterr().err
    assert list((folder / "admitted").iterdir()) == []


@pytest.mark.parametrize("command", ["admit", "run", "log"])
def test_another_folder_is_no_witness_and_stays_as_it_is(
    tmp_path: Path, card: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    arguments = (card,) if command == "admit" else ()
    assert run(command, tmp_path / "other", *arguments) == 2
    assert "is not a witness's folder" in capsys.readouterr().err
    assert list((tmp_path / "other").iterdir()) == []


def test_log_shows_heads_and_the_proof_of_a_fork(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    heads_of: Callable[..., list[SignedHead]],
) -> None:
    honest, forked = heads_of("a", 2)[1], heads_of("a", 2, fork="x")[1]
    with closing(Book(folder / "heads.db")) as book:
        book.observe(honest)
        with pytest.raises(LedgerError):
            book.observe(forked)
    assert run("log", folder) == 0
    out = capsys.readouterr().out
    assert f"a  row 1  {honest.hash[:16]}…" in out
    assert "not admitted" in out
    assert "FORK  a signed two rows 1" in out
    assert honest.hash in out
    assert forked.hash in out
    assert run("log", folder, "--json") == 0
    (fork,) = json.loads(capsys.readouterr().out)["forks"]
    assert [SignedHead.model_validate(fork[key]) for key in ("first", "second")] == [honest, forked]
