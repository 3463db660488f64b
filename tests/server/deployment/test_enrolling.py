"""Letting a site in and shutting it out, whether or not the SuperLink is there to be told."""

from base64 import b64encode
from collections.abc import Callable

import pytest

from tacit_common.enrolment import SiteCard
from tacit_common.errors import IdentityError, LinkError, UsageError
from tacit_common.flower.control import NodeState, node_public_key
from tacit_server.deployment import enrolling as module
from tacit_server.deployment.enrolling import enroll, remove
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.roster import Roster

MakeCard = Callable[..., SiteCard]


def header(card: SiteCard) -> str:
    return b64encode(node_public_key(card.node_key)).decode()


class Control:
    """A SuperLink."""

    keys: dict[bytes, str]

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None: ...

    def nodes(self) -> list[NodeState]:
        return [NodeState(n, key, True, None) for n, key in enumerate(self.keys)]

    def register_node(self, public_key: bytes, name: str) -> None:
        self.keys[public_key] = name

    def unregister_node(self, node_id: int) -> None:
        del self.keys[list(self.keys)[node_id]]


class Away(Control):
    """One that is not running."""

    def nodes(self) -> list[NodeState]:
        raise LinkError("the SuperLink cannot be reached", why="", fix="")


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> type[Control]:
    """The SuperLink that is told."""
    made = type("Control", (Control,), {"keys": {}})
    monkeypatch.setattr(module, "Control", made)
    return made


def test_a_site_that_is_enrolled_is_in_the_roster_and_at_the_superlink(
    coordinator: ServerFolder, make_card: MakeCard, superlink: type[Control]
) -> None:
    card = make_card("clinic")
    assert enroll(coordinator, card)
    assert list(Roster(coordinator.roster).sites) == ["clinic"]
    assert superlink.keys == {node_public_key(card.node_key): "clinic"}
    remove(coordinator, "clinic")
    assert Roster(coordinator.roster).sites == {}
    assert not Roster(coordinator.roster).is_enrolled(header(card))
    assert enroll(coordinator, card)  # and it may come back
    assert Roster(coordinator.roster).is_enrolled(header(card))


def test_while_the_server_is_away_sites_are_enrolled_and_removed_all_the_same(
    coordinator: ServerFolder, make_card: MakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Control", Away)
    assert not enroll(coordinator, make_card("clinic"))
    assert list(Roster(coordinator.roster).sites) == ["clinic"]
    remove(coordinator, "clinic")
    assert Roster(coordinator.roster).sites == {}


def test_a_card_that_was_changed_on_the_way_is_told_to_nobody(
    coordinator: ServerFolder, make_card: MakeCard, superlink: type[Control]
) -> None:
    changed = make_card("clinic").model_copy(update={"site": "another"})
    with pytest.raises(IdentityError):
        enroll(coordinator, changed)
    assert superlink.keys == {}


def test_a_site_that_was_never_enrolled_cannot_be_removed(
    coordinator: ServerFolder, superlink: type[Control]
) -> None:
    with pytest.raises(UsageError, match="there is no site"):
        remove(coordinator, "clinic")
