"""Simulated sites: a share of one data set each, and everything else as a real site has it."""

import io
import logging
import os
import resource
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tacit_client.atoms import bind
from tacit_client.budget import IDENTITY_NAME, LEDGER_NAME
from tacit_client.data import ArraySource, LabeledArraySource
from tacit_client.ledger import Ledger
from tacit_client.outbox import Outbox
from tacit_client.policy import SitePolicy
from tacit_client.site import Site
from tacit_common.encoders import image_shape
from tacit_common.errors import CheckpointError, StudyError, UsageError
from tacit_common.files import write_atomically
from tacit_common.identity import Identity
from tacit_common.plugins import PluginTable
from tacit_common.privacy.noise import SecureRandom
from tacit_common.privacy.separability import Certificates
from tacit_common.study import LocalPrivacyPlan, SimulationPlan, StudyFile, SubjectsPlan
from tacit_simulations.datasets import LabeledImages, load_dataset
from tacit_simulations.partition import partition
from tacit_simulations.pool import Workplace

_OPEN_AT_ONCE = 1024
_FILES_OF_A_SITE, _OTHER_FILES = 3, 256


@dataclass(frozen=True)
class SimulatedSites:
    """Opens the sites of one simulation, in whichever process they are needed."""

    study: StudyFile
    plan: SimulationPlan
    folder: Path

    def name(self, index: int) -> str:
        """A name that sorts like its number."""
        return f"site-{index:0{len(str(self.plan.sites - 1))}d}"

    @property
    def home(self) -> Path:
        """Where the sites keep their keys and ledgers: in the run's folder, or beyond it."""
        kept = self.plan.sites_dir
        return self.folder / "sites" if kept is None else Path(kept)

    def ledger_path(self, index: int) -> Path:
        """Where the ledger of a site is."""
        return self.home / self.name(index) / LEDGER_NAME

    def prepare(self) -> LabeledImages:
        """Load the data and deal it out, once for all processes; returns the data.

        Raises:
            DataError: the data set cannot be read.
            StudyError: it cannot be dealt out to so many sites.
        """
        data = self._images()
        if self._partition_path.exists():
            self._check_partition()
            return data
        train = data.train
        # Without labels every record counts as of one class: skew has no meaning then.
        labels = (
            train.labels
            if isinstance(train, LabeledArraySource)
            else np.zeros(len(train), dtype=np.int64)
        )
        shares = partition(
            labels, self.plan.partition, self.plan.sites, self.study.seed, subjects=train.subjects
        )
        ends = np.cumsum([len(share) for share in shares])
        buffer = io.BytesIO()
        np.savez(buffer, records=np.concatenate(shares), ends=ends, plan=np.array(self._dealt))
        write_atomically(self._partition_path, buffer.getvalue(), survive_power_loss=False)
        return data

    @property
    def _dealt(self) -> str:
        """What the shares were dealt for, as text. How many processes work on them is no part."""
        return self.plan.model_dump_json(exclude={"workers"})

    def _check_partition(self) -> None:
        with np.load(self._partition_path, allow_pickle=False) as shares:
            if "ends" not in shares or str(shares["plan"]) != self._dealt:
                raise CheckpointError(
                    "the sites in this folder are those of another simulation",
                    why="[simulation] in study.toml has changed since the data was dealt out, or "
                    "another version of Tacit has dealt it out",
                    fix="restore study.toml, or start a new run",
                )

    def source(self, index: int) -> ArraySource:
        """The records of a site."""
        return self._images().train.take(self._share(index))

    def open(self, index: int) -> Site:
        """The site with this number, its ledger verified; the last ones stay open."""
        key = (self.folder, index)
        if key in _open_sites:
            _open_sites.move_to_end(key)
            return _open_sites[key]
        torch.set_num_threads(self.plan.threads)  # in a worker process too
        _keep_log(self.home / "log.txt")
        directory = self.ledger_path(index).parent
        source = self.source(index)
        # Ledgers in a run's own folder end with it, and a power cut takes all of it alike.
        outlives = self.plan.sites_dir is not None
        identity = Identity.load_or_create(directory / IDENTITY_NAME, survive_power_loss=outlives)
        ledger = Ledger(
            directory / LEDGER_NAME,
            site=self.name(index),
            identity=identity,
            survive_power_loss=outlives,
        )
        if key not in _atoms:  # reading all records once a process is enough
            _atoms[key] = bind(ledger, identity, source, lineage=Path(self.plan.dataset).name)
        site = Site(
            name=self.name(index),
            source=source,
            declared_units=self.plan.declared_units,
            policy=policy_of(self.study),
            ledger=ledger,
            atoms=_atoms[key],
            certificates=Certificates(certificates_path()),
            outbox=Outbox(directory / "outbox", survive_power_loss=outlives),
            plugins=PluginTable(self.study.plugins),
            random=SecureRandom(),
            device=training_device(self.plan),
            physical_batch=self.plan.physical_batch,
        )
        _open_sites[key] = site
        if len(_open_sites) > _most_open():
            _, oldest = _open_sites.popitem(last=False)
            oldest.ledger.close()
        return site

    def close(self) -> None:
        """Close every site that this process holds open."""
        while _open_sites:
            _, site = _open_sites.popitem()
            site.ledger.close()

    def workplace(self) -> Workplace:
        """How another process opens the same sites."""
        arguments = {"study": self.study.model_dump_json(), "folder": str(self.folder)}
        return Workplace(f"{__name__}:{reopened.__name__}", arguments)

    @property
    def _partition_path(self) -> Path:
        return self.folder / "partition.npz"

    def _share(self, index: int) -> NDArray[np.int64]:
        records, ends = _shares(self._partition_path)
        return records[ends[index - 1] if index else 0 : ends[index]]

    def _images(self) -> LabeledImages:
        shape = image_shape(self.study.encoder)
        if shape is None:
            raise StudyError(
                "a simulation does not know the size of the encoder's images",
                why="the encoder is a plug-in that does not say it",
                fix="give it the options image_size and channels under [encoder.options]",
            )
        channels, size, _ = shape
        plugins = tuple(sorted(self.study.plugins.items()))
        plan = self.plan
        return _load(plan.dataset, size, channels, self.study.seed, plugins, plan.subjects)


