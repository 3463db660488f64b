"""`tacit site init`: a data site out of nothing, and what its operator does next.

`site.toml` is written last. A folder that has one is taken; one that was left half made is
finished with the keys that it has, so that an interruption costs nothing.
"""

import shlex
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tacit_client.deployment.journal import Journal
from tacit_client.deployment.node_key import load_or_create_node_key, openssh_line
from tacit_client.deployment.open_site import open_ledger, training_device
from tacit_client.deployment.site_config import (
    OPENING,
    CoordinatorAccess,
    SiteConfig,
    WitnessAccess,
)
from tacit_client.deployment.site_data import (
    count_units,
    find_identity_channels,
    identity_source,
    require_declarable,
)
from tacit_client.deployment.site_folder import CONFIG_NAME, SiteFolder
from tacit_client.policy import SitePolicy
from tacit_client.policy.file import write_policy
from tacit_common.certificates import make_client_certificate
from tacit_common.countersign import WitnessCard
from tacit_common.enrolment import Invitation, SiteCard
from tacit_common.errors import UsageError
from tacit_common.files import owner_only, write_atomically
from tacit_common.identity import Identity
from tacit_common.service_files import service_files, write_service_files
from tacit_common.toml_file import write_toml_file

Unit = Literal["record", "subject"]


@dataclass(frozen=True)
class Partners:
    """The parties that a new site is to know, from the files that they sent."""

    invitation: Invitation
    witness: WitnessCard | None

    @property
    def coordinator_access(self) -> CoordinatorAccess:
        """The invitation, as `site.toml` has it."""
        said = self.invitation
        return CoordinatorAccess(
            name=said.coordinator, address=said.address, public_key=said.public_key
        )

    @property
    def witness_access(self) -> WitnessAccess | None:
        """The witness's card, as `site.toml` has it."""
        said = self.witness
        if said is None:
            return None
        return WitnessAccess(address=said.address, public_key=said.public_key)


