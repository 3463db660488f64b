"""Letting a site in, and shutting it out again."""

from tacit_common.enrolment import SiteCard
from tacit_common.errors import LinkError
from tacit_common.flower.control import Control
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.roster import Roster, register_all


def enroll(folder: ServerFolder, card: SiteCard) -> bool:
    """Pin a site's keys; returns whether the SuperLink knows it already.

    Raises:
        IdentityError: the card is not genuine.
        UsageError: its name or one of its keys is another site's.
    """
    Roster(folder.roster).add(card)
    return _tell_superlink(folder)


def remove(folder: ServerFolder, site: str) -> None:
    """Shut a site out: no request goes to it, and no answer of it counts.

    Raises:
        UsageError: there is no such site.
    """
    Roster(folder.roster).remove(site)
    _tell_superlink(folder)


def _tell_superlink(folder: ServerFolder) -> bool:
    address, ca = folder.config().superlink_address, folder.ca_certificate.read_bytes()
    try:
        with Control(address, ca) as control:
            register_all(Roster(folder.roster), control)
    except LinkError:
        return False  # the executor does it as soon as the SuperLink is there
    return True
