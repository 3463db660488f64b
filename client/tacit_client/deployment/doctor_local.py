"""What `tacit site doctor` looks at on the site's own machine. Each check gives its findings."""

import platform
import shutil
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tacit_client.budget import budget_of, load
from tacit_client.budget_view import sentences
from tacit_client.deployment.findings import Finding
from tacit_client.deployment.journal import read_journal
from tacit_client.deployment.node_key import openssh_line
from tacit_client.deployment.open_site import training_device
from tacit_client.deployment.site_data import count_units, identity_source
from tacit_client.deployment.site_folder import SiteFolder, mend_mode
from tacit_client.policy.sections import Consent
from tacit_common import __version__
from tacit_common.data import DataSource
from tacit_common.enrolment import read_site_card
from tacit_common.privacy.spend import Rule

SAMPLED = 32
"""Records that are decoded to see whether they can be."""

_CHECKED_VERSIONS = ("torch", "flwr", "opacus", "dp-accounting", "cryptography", "grpcio")
_LEAST_FREE, _LITTLE_FREE = 200e6, 2e9  # bytes
_LITTLE_LEFT = 0.1  # of the cap


def configuration(folder: SiteFolder) -> Iterator[Finding]:
    """`site.toml` parses."""
    config = folder.config
    yield Finding.ok("configuration", f"site '{config.site}' of {config.coordinator.name}")


def policy(folder: SiteFolder) -> Iterator[Finding]:
    """`policy.toml` parses."""
    found = folder.read_policy()
    consent: Consent = found.consent
    asks = "a person consents to each study" if consent.approval == "each study" else "no consent"
    yield Finding.ok(
        "policy",
        f"ε ≤ {found.epsilon_cap:g} at δ = {found.delta:g} for one {found.unit}; {asks}",
    )
    if found.allow_non_private:
        yield Finding.warn(
            "policy",
            "studies without differential privacy are allowed: nothing bounds what they reveal",
            "set allow_non_private = false, and take 'none' out of allow.modes",
        )


def secrets(folder: SiteFolder) -> Iterator[Finding]:
    """The keys are there, can be used, and are the owner's alone."""
    exposed = folder.exposed()
    for path in exposed:
        yield Finding.fail("keys", f"others may use '{path.name}'", mend_mode(path))
    if not exposed:
        folder.read_identity()
        folder.read_node_key()
        yield Finding.ok("keys", "identity and node key are there, and the owner's alone")


def card(folder: SiteFolder) -> Iterator[Finding]:
    """The card that was sent out shows the keys that are here."""
    site = folder.config.site
    found = read_site_card(folder.card(site))
    same = (found.site, found.public_key, found.node_key) == (
        site,
        folder.read_identity().public_key,
        openssh_line(folder.read_node_key(), site),
    )
    if same:
        yield Finding.ok("card", f"shows the keys that are here: {found.fingerprint}")
    else:
        yield Finding.fail(
            "card",
            "shows other keys or another name than the site has",
            "restore the folder from a backup, keys and card together",
        )


