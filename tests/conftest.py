"""A tiny study and a tiny site, for every test that needs a whole one.

Fixtures are factories: what differs from the default stands in the test that asks for it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from tacit_common.study import Study, StudyFile
from tacit_common.study_file import parse_study

if TYPE_CHECKING:
    from tacit_client.site import Site
    from tacit_common.ledger_chain import SignedHead
    from tacit_common.messages import ProbeRequest, TrainRequest
    from tacit_common.privacy.separability import Certificates
    from tacit_common.strategy import ParameterVector

# The time that one example takes says more of the machine than of the code.
settings.register_profile("tacit", deadline=None)
settings.load_profile("tacit")

# Tensors here are tiny: threads would only wait for one another, for ever on a busy machine.
torch.set_num_threads(1)

TINY_STUDY = """
name = "tiny"
seed = 3
[encoder]
kind = "vit"
image_size = 8
channels = 1
patch_size = 4
width = 16
depth = 1
heads = 2
[objective]
kind = "masked"
mask_ratio = 0.5
decoder_width = 8
[privacy]
mode = "local"
unit = "record"
epsilon = 8.0
delta = 1e-5
l2_clip_norm = 0.5
sampling_rate = 0.25
[federation]
rounds = 2
local_steps = 2
client_lr = 0.1
[simulation]
dataset = "digits"
sites = 3
declared_units = 300
"""

PROBE = 'probes=[{ kind = "ridge", classes = 10, epsilon = 1.0, project_dim = 4 }]'
NO_PRIVACY = 'privacy={ mode = "none", sampling_rate = 0.25 }'


@pytest.fixture
def study_file() -> Callable[..., StudyFile]:
    """`study_file("federation.rounds=3", …)`: the tiny study with these fields changed."""
    return lambda *overrides: parse_study(TINY_STUDY, overrides=list(overrides))


@pytest.fixture
def make_study(study_file: Callable[..., StudyFile]) -> Callable[..., Study]:
    """The same, as it travels to the sites."""
    return lambda *overrides: study_file(*overrides).travelling()


@pytest.fixture
def no_privacy() -> str:
    """The override that turns the tiny study into one without differential privacy."""
    return NO_PRIVACY


@pytest.fixture
def with_probe() -> str:
    """The override that adds a private probe before and after the rounds."""
    return PROBE


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep for the user is kept apart from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> "Certificates":
    """What the separability gate has passed, so that one study is checked once a session."""
    from tacit_common.privacy.separability import Certificates

    return Certificates(tmp_path_factory.mktemp("gate") / "certificates.json")


@pytest.fixture
def make_site(tmp_path: Path, certificates: "Certificates") -> Iterator[Callable[..., "Site"]]:
    """`make_site("name", source=…, policy=…, random=…)`: a site whose folder is in tmp_path.

    The same name twice is the same site taken up again from its folder; another `folder`
    is a new site of that name.
    """
    from tacit_client.atoms import bind
    from tacit_client.data import LabeledArraySource
    from tacit_client.ledger import Ledger
    from tacit_client.outbox import Outbox
    from tacit_client.policy import SitePolicy
    from tacit_client.site import Site
    from tacit_common.data import DataSource
    from tacit_common.identity import Identity
    from tacit_common.plugins import PluginTable
    from tacit_common.privacy.noise import RandomSource, SecureRandom

    ledgers: list[Ledger] = []

    def make(
        name: str = "site-0",
        *,
        source: DataSource | None = None,
        records: int = 40,
        policy: SitePolicy | None = None,
        random: RandomSource | None = None,
        plugins: PluginTable | None = None,
        folder: str | None = None,
    ) -> Site:
        path = tmp_path / "sites" / (folder or name)
        identity = Identity.load_or_create(path / "identity.key")
        ledgers.append(Ledger(path / "ledger.db", site=name, identity=identity))
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(records, 1, 8, 8, generator=generator)
        labels = np.arange(records, dtype=np.int64) % 10
        data = source if source is not None else LabeledArraySource(images, labels)
        return Site(
            name=name,
            source=data,
            declared_units=30,
            policy=policy
            or SitePolicy.rehearsal(
                unit="record", epsilon_cap=100.0, delta=1e-5, allow_non_private=True
            ),
            ledger=ledgers[-1],
            atoms=bind(ledgers[-1], identity, data, lineage="data"),
            certificates=certificates,
            outbox=Outbox(path / "outbox"),
            plugins=plugins or PluginTable(),
            random=random or SecureRandom(),
        )

    yield make
    for opened in ledgers:
        opened.close()


@pytest.fixture
def heads_of() -> Callable[..., list["SignedHead"]]:
    """`heads_of("site-0", 3, fork=…)`: the signed heads of a site's ledger of so many rows.

    The same `signer` (the site, if left out) has the same key; another `fork` gives other
    rows after the first.
    """
    from tacit_common.identity import Identity
    from tacit_common.ledger_chain import Atom, Genesis, head_of, next_entry

    identities: dict[str, Identity] = {}

    def make(
        site: str, rows: int, *, fork: str = "data", signer: str | None = None
    ) -> list["SignedHead"]:
        identity = identities.setdefault(signer or site, Identity.create())
        genesis = Genesis(site=site, public_key=identity.public_key)
        entry = next_entry(None, genesis, at="2026-01-01", site=site, identity=identity)
        heads = [head_of(entry, genesis)]
        for number in range(rows - 1):
            atom = Atom(atom=f"a{number}", lineage=fork, parents=(), tags_sha256="0" * 64)
            entry = next_entry(entry, atom, at="2026-01-01", site=site, identity=identity)
            heads.append(head_of(entry, genesis))
        return heads

    return make


@pytest.fixture
def start_of() -> Callable[[Study], "ParameterVector"]:
    """The parameters of a study's new model, flat [P]."""
    from tacit_common.model import build_model
    from tacit_common.plugins import PluginTable
    from tacit_common.training import flatten_parameters

    return lambda study: flatten_parameters(build_model(study, PluginTable())[0])