class Holdings(NamedTuple):
    """What a data set has: for the operator's own eyes."""

    identity_channels: int
    records: int
    units: int

    @property
    def suggestion(self) -> int:
        """A figure to declare: below the units, rounded down to half a leading digit."""
        leading: int = 10 ** (len(str(self.units)) - 1)
        step = max(1, leading // 2)
        return max(1, (self.units - 1) // step * step)


class Prepared(NamedTuple):
    """A site's folder that is ready to be enrolled."""

    folder: SiteFolder
    card: SiteCard
    partners: Partners


def look_at_data(config: SiteConfig, unit: Unit) -> Holdings:
    """Read a new site's data set once.

    Raises:
        UsageError: it cannot be used, or does not say whose its records are where the unit
            is the subject.
    """
    if unit == "subject" and config.data_path is not None and config.subjects is None:
        raise UsageError(
            "the unit is the subject, and nothing says whose a record is",
            why="each record would be taken for a person of its own, and many for one protected "
            "by a cap that is not theirs",
            fix="give --subjects-column or --subjects-folder, or --unit record",
        )
    channels = find_identity_channels(config)
    source = identity_source(config.model_copy(update={"identity_channels": channels}))
    return Holdings(channels, len(source), count_units(source, unit))


def require_free(folder: SiteFolder) -> None:
    """Raises UsageError if a site, or anything that is not of one, is in the folder."""
    if folder.site_toml.exists():
        raise UsageError(
            f"'{folder.path}' is taken",
            why="a site lives there, and its ledger knows what its data has cost",
            fix=f"name another folder; to change the site edit {CONFIG_NAME} and policy.toml in it",
        )
    ours = {path.name for path in vars(folder).values()}
    try:
        strangers = [
            entry.name
            for entry in folder.path.iterdir()
            if entry.name not in ours
            and not entry.name.startswith((".", f"{folder.ledger.stem}."))
            and not entry.name.endswith((".site.json", ".lock"))
        ]
    except FileNotFoundError:
        return
    except OSError as error:
        raise _impossible(folder, error) from None
    if strangers:
        raise UsageError(
            f"'{folder.path}' is not empty",
            why=f"it holds '{sorted(strangers)[0]}', which is none of a site's files",
            fix="name a folder that is new or empty",
        )


def init_site(
    folder: SiteFolder, config: SiteConfig, policy: SitePolicy, partners: Partners, units: int
) -> Prepared:
    """Make the folder of a site: keys, ledger, policy, card, services, configuration.

    Guarantees: no key and no ledger that is there is overwritten; everything is its owner's
    alone; a folder without `site.toml` can be made again.

    Args:
        units: How many units the data set has, which are not to be fewer than declared.

    Raises:
        UsageError: the folder is taken or cannot be made, or more is declared than there is.
        IdentityError: a key that an earlier attempt left cannot be used.
        LedgerError: it left a ledger that is another site's.
    """
    require_free(folder)
    require_declarable(config, units)
    gpu = training_device(config).type == "cuda"
    try:
        with owner_only():
            return _make(folder, config, policy, partners, gpu=gpu)
    except OSError as error:
        raise _impossible(folder, error) from None


def next_steps(prepared: Prepared) -> str:
    """What the operator of a new site does next."""
    folder, card, partners = prepared
    directory, file = shlex.quote(str(folder.path)), folder.card(card.site)
    invitation = partners.invitation
    lines = [
        f"The site '{card.site}' is ready in {directory}. Nothing has left it.",
        f"Read what it allows, and change it as you see fit: {folder.policy_toml}",
        "Compare two fingerprints with the coordinator, by telephone for instance:",
        f"  its invitation     {invitation.fingerprint}",
        f"  this site's card   {card.fingerprint}",
        "Next:",
        f"  1. send            {file} to {invitation.coordinator}, for `tacit server enroll`",
    ]
    if partners.witness is not None:
        lines.append(
            f"                     and to the witness {partners.witness.witness}, for "
            "`tacit witness admit`"
        )
        lines.append(
            f"                     (fingerprint of its card: {partners.witness.fingerprint})"
        )
    return "\n".join(
        [
            *lines,
            f"  2. once enrolled   tacit site doctor {directory}",
            f"  3. start           tacit site run {directory}",
            f"                     (or as a service: {folder.service / 'tacit-site.service'})",
        ]
    )


def _make(
    folder: SiteFolder, config: SiteConfig, policy: SitePolicy, partners: Partners, *, gpu: bool
) -> Prepared:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.path.chmod(0o700)
    for inner in (folder.outbox, folder.pending, folder.witness, folder.service):
        inner.mkdir(exist_ok=True)
    identity = Identity.load_or_create(folder.identity_key)
    open_ledger(folder, config, identity, new=True).close()
    Journal(folder.journal, identity)
    card = _make_card(folder, config.site, identity)
    ca = partners.invitation.ca_certificate
    write_atomically(folder.coordinator_ca, ca.encode())
    if partners.witness is not None:
        write_atomically(folder.witness_ca, partners.witness.ca_certificate.encode())
    data = [] if config.data_path is None else [config.data_path]
    files = service_files(
        "site",
        folder.path,
        name=config.site,
        health_address=config.health_address,
        data=data,
        gpu=gpu,
    )
    write_service_files(folder.service, files)
    write_policy(folder.policy_toml, policy)
    write_toml_file(folder.site_toml, config, opening=OPENING)
    return Prepared(folder, card, partners)


def _make_card(folder: SiteFolder, site: str, identity: Identity) -> SiteCard:
    node_key = openssh_line(load_or_create_node_key(folder.node_key), site)
    write_atomically(folder.node_public_key, node_key.encode(), b"\n")
    if not folder.witness_certificate.exists():  # written last, so the key beside it is its own
        issued = make_client_certificate(site)
        write_atomically(folder.witness_key, issued.key)
        write_atomically(folder.witness_certificate, issued.certificate)
    card = SiteCard.signed(
        identity,
        site=site,
        node_key=node_key,
        witness_certificate=folder.witness_certificate.read_text(encoding="ascii"),
    )
    for stale in folder.path.glob("*.site.json"):  # of an attempt under another name
        stale.unlink()
    card.write(folder.card(site))
    return card


def _impossible(folder: SiteFolder, error: OSError) -> UsageError:
    return UsageError(
        f"the folder '{folder.path}' cannot be made",
        why=error.strerror or type(error).__name__,
        fix="choose a place where this user may write and that has space left",
    )