def versions(_: SiteFolder) -> Iterator[Finding]:
    """What is installed is what this version of Tacit was tested with."""
    try:
        distribution = metadata.distribution("tacit")
    except metadata.PackageNotFoundError:
        yield Finding.warn(
            "versions",
            f"Tacit {__version__} is not installed as a package, so versions cannot be compared",
            "install it with pip, with the constraints that come with it",
        )
        return
    python = platform.python_version()
    wrong = []
    if python not in SpecifierSet(distribution.metadata["Requires-Python"] or ""):
        wrong.append(f"python {python}")
    for requirement in map(Requirement, distribution.requires or []):
        if requirement.name not in _CHECKED_VERSIONS or requirement.marker is not None:
            continue
        installed = _version_of(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, not {requirement.specifier}")
    if wrong:
        yield Finding.fail(
            "versions",
            "; ".join(wrong),
            "install Tacit anew with pip, with the constraints that come with it",
        )
    else:
        yield Finding.ok(
            "versions",
            f"tacit {__version__}, python {python}, torch {metadata.version('torch')}, "
            f"flwr {metadata.version('flwr')}",
        )


def disk(folder: SiteFolder) -> Iterator[Finding]:
    """There is room for the ledger, the journal and the outbox."""
    free = shutil.disk_usage(folder.path).free
    what = f"{free / 1e9:.1f} GB free"
    fix = "make room: a site that cannot write its ledger answers nothing"
    if free < _LEAST_FREE:
        yield Finding.fail("disk", what, fix)
    elif free < _LITTLE_FREE:
        yield Finding.warn("disk", what, fix)
    else:
        yield Finding.ok("disk", what)


def device(folder: SiteFolder) -> Iterator[Finding]:
    """The device that the configuration names is there, and computes."""
    found = training_device(folder.config)
    if found.type == "cpu":
        yield Finding.ok("device", f"CPU, {torch.get_num_threads()} threads")
        return
    try:
        torch.ones(8, device=found).sum().item()
        free, total = torch.cuda.mem_get_info(found)
    except RuntimeError as error:
        yield Finding.fail(
            "device",
            f"the GPU does not compute ({type(error).__name__})",
            "check the driver with nvidia-smi, and that nobody else has filled its memory",
        )
        return
    name = torch.cuda.get_device_name(found)
    yield Finding.ok("device", f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")


def data(folder: SiteFolder) -> Iterator[Finding]:
    """The data set opens, a sample of its records decodes, and it holds what was declared."""
    config, unit = folder.config, folder.read_policy().unit
    source = identity_source(config)
    bad = _undecodable(source)
    sampled = min(SAMPLED, len(source))
    if bad:
        yield Finding.warn(
            "data",
            f"{bad} of {sampled} sampled records cannot be decoded, and would be left out",
            f"tacit site inspect {folder.path} lists them",
        )
    else:
        yield Finding.ok("data", f"it opens, and {sampled} sampled records decode")
    if config.declared_units > count_units(source, unit):
        yield Finding.fail(
            "data",
            f"fewer {unit}s than the {config.declared_units} declared",
            "lower declared_units in site.toml to a round number below what is there",
        )


def ledger(folder: SiteFolder) -> Iterator[Finding]:
    """Every hash and signature of the ledger holds, and it is this site's."""
    found, _ = load(folder.path)
    own = (folder.config.site, folder.read_identity().public_key)
    if (found.genesis.site, found.genesis.public_key) != own:
        yield Finding.fail(
            "ledger",
            "it is another site's, or was signed with another key",
            "restore ledger.db and identity.key together, from one backup",
        )
        return
    yield Finding.ok("ledger", f"{found.head.seq + 1} rows; every hash and signature holds")


def journal(folder: SiteFolder) -> Iterator[Finding]:
    """Every hash and signature of the journal holds."""
    lines = read_journal(folder.journal, folder.read_identity().public_key)
    yield Finding.ok("journal", f"{len(lines)} lines; every hash and signature holds")


def budget(folder: SiteFolder) -> Iterator[Finding]:
    """Something is left of the cap."""
    cap = folder.read_policy().cap
    found = budget_of(load(folder.path)[0], cap)
    used = [atom for atom in found.atoms if atom.rule is not None]
    remaining = min((atom.remaining for atom in used), default=cap.epsilon)
    what = sentences(found)[-1]
    if any(atom.rule is Rule.NON_PRIVATE for atom in used):
        yield Finding.warn("budget", what, "nothing: only studies without privacy are possible")
    elif remaining < _LITTLE_LEFT * cap.epsilon:
        yield Finding.warn(
            "budget", what, f"tacit site budget {folder.path} says by which studies it was used"
        )
    else:
        yield Finding.ok("budget", what)


def approvals(folder: SiteFolder) -> Iterator[Finding]:
    """Nobody waits for a person's consent."""
    waiting = len(folder.open_approvals().pending())
    if waiting:
        plural = "study waits" if waiting == 1 else "studies wait"
        yield Finding.warn(
            "approvals",
            f"{waiting} {plural} for somebody's consent",
            f"tacit site pending {folder.path}",
        )
    else:
        yield Finding.ok("approvals", "no study waits")


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _undecodable(source: DataSource) -> int:
    """How many of a few records, evenly spread, cannot be decoded."""
    bad = 0
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int)):
        try:
            source[int(index)]
        except Exception:  # whatever a data source may raise; its text may quote the record
            bad += 1
    return bad