@pytest.fixture
def train_request(start_of: Callable[[Study], "ParameterVector"]) -> Callable[..., "TrainRequest"]:
    """`train_request(study, round=2, …)`: what a server asks; other fields of the plan by name."""
    from tacit_common.messages import RoundPlan, TrainRequest, parameters_sha256
    from tacit_common.privacy.plan import calibrate
    from tacit_common.study import LocalPrivacyPlan

    def make(
        study: Study, parameters: "ParameterVector | None" = None, **plan: Any
    ) -> TrainRequest:
        vector = start_of(study) if parameters is None else parameters
        private = isinstance(study.privacy, LocalPrivacyPlan)
        fields = {
            "run": "run",
            "round": 1,
            "study": study,
            "noise_multiplier": calibrate(study).noise_multiplier if private else None,
            "parameters_sha256": parameters_sha256(vector),
        }
        return TrainRequest(RoundPlan.model_validate({**fields, **plan}), vector)

    return make


@pytest.fixture
def probe_request(start_of: Callable[[Study], "ParameterVector"]) -> Callable[..., "ProbeRequest"]:
    """`probe_request(study, when="after", …)`: the same for a probe, on a basis of 4 directions."""
    from tacit_common.messages import ProbePlan, ProbeRequest, basis_sha256, parameters_sha256
    from tacit_common.privacy.plan import calibrate
    from tacit_common.study import LocalPrivacyPlan

    def make(study: Study, **plan: Any) -> ProbeRequest:
        vector = start_of(study)
        mean, components = np.zeros(16), np.eye(16)[:, :4]
        private = isinstance(study.privacy, LocalPrivacyPlan)
        fields = {
            "run": "run",
            "when": "before",
            "probe": 0,
            "study": study,
            "noise_multiplier": (
                calibrate(study).probe_noise_multipliers[0] if private and study.probes else None
            ),
            "parameters_sha256": parameters_sha256(vector),
            "basis_sha256": basis_sha256(mean, components),
        }
        asked = ProbePlan.model_validate({**fields, **plan})
        return ProbeRequest(asked, vector, mean, components)

    return make


@pytest.fixture
def flower_task() -> None:
    """Flower makes no message outside a task; this process is one."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
