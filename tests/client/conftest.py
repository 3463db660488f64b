"""A site's folder as `tacit site init` makes it, on a small data set."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit_common.certificates import make_ca
from tacit_common.enrolment import Invitation
from tacit_common.identity import Identity

if TYPE_CHECKING:
    from tacit_client.deployment.site_init import Prepared

RECORDS = 60


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """60 images of 8 x 8 pixels, with 10 classes and 20 subjects in the array `patient`."""
    path = tmp_path / "scans.npz"
    images = np.random.default_rng(0).integers(0, 256, (RECORDS, 8, 8), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(RECORDS) % 10, patient=np.arange(RECORDS) // 3)
    return path


@pytest.fixture
def invitation() -> Invitation:
    """Of a coordinator that nobody can reach."""
    return Invitation(
        coordinator="hub",
        address="127.0.0.1:9",
        public_key=Identity.create().public_key,
        ca_certificate=make_ca("hub").certificate.decode(),
    )


@pytest.fixture
def new_site(tmp_path: Path, data_file: Path, invitation: Invitation) -> Callable[..., "Prepared"]:
    """`new_site("clinic", declared_units=50, …)`: fields of `site.toml` by name."""
    from tacit_client.deployment.site_config import SiteConfig
    from tacit_client.deployment.site_folder import SiteFolder
    from tacit_client.deployment.site_init import Partners, init_site
    from tacit_client.policy import SitePolicy

    def make(
        name: str = "clinic", *, policy: SitePolicy | None = None, **fields: object
    ) -> "Prepared":
        partners = Partners(invitation, None)
        given: dict[str, object] = {
            "site": name,
            "data": str(data_file),
            "lineage": "scans",
            "declared_units": 50,
            "labels": True,
            "coordinator": partners.coordinator_access,
        }
        config = SiteConfig.model_validate({**given, **fields})
        cap = policy or SitePolicy.rehearsal(
            unit="record", epsilon_cap=100.0, delta=1e-5, allow_non_private=True
        )
        return init_site(SiteFolder(tmp_path / name), config, cap, partners, RECORDS)

    return make
