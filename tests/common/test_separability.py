"""Mistake 4: an objective that couples records has no per-example gradient to clip."""

import pytest

from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import Coupling
from tacit_common.privacy import require_legal
from tacit_common.study import LocalPrivacyPlan, NoPrivacyPlan, PrivacyPlan

LOCAL = LocalPrivacyPlan(
    mode="local", unit="record", epsilon=4.0, delta=1e-5, l2_clip_norm=1.0, sampling_rate=0.1
)
NONE = NoPrivacyPlan(mode="none", sampling_rate=0.1)


def test_mistake_4_a_batch_coupled_objective_is_refused_under_record_privacy() -> None:
    with pytest.raises(PrivacyConfigError) as caught:
        require_legal(Coupling.BATCH, "simclr", LOCAL)
    assert caught.value.what == "objective 'simclr' couples the examples of a batch"
    assert caught.value.why == "record-level DP has no per-example gradient to clip"
    assert "masked" in caught.value.fix


@pytest.mark.parametrize(
    ("coupling", "privacy"),
    [(Coupling.NONE, LOCAL), (Coupling.NONE, NONE), (Coupling.BATCH, NONE)],
)
def test_what_is_separable_or_unprotected_is_legal(
    coupling: Coupling, privacy: PrivacyPlan
) -> None:
    require_legal(coupling, "masked", privacy)


def test_a_coupling_that_this_version_does_not_know_is_refused() -> None:
    with pytest.raises(PrivacyConfigError):
        require_legal("queue", "moco", LOCAL)  # type: ignore[arg-type]
