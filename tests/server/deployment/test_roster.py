"""Who may take part: one name and one key a site, genuine cards alone, and no stranger's node."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from tacit_common.enrolment import SiteCard
from tacit_common.errors import IdentityError, LinkError, UsageError
from tacit_common.flower.control import NodeState, node_public_key
from tacit_common.identity import Identity
from tacit_server.deployment.roster import Roster, register_all

MakeCard = Callable[..., SiteCard]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the roster is."""
    return tmp_path / "roster.json"


def header(card: SiteCard) -> str:
    return b64encode(node_public_key(card.node_key)).decode()


# --- the list --------------------------------------------------------------------------------


def test_an_accepted_site_is_found_by_its_name_and_its_node_key(
    path: Path, make_card: MakeCard
) -> None:
    roster, card = Roster(path), make_card("clinic")
    assert not roster.is_enrolled(header(card))
    roster.add(card)
    assert list(roster.sites) == ["clinic"]
    assert roster.by_node_key(node_public_key(card.node_key)) == card
    assert roster.is_enrolled(header(card))
    assert list(Roster(path).sites) == ["clinic"]


def test_a_stranger_s_key_is_nobody_s(path: Path, make_card: MakeCard) -> None:
    roster = Roster(path)
    roster.add(make_card("clinic"))
    assert not roster.is_enrolled(header(make_card("clinic")))
    assert roster.by_node_key(b"") is None


@pytest.mark.parametrize("said", ["", "not base64!", "é", "AAAA", "=" * 10, "A" * 1001])
def test_a_header_that_is_no_key_is_nobody_s(path: Path, make_card: MakeCard, said: str) -> None:
    roster = Roster(path)
    roster.add(make_card("clinic"))
    assert not roster.is_enrolled(said)


def test_a_card_that_was_changed_on_the_way_is_not_accepted(
    path: Path, make_card: MakeCard
) -> None:
    changed = make_card("clinic").model_copy(update={"site": "another"})
    with pytest.raises(IdentityError, match="changed on the way"):
        Roster(path).add(changed)
    assert not path.exists()


def test_a_node_key_that_flower_cannot_use_is_not_accepted(path: Path, make_card: MakeCard) -> None:
    with pytest.raises(IdentityError, match="node key cannot be used"):
        Roster(path).add(make_card("clinic", node_key="ecdsa-sha2-nistp384 AAAA"))


def test_the_same_card_twice_is_one_site(path: Path, make_card: MakeCard) -> None:
    roster, card = Roster(path), make_card("clinic")
    roster.add(card)
    first = roster.sites["clinic"]
    roster.add(card)
    assert roster.sites == {"clinic": first}


def rewritten(node_key: str) -> str:
    """The same key in other characters: the last ones hold bits that count for nothing."""
    kind, encoded = node_key.split()
    assert encoded.endswith("==")
    last = encoded[-3]
    other = chr(ord(last) + 1)
    assert b64decode(encoded) == b64decode(f"{encoded[:-3]}{other}==")
    return f"{kind} {encoded[:-3]}{other}== and a comment"


def test_two_sites_with_one_name_are_not_accepted(path: Path, make_card: MakeCard) -> None:
    roster = Roster(path)
    roster.add(make_card("clinic"))
    with pytest.raises(UsageError, match="the same name"):
        roster.add(make_card("clinic"))


def test_two_sites_with_one_signing_key_are_not_accepted(path: Path, make_card: MakeCard) -> None:
    roster, identity = Roster(path), Identity.create()
    roster.add(make_card("clinic", identity=identity))
    with pytest.raises(UsageError, match="the same signing key"):
        roster.add(make_card("clinic-2", identity=identity))
    assert list(roster.sites) == ["clinic"]


def test_a_site_that_names_another_s_node_key_as_its_own_is_not_accepted(
    path: Path, make_card: MakeCard
) -> None:
    """Else the other's node would count as its, and the other were shut out."""
    roster, card = Roster(path), make_card("clinic")
    roster.add(card)
    for same in (card.node_key, rewritten(card.node_key)):
        with pytest.raises(UsageError, match="the same node key"):
            roster.add(make_card("thief", node_key=same))
    assert roster.by_node_key(node_public_key(card.node_key)) == card


def test_a_site_is_shut_out_for_whoever_has_read_the_roster_before(
    path: Path, make_card: MakeCard
) -> None:
    """The gateway and the run's process hold a roster of their own."""
    card, other = make_card("clinic"), make_card("other")
    theirs, mine = Roster(path), Roster(path)
    for one in (card, other):
        mine.add(one)
    assert theirs.is_enrolled(header(card))
    assert mine.remove("clinic") == card
    assert not theirs.is_enrolled(header(card))
    assert theirs.is_enrolled(header(other))


def test_a_site_that_is_not_there_cannot_be_shut_out(path: Path, make_card: MakeCard) -> None:
    roster = Roster(path)
    roster.add(make_card("clinic"))
    with pytest.raises(UsageError, match="there is no site 'hospital'") as refused:
        roster.remove("hospital")
    assert "clinic" in refused.value.why


