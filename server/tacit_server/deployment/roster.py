"""Who takes part: the sites whose keys a person at the coordinator has accepted."""

import fcntl
import json
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tacit_common.enrolment import SiteCard
from tacit_common.errors import IdentityError, UsageError
from tacit_common.files import write_atomically
from tacit_common.flower.control import Control, node_public_key


class Enrolled(BaseModel):
    """One accepted site."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    card: SiteCard
    at: datetime = Field(description="When a person accepted it.")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    sites: tuple[Enrolled, ...] = ()
    former_node_keys: tuple[str, ...] = Field(
        default=(), description="Of sites that were removed, which may come back."
    )


class Roster:
    """The accepted sites, in a file that is read anew whenever it has changed.

    Raises:
        IdentityError: the file cannot be trusted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at: tuple[int, int] | None = None
        self._sites: dict[str, Enrolled] = {}
        self._former: tuple[str, ...] = ()
        self._by_node_key: dict[bytes, SiteCard] = {}

    @property
    def sites(self) -> dict[str, Enrolled]:
        """Name to site, by name."""
        self._catch_up()
        return dict(sorted(self._sites.items()))

    @property
    def former_node_keys(self) -> frozenset[bytes]:
        """Node keys of sites that were removed.

        They stay known to the SuperLink, which takes no key a second time. The gateway lets
        nothing of them through, and no run speaks to them.
        """
        self._catch_up()
        return frozenset(node_public_key(key) for key in self._former)

    def by_node_key(self, public_key: bytes) -> SiteCard | None:
        """The site that authenticates to Flower with this key."""
        self._catch_up()
        return self._by_node_key.get(public_key)

    def is_enrolled(self, public_key_header: str) -> bool:
        """Whether a request's node key, in base64 as Flower sends it, is an accepted site's."""
        try:
            key = b64decode(public_key_header, validate=True)
        except ValueError:
            return False
        return self.by_node_key(key) is not None

    def add(self, card: SiteCard) -> None:
        """Accept a site.

        Raises:
            IdentityError: its card is not genuine.
            UsageError: the name or one of the keys is another site's.
        """
        card.require_genuine()
        node_public_key(card.node_key)  # raises if Flower cannot use it
        with self._locked():
            for other in self.sites.values():
                if other.card == card:
                    return
                if shared := _shared(card, other.card):
                    raise UsageError(
                        f"'{card.site}' cannot be enrolled",
                        why=f"'{other.card.site}' is enrolled with the same {shared}",
                        fix="remove the old entry first, if the site has new keys: what it spent "
                        "under the old ones stays spent",
                    )
            accepted = Enrolled(card=card, at=datetime.now(UTC))
            former = [key for key in self._former if not _same_key(key, card.node_key)]
            self._write([*self.sites.values(), accepted], former)

    def remove(self, site: str) -> SiteCard:
        """Take a site off the list; returns its card.

        Raises:
            UsageError: there is no such site.
        """
        with self._locked():
            sites = self.sites
            if site not in sites:
                raise UsageError(
                    f"there is no site '{site}'",
                    why=f"enrolled are: {', '.join(sites) or 'none'}",
                    fix="give the name of an enrolled site",
                )
            gone = sites.pop(site)
            self._write(list(sites.values()), [*self._former, gone.card.node_key])
            return gone.card

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two people who enroll sites at once wait for each other, so that none is lost."""
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, sites: Sequence[Enrolled], former: Sequence[str]) -> None:
        file = _File(sites=tuple(sites), former_node_keys=tuple(former))
        content = file.model_dump(mode="json")
        write_atomically(self._path, json.dumps(content, indent=2).encode())

    def _catch_up(self) -> None:
        if not self._path.exists():
            self._sites, self._former, self._by_node_key, self._read_at = {}, (), {}, None
            return
        stat = self._path.stat()
        if (stat.st_mtime_ns, stat.st_ino) == self._read_at:
            return
        try:
            file = _File.model_validate_json(self._path.read_bytes())
        except ValidationError:
            raise IdentityError(
                "the roster cannot be read",
                why=f"'{self._path.name}' does not have the fields of one",
                fix="restore it from a backup, or enroll the sites again",
            ) from None
        sites = file.sites
        for site in sites:
            site.card.require_genuine()
        names = {site.card.site: site for site in sites}
        node_keys = {node_public_key(site.card.node_key): site.card for site in sites}
        keys = {site.card.public_key for site in sites}
        if not len(sites) == len(names) == len(node_keys) == len(keys):
            raise IdentityError(
                "the roster cannot be used",
                why="two of its sites have one name or one key",
                fix="restore it from a backup, or enroll the sites again",
            )
        self._sites, self._by_node_key, self._former = names, node_keys, file.former_node_keys
        self._read_at = (stat.st_mtime_ns, stat.st_ino)


def _shared(card: SiteCard, other: SiteCard) -> str:
    """What two cards have in common that no two sites may; empty if nothing."""
    same = {
        "name": other.site == card.site,
        "signing key": other.public_key == card.public_key,
        "node key": _same_key(other.node_key, card.node_key),
    }
    return ", ".join(name for name, is_same in same.items() if is_same)


def _same_key(one: str, other: str) -> bool:
    """Not whether their texts are the same: one key can be written in more than one way."""
    return node_public_key(one) == node_public_key(other)


def register_all(roster: Roster, control: Control) -> list[str]:
    """Make the SuperLink's list of nodes that of the roster; returns the sites it let in.

    A node that never was in the roster, registered by whoever reached the Control API on this
    machine, is shut out again.

    Raises:
        IdentityError: the roster cannot be used; or, after all the others were let in, the
            SuperLink did not take a site's key.
        LinkError: the SuperLink does not answer.
    """
    sites, former = roster.sites, roster.former_node_keys
    known = {node.public_key: node for node in control.nodes()}
    added, refused = [], []
    for name, site in sites.items():
        key = node_public_key(site.card.node_key)
        if known.pop(key, None) is not None:
            continue
        try:
            control.register_node(key, name)
            added.append(name)
        except IdentityError as error:
            # The executor and `tacit server enroll` do this at once, and one is faster.
            if key not in {node.public_key for node in control.nodes()}:
                refused.append(error)
    for key, stranger in known.items():
        if key not in former:
            control.unregister_node(stranger.node_id)
    if refused:
        raise refused[0]
    return added
