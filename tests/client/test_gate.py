"""The gate at a site: what it refuses before anything is paid, and what it remembers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tacit_client import gate
from tacit_client.gate import require_separable
from tacit_common.errors import PrivacyConfigError
from tacit_common.plugins import PluginTable
from tacit_common.privacy.separability import Certificates
from tacit_common.study import Study

MakeStudy = Callable[..., Study]

SUBJECTS = ("privacy.unit=subject", "privacy.records_per_subject=3")
OURS = 'objective={ kind = "plugin", name = "ours" }'


@pytest.fixture(autouse=True)
def nothing_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a new process does."""
    monkeypatch.setattr(gate, "_passed", set())


def check(
    study: Study, folder: Path, objective: str | None = None, *, physical_batch: int = 64
) -> None:
    plugins = {} if objective is None else {"ours": f"tests.faults.hidden_couplings:{objective}"}
    require_separable(
        study,
        PluginTable(plugins),
        Certificates(folder / "certificates.json"),
        physical_batch=physical_batch,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        SUBJECTS,
        (*SUBJECTS, 'objective={ kind = "simclr", projection_dim = 8 }', "views.max_shift=0.2"),
        ('objective={ kind = "logit_dp", projection_dim = 8 }', "views.max_shift=0.2"),
    ],
    ids=["records", "subjects", "within subjects", "logit-dp"],
)
def test_what_may_be_clipped_passes(
    make_study: MakeStudy, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    check(make_study(*overrides), tmp_path)


def test_a_sound_plug_in_passes(make_study: MakeStudy, tmp_path: Path) -> None:
    check(make_study(OURS), tmp_path, "Sound")


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("CentresByTheFirstBatch", "rows add up to the gradient"),
        ("ViewsCentredByTheFirstBatch", "depends on the records that came first"),
        ("CentresLargeBatches", "row i stays when record j is replaced"),
        ("ScalesInFloat32", "one unit changes the clipped sum by at most the clip norm"),
    ],
)
def test_a_coupling_that_hides_from_a_small_check_in_float64_is_refused(
    make_study: MakeStudy, tmp_path: Path, objective: str, said: str
) -> None:
    with pytest.raises(PrivacyConfigError) as raised:
        check(make_study(OURS), tmp_path, objective)
    assert said in str(raised.value)


def test_what_is_kept_of_the_first_subject_is_refused(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    with pytest.raises(PrivacyConfigError, match="came first"):
        check(make_study(OURS, *SUBJECTS), tmp_path, "SubjectsCentredByTheFirstOne")


def test_a_coupling_that_waits_for_more_records_than_a_pass_has_does_no_harm(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """With passes of 32 it never happens; a site with passes of 64 checks anew, and refuses."""
    study = make_study(OURS)
    check(study, tmp_path, "CentresLargeBatches", physical_batch=32)
    with pytest.raises(PrivacyConfigError):
        check(study, tmp_path, "CentresLargeBatches", physical_batch=64)


def test_a_plug_in_that_claims_the_bound_of_logit_dp_is_refused(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    with pytest.raises(PrivacyConfigError, match="no bound that could be accounted for"):
        check(make_study(OURS), tmp_path, "ClaimsLogits")


def test_contrast_within_subjects_of_one_record_is_refused(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    alone = make_study(
        "privacy.unit=subject",
        "privacy.records_per_subject=1",
        'objective={ kind = "simclr", projection_dim = 8 }',
        "views.max_shift=0.2",
    )
    with pytest.raises(PrivacyConfigError, match="has nothing to compare"):
        check(alone, tmp_path)


def test_what_has_passed_is_not_checked_again_and_a_failure_is_not_remembered(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, bad = make_study(), make_study(OURS)
    check(study, tmp_path)
    for _ in range(2):
        with pytest.raises(PrivacyConfigError):
            check(bad, tmp_path, "ScalesInFloat32")
    ran: list[object] = []
    monkeypatch.setattr(gate, "check_separable", lambda *args, **more: ran.append(args))
    monkeypatch.setattr(gate, "_passed", set())  # a new process, the same certificates
    check(study, tmp_path)
    assert ran == []
    check(make_study("encoder.depth=2"), tmp_path)  # another model is another certificate
    assert len(ran) == 1
