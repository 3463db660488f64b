"""Mistake 4: an objective that couples records has no per-example gradient to clip."""

import pytest

from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import Coupling
from tacit_common.privacy import require_legal
from tacit_common.study import LocalPrivacyPlan, NoPrivacyPlan, PrivacyPlan

RECORD = LocalPrivacyPlan(
    mode="local", unit="record", epsilon=4.0, delta=1e-5, l2_clip_norm=1.0, sampling_rate=0.1
)
SUBJECT = LocalPrivacyPlan.model_validate(
    {**RECORD.model_dump(), "unit": "subject", "records_per_subject": 4}
)
NONE = NoPrivacyPlan(mode="none", sampling_rate=0.1)


def test_mistake_4_a_batch_coupled_objective_is_refused_under_record_privacy() -> None:
    with pytest.raises(PrivacyConfigError) as caught:
        require_legal(Coupling.BATCH, "simclr", RECORD)
    assert caught.value.what == "objective 'simclr' couples the examples of a batch"
    assert caught.value.why == "record-level DP has no per-example gradient to clip"
    for way_out in ("'masked'", "unit 'subject'", "'logit_dp'", "mode 'none'"):
        assert way_out in caught.value.fix


def test_similarities_are_not_clipped_for_a_subject() -> None:
    with pytest.raises(PrivacyConfigError) as caught:
        require_legal(Coupling.LOGITS, "logit_dp", SUBJECT)
    assert (
        caught.value.what == "objective 'logit_dp' bounds what one record changes, not one subject"
    )
    assert "'simclr'" in caught.value.fix


@pytest.mark.parametrize(
    ("coupling", "privacy"),
    [
        *((Coupling.NONE, plan) for plan in (RECORD, SUBJECT, NONE)),
        (Coupling.BATCH, NONE),
        (Coupling.BATCH, SUBJECT),  # records of one subject may meet
        (Coupling.LOGITS, NONE),
        (Coupling.LOGITS, RECORD),
    ],
)
def test_what_stays_within_a_unit_or_is_unprotected_is_legal(
    coupling: Coupling, privacy: PrivacyPlan
) -> None:
    require_legal(coupling, "masked", privacy)


def test_a_coupling_that_this_version_does_not_know_is_refused() -> None:
    for plan in (RECORD, SUBJECT):
        with pytest.raises(PrivacyConfigError):
            require_legal("queue", "moco", plan)  # type: ignore[arg-type]