_open_sites: OrderedDict[tuple[Path, int], Site] = OrderedDict()
_atoms: dict[tuple[Path, int], tuple[str, ...]] = {}


def _keep_log(path: Path) -> None:
    """Let what sites say of their failures go to a file, as at a real site, and nowhere else."""
    logger = logging.getLogger("tacit_client")
    kept = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
    if any(handler.baseFilename == str(path.absolute()) for handler in kept):
        return
    for handler in kept:
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False


@lru_cache(maxsize=1)
def _most_open() -> int:
    """How many sites may stay open here: an open ledger holds some of a process's files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_OF_A_SITE * _OPEN_AT_ONCE + _OTHER_FILES
    if soft == resource.RLIM_INFINITY:
        return _OPEN_AT_ONCE
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(_OPEN_AT_ONCE, (soft - _OTHER_FILES) // _FILES_OF_A_SITE))


@lru_cache(maxsize=1)
def _shares(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The records of all sites, one site after the other, and where each ends; once a process."""
    with np.load(path, allow_pickle=False) as shares:
        return shares["records"], shares["ends"]


@lru_cache(maxsize=1)
def _load(
    dataset: str,
    image_size: int,
    channels: int,
    seed: int,
    plugins: tuple[tuple[str, str], ...],
    subjects: SubjectsPlan | None,
) -> LabeledImages:
    """The data of one simulation, once a process."""
    return load_dataset(
        dataset,
        image_size=image_size,
        channels=channels,
        seed=seed,
        plugins=PluginTable(dict(plugins)),
        subjects=subjects,
    )


def reopened(study: str, folder: str) -> SimulatedSites:
    """The sites of a simulation in another process: of its study as JSON, and its folder."""
    whole = StudyFile.model_validate_json(study)
    if whole.simulation is None:
        raise TypeError("a simulation's study has a [simulation]")
    return SimulatedSites(whole, whole.simulation, Path(folder))


def training_device(plan: SimulationPlan) -> torch.device:
    """Where the sites train, and the server's warm start with them.

    Raises:
        UsageError: the study asks for a GPU and there is none.
    """
    available = torch.cuda.is_available()
    if plan.device == "cuda" and not available:
        raise UsageError(
            "there is no CUDA device",
            why="simulation.device is 'cuda' and torch finds none",
            fix="set simulation.device = 'auto', or install the CUDA build of torch 2.13.0",
        )
    return torch.device("cuda" if available and plan.device != "cpu" else "cpu")


def certificates_path() -> Path:
    """Where this user keeps what the separability gate has passed, from run to run."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tacit" / "certificates.json"


def policy_of(study: StudyFile) -> SitePolicy:
    """Simulated operators allow what the study asks for, unless it names another cap."""
    privacy = study.privacy
    if not isinstance(privacy, LocalPrivacyPlan):
        return SitePolicy.rehearsal(
            unit="record", epsilon_cap=1.0, delta=1e-5, allow_non_private=True
        )
    named = None if study.simulation is None else study.simulation.epsilon_cap
    return SitePolicy.rehearsal(
        unit=privacy.unit,
        epsilon_cap=named or privacy.epsilon,
        delta=privacy.delta,
        allow_non_private=False,
    )
