"""From a site's folder to a site that answers: once a process, for every encoder that comes.

What a site *is* (key, ledger, outbox, policy) is opened once. What it is *asked with* (its
records, in an encoder's shape) is opened when a study brings that shape, and bound to the
ledger's atoms again: data that changed meanwhile is charged as what it is now. Files that
changed between two requests are noticed; a plug-in's data that changed asks for a restart.
"""

from collections import OrderedDict
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch

from tacit_client.atoms import bind
from tacit_client.deployment.site_config import SiteConfig
from tacit_client.deployment.site_data import (
    count_units,
    files_of,
    identity_source,
    open_data,
    require_declarable,
)
from tacit_client.deployment.site_folder import SiteFolder
from tacit_client.ledger import Ledger
from tacit_client.outbox import Outbox
from tacit_client.policy import SitePolicy
from tacit_client.records import required_image_shape
from tacit_client.site import Site
from tacit_common.data import DataSource
from tacit_common.errors import DataError, LedgerError, UsageError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import SignedHead
from tacit_common.plugins import PluginTable
from tacit_common.privacy.noise import SecureRandom
from tacit_common.privacy.separability import Certificates
from tacit_common.study import Study

Shape = tuple[int, int, int]

_SHAPES_KEPT = 4  # for another one the data set is opened, and read whole, again


class OpenSite:
    """A site that is at work. Close it, or use it as a context manager.

    Opening verifies the ledger, reads every record once and binds them to the ledger's atoms.

    Raises:
        UsageError: the configuration, the policy or the data cannot be used.
        IdentityError: a key is missing, or others may read it.
        LedgerError: the ledger cannot be trusted.
    """

    def __init__(self, folder: SiteFolder, policy: SitePolicy) -> None:
        self.config: SiteConfig = folder.config
        self.identity: Identity = folder.read_identity()
        self.device = training_device(self.config)
        approvals = folder.open_approvals()
        self.ledger = open_ledger(folder, self.config, self.identity)
        try:
            self._files = files_of(self.config)  # first: a change in between is seen
            source = identity_source(self.config)
            require_declarable(self.config, count_units(source, policy.unit))
            self._unshaped = Site(
                name=self.config.site,
                source=source,
                declared_units=self.config.declared_units,
                policy=policy,
                ledger=self.ledger,
                atoms=self._bind(source),
                certificates=Certificates(folder.certificates),
                outbox=Outbox(folder.outbox),
                plugins=PluginTable(self.config.plugins),
                random=SecureRandom(),
                device=self.device,
                physical_batch=self.config.physical_batch,
                approvals=approvals,
            )
        except BaseException:
            self.ledger.close()
            raise
        self._sites: OrderedDict[Shape, Site] = OrderedDict()

    @property
    def head(self) -> SignedHead:
        """Where the site's ledger stands."""
        return self.ledger.head

    @property
    def without_records(self) -> Site:
        """The site for what reads its ledger alone: what all shapes of its data share."""
        return self._unshaped

    def site_for(self, study: Study) -> Site:
        """The site with its records in the shape of the study's encoder.

        Nothing is opened for a study that the policy, or a person here, does not agree to.

        Raises:
            SiteRefusal: they do not.
            PrivacyConfigError: the study does not say what shape its images have.
            DataError: the data cannot be read in it, or changed while it was opened.
            LedgerError: the data cannot be bound to the ledger's atoms.
        """
        shape = required_image_shape(study.encoder)
        files = files_of(self.config)
        if shape not in self._sites or files != self._files:
            self._unshaped.require_allowed(study)
        if files != self._files:
            self._bind_anew()
            self._files = files
        if shape not in self._sites:
            self._sites[shape] = self._in_shape(shape)
        self._sites.move_to_end(shape)
        if len(self._sites) > _SHAPES_KEPT:
            self._sites.popitem(last=False)
        return self._sites[shape]

    def use_policy(self, policy: SitePolicy) -> None:
        """Answer under this policy from the next request on."""
        self._unshaped = replace(self._unshaped, policy=policy)
        for shape, site in self._sites.items():
            self._sites[shape] = replace(site, policy=policy)

    def close(self) -> None:
        """Close the ledger; the object is of no use afterwards."""
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _in_shape(self, shape: Shape) -> Site:
        channels, size, _ = shape
        source = open_data(self.config, image_size=size, channels=channels)
        known = identity_source(self.config)
        atoms = self._bind(known)
        if len(source) != len(known):
            raise DataError(
                "the site's data changed while it was opened",
                why="it has another number of records than a moment before",
                fix="let whoever writes to it finish, then ask again",
            )
        return replace(self._unshaped, source=source, atoms=atoms, _units={})

    def _bind_anew(self) -> None:
        self._sites.clear()
        source = identity_source(self.config)
        self._unshaped = replace(self._unshaped, source=source, atoms=self._bind(source), _units={})

    def _bind(self, source: DataSource) -> tuple[str, ...]:
        return bind(self.ledger, self.identity, source, lineage=self.config.lineage)


def open_site(folder: SiteFolder, policy: SitePolicy) -> OpenSite:
    """The site of a folder, ready to answer (see `OpenSite`)."""
    return OpenSite(folder, policy)


def open_ledger(
    folder: SiteFolder, config: SiteConfig, identity: Identity, *, new: bool = False
) -> Ledger:
    """The ledger of a site. Only with `new`, while a site is made, is it begun.

    Raises:
        LedgerError: it is missing, or cannot be trusted.
    """
    if not new and not (folder.ledger.is_file() and folder.ledger.stat().st_size):
        raise LedgerError(
            f"the ledger '{folder.ledger.name}' is missing",
            why="it says what was spent of this site's data, so none is made anew",
            fix="restore the newest one from a backup; without one the data may be used no more",
        )
    return Ledger(folder.ledger, site=config.site, identity=identity, survive_power_loss=True)


def training_device(config: SiteConfig) -> torch.device:
    """Where the site trains.

    Raises:
        UsageError: the configuration asks for a GPU and there is none.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UsageError(
            "there is no CUDA device",
            why="device is 'cuda' in site.toml and torch finds none",
            fix="set device = 'auto', or install the CUDA build of torch and its driver",
        )
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")