def test_sites_that_are_accepted_at_once_are_all_there(path: Path, make_card: MakeCard) -> None:
    cards = [make_card(f"clinic-{number}") for number in range(8)]
    threads = [Thread(target=Roster(path).add, args=(card,)) for card in cards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(Roster(path).sites) == [card.site for card in cards]


# --- a roster that somebody changed by hand ---------------------------------------------------


def content(path: Path) -> dict[str, list[dict[str, dict[str, str]]]]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("change", ["a key", "a name twice", "a key twice", "no roster", "empty"])
def test_a_roster_that_was_changed_by_hand_is_not_believed(
    path: Path, make_card: MakeCard, change: str
) -> None:
    roster, identity = Roster(path), Identity.create()
    roster.add(make_card("clinic", identity=identity))
    roster.add(make_card("other"))
    said = content(path)
    card = said["sites"][0]["card"]
    if change == "a key":
        card["public_key"] = "0" * 64
    elif change == "a name twice":
        said["sites"].append({**said["sites"][0], "card": make_card("clinic").model_dump()})
    elif change == "a key twice":
        twin = make_card("twin", identity=identity).model_dump()
        said["sites"].append({**said["sites"][0], "card": twin})
    path.write_text({"no roster": "[]", "empty": ""}.get(change, json.dumps(said)))
    for reader in (roster, Roster(path)):
        with pytest.raises(IdentityError):
            _ = reader.sites


def test_an_entry_that_was_taken_out_by_hand_is_out(path: Path, make_card: MakeCard) -> None:
    roster, card = Roster(path), make_card("clinic")
    roster.add(card)
    path.write_text(json.dumps({**content(path), "sites": []}))
    assert not roster.is_enrolled(header(card))
    path.unlink()
    assert roster.sites == {}


# --- the SuperLink's own list ---------------------------------------------------------------


class SuperLink:
    """What a SuperLink has of nodes."""

    def __init__(self) -> None:
        self.keys: dict[int, bytes] = {}
        self.spent: set[bytes] = set()  # it takes no key a second time
        self.names: list[str] = []
        self.slow = False

    def nodes(self) -> list[NodeState]:
        known = [NodeState(node, key, True, None) for node, key in self.keys.items()]
        if self.slow:  # somebody else registers what is asked for next
            self.slow = False
            return []
        return known

    def register_node(self, public_key: bytes, name: str) -> None:
        if public_key in self.spent or public_key in self.keys.values():
            raise IdentityError("it is registered already", why="", fix="")
        if name == "refused":
            raise IdentityError("it takes no such key", why="", fix="")
        self.names.append(name)
        self.keys[len(self.keys) + 1] = public_key

    def unregister_node(self, node_id: int) -> None:
        self.spent.add(self.keys.pop(node_id))


def registered(roster: Roster, superlink: SuperLink) -> list[str]:
    return register_all(roster, superlink)  # type: ignore[arg-type]


def test_the_superlink_lets_in_who_is_in_the_roster(path: Path, make_card: MakeCard) -> None:
    roster, superlink = Roster(path), SuperLink()
    card = make_card("clinic")
    roster.add(card)
    assert registered(roster, superlink) == ["clinic"]
    assert list(superlink.keys.values()) == [node_public_key(card.node_key)]
    assert registered(roster, superlink) == []


def test_a_node_that_a_stranger_registered_at_the_superlink_is_shut_out(
    path: Path, make_card: MakeCard
) -> None:
    roster, superlink = Roster(path), SuperLink()
    superlink.keys[7] = node_public_key(make_card("stranger").node_key)
    roster.add(make_card("clinic"))
    assert registered(roster, superlink) == ["clinic"]
    assert 7 not in superlink.keys


def test_a_site_that_was_removed_may_come_back_with_the_keys_that_it_has(
    path: Path, make_card: MakeCard
) -> None:
    """A SuperLink takes no key a second time, so this one is kept; the roster shuts it out."""
    roster, superlink, card = Roster(path), SuperLink(), make_card("clinic")
    roster.add(card)
    registered(roster, superlink)
    roster.remove("clinic")
    assert registered(roster, superlink) == []
    assert not roster.is_enrolled(header(card))
    assert Roster(path).former_node_keys == {node_public_key(card.node_key)}
    roster.add(card)
    assert registered(roster, superlink) == []
    assert roster.is_enrolled(header(card))
    assert Roster(path).former_node_keys == frozenset()
    assert superlink.spent == set()


def test_a_site_that_another_process_registers_at_the_same_moment_is_no_mishap(
    path: Path, make_card: MakeCard
) -> None:
    roster, superlink = Roster(path), SuperLink()
    roster.add(make_card("clinic"))
    registered(roster, superlink)
    superlink.slow = True
    assert registered(roster, superlink) == []


def test_a_key_that_the_superlink_does_not_take_is_an_error_that_shuts_no_other_site_out(
    path: Path, make_card: MakeCard
) -> None:
    roster, superlink = Roster(path), SuperLink()
    for name in ("a", "refused", "z"):
        roster.add(make_card(name))
    with pytest.raises(IdentityError, match="no such key"):
        registered(roster, superlink)
    assert superlink.names == ["a", "z"]


def test_a_superlink_that_is_away_is_an_error(path: Path) -> None:
    class Away(SuperLink):
        def nodes(self) -> list[NodeState]:
            raise LinkError("the SuperLink cannot be reached", why="", fix="")

    with pytest.raises(LinkError):
        registered(Roster(path), Away())
