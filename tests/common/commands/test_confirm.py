"""A card is accepted only by the fingerprint that somebody has compared."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from tacit_common.certificates import make_client_certificate
from tacit_common.commands.confirm import confirmed_card
from tacit_common.enrolment import SiteCard
from tacit_common.errors import IdentityError, UsageError
from tacit_common.identity import Identity

NODE_KEY = "ecdsa-sha2-nistp384 AAAA"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def card(tmp_path: Path) -> Path:
    certificate = make_client_certificate("clinic").certificate.decode()
    made = SiteCard.signed(
        Identity.create(), site="clinic", node_key=NODE_KEY, witness_certificate=certificate
    )
    made.write(tmp_path / "clinic.site.json")
    return tmp_path / "clinic.site.json"


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`at_a_terminal(answer)`: somebody sits there and types this."""

    def make(answer: str) -> None:
        monkeypatch.setattr("sys.stdin", Terminal(answer))

    return make


def test_the_fingerprint_that_was_read_out_is_enough(card: Path) -> None:
    read_out = SiteCard.model_validate_json(card.read_bytes()).fingerprint
    assert confirmed_card(card, f" {read_out.upper()} ").site == "clinic"


def test_another_fingerprint_is_refused_and_the_right_one_is_shown(card: Path) -> None:
    with pytest.raises(IdentityError, match="not the one that its operator has") as raised:
        confirmed_card(card, "0000-0000-0000-0000-0000")
    assert SiteCard.model_validate_json(card.read_bytes()).fingerprint in raised.value.why


def test_whoever_is_at_the_terminal_is_asked(
    card: Path, at_a_terminal: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    at_a_terminal("y\n")
    assert confirmed_card(card, None).site == "clinic"
    assert SiteCard.model_validate_json(card.read_bytes()).fingerprint in capsys.readouterr().out


def test_no_is_no(card: Path, at_a_terminal: Callable[[str], None]) -> None:
    at_a_terminal("n\n")
    with pytest.raises(typer.Abort):
        confirmed_card(card, None)


def test_without_a_terminal_nothing_is_taken_for_granted(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError, match="not confirmed"):
        confirmed_card(card, None)
