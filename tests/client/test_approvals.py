"""Consent is to one study of one coordinator, lasts, and cannot be had by writing files."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tacit_client.policy.approvals import LONGEST_STUDY, MOST_PENDING, Approvals
from tacit_common.errors import RefusalCode, SiteRefusal, UsageError
from tacit_common.study import Study

MakeStudy = Callable[..., Study]

COORDINATOR, ANOTHER = "c" * 64, "d" * 64


@pytest.fixture
def approvals(tmp_path: Path) -> Approvals:
    return Approvals(tmp_path, coordinator=COORDINATOR)


def refused(approvals: Approvals, study: Study) -> SiteRefusal:
    with pytest.raises(SiteRefusal) as raised:
        approvals.require_approved(study)
    assert raised.value.code is RefusalCode.APPROVAL
    return raised.value


def agree(approvals: Approvals, study: Study) -> None:
    approvals.approve(study, epsilon=8.0, delta=1e-5, shown="what it does")


def test_a_study_waits_until_it_is_approved_and_then_no_more(
    approvals: Approvals, make_study: MakeStudy
) -> None:
    study = make_study()
    assert study.digest()[:32] in refused(approvals, study).fix
    assert approvals.pending() == (study,)
    agree(approvals, study)
    approvals.require_approved(study)
    assert approvals.pending() == ()


def test_an_approval_says_who_what_when_and_what_was_shown(
    approvals: Approvals, make_study: MakeStudy, tmp_path: Path
) -> None:
    agree(approvals, make_study())
    (noted,) = json.loads((tmp_path / "approvals.json").read_text())["approvals"]
    assert noted["digest"] == make_study().digest()
    assert noted["study"] == "tiny"
    assert noted["coordinator"] == COORDINATOR
    assert (noted["epsilon"], noted["delta"], noted["shown"]) == (8.0, 1e-5, "what it does")
    assert noted["at"].endswith("Z")


def test_an_approval_is_for_no_other_coordinator(
    approvals: Approvals, make_study: MakeStudy, tmp_path: Path
) -> None:
    """Else a site that turns to another one would take its first study unseen."""
    agree(approvals, make_study())
    other = Approvals(tmp_path, coordinator=ANOTHER)
    refused(other, make_study())
    assert other.all() == ()
    agree(other, make_study())
    other.withdraw(make_study().digest())
    approvals.require_approved(make_study())  # each has its own


def test_an_approval_outlives_the_process_and_counts_in_every_other(
    approvals: Approvals, make_study: MakeStudy, tmp_path: Path
) -> None:
    at_work = Approvals(tmp_path, coordinator=COORDINATOR)
    refused(at_work, make_study())
    agree(approvals, make_study())
    at_work.require_approved(make_study())
    approvals.withdraw(make_study().digest())
    refused(at_work, make_study())


def test_to_approve_twice_is_to_approve_once(approvals: Approvals, make_study: MakeStudy) -> None:
    agree(approvals, make_study())
    agree(approvals, make_study())
    assert len(approvals.all()) == 1


def test_what_was_never_approved_cannot_be_withdrawn(
    approvals: Approvals, make_study: MakeStudy
) -> None:
    with pytest.raises(UsageError, match="not approved"):
        approvals.withdraw(make_study().digest())


def test_a_flood_of_studies_does_not_fill_the_disk(
    approvals: Approvals, make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study()
    flood = [study.model_copy(update={"seed": seed}) for seed in range(MOST_PENDING + 5)]
    for number, one in enumerate(flood):
        refused(approvals, one)
        file = tmp_path / "pending" / f"{one.digest()}.toml"
        os.utime(file, ns=(number, number))  # a clock may be too coarse to tell them apart
    assert approvals.pending() == tuple(flood[-MOST_PENDING:])
    assert len(list((tmp_path / "pending").iterdir())) == MOST_PENDING


def test_a_study_that_asks_again_does_not_write_again(
    approvals: Approvals, make_study: MakeStudy, tmp_path: Path
) -> None:
    refused(approvals, make_study())
    (file,) = (tmp_path / "pending").iterdir()
    os.utime(file, ns=(1, 1))
    refused(approvals, make_study())
    assert file.stat().st_mtime_ns == 1


def test_a_study_too_long_to_read_is_not_kept(
    approvals: Approvals, make_study: MakeStudy, tmp_path: Path
) -> None:
    long = "x" * LONGEST_STUDY
    study = make_study(f'objective={{ kind = "plugin", name = "mine", options.text = "{long}" }}')
    assert "bytes" in refused(approvals, study).why
    assert not (tmp_path / "pending").exists()


def test_a_waiting_file_that_somebody_changed_is_not_what_is_approved(
    approvals: Approvals, make_study: MakeStudy, tmp_path: Path
) -> None:
    """A person would agree to the study on the screen, and consent would go to another."""
    refused(approvals, make_study())
    (file,) = (tmp_path / "pending").iterdir()
    file.write_text(file.read_text().replace("seed = 3", "seed = 4"))
    for look in (approvals.pending, lambda: approvals.pending_study(make_study().digest())):
        with pytest.raises(UsageError, match="not the study that was asked for"):
            look()


@pytest.mark.parametrize("content", ["", "{", '{"format": 2, "approvals": []}', "[]"])
def test_approvals_that_cannot_be_read_approve_nothing(
    approvals: Approvals, make_study: MakeStudy, tmp_path: Path, content: str
) -> None:
    agree(approvals, make_study())
    (tmp_path / "approvals.json").write_text(content)
    with pytest.raises(UsageError, match="cannot be read"):
        approvals.require_approved(make_study())


def test_a_folder_that_is_gone_is_a_typed_error(tmp_path: Path, make_study: MakeStudy) -> None:
    gone = Approvals(tmp_path / "gone", coordinator=COORDINATOR)
    with pytest.raises(UsageError, match="cannot be written"):
        agree(gone, make_study())


def test_a_digest_may_be_named_by_its_beginning(
    approvals: Approvals, make_study: MakeStudy
) -> None:
    waiting, approved = make_study(), make_study("seed=4")
    refused(approvals, waiting)
    agree(approvals, approved)
    for study in (waiting, approved):
        assert approvals.named(study.digest()[:8]) == study.digest()
    with pytest.raises(UsageError, match="fewer than 8"):
        approvals.named(waiting.digest()[:7])
    with pytest.raises(UsageError, match="0 studies"):
        approvals.named("0" * 64)


def _approve_some(folder: Path, study: str, seeds: list[int]) -> None:
    approvals = Approvals(folder, coordinator=COORDINATOR)
    for seed in seeds:
        agree(approvals, Study.model_validate_json(study).model_copy(update={"seed": seed}))


def test_two_people_who_approve_at_once_both_have_their_say(
    approvals: Approvals, make_study: MakeStudy, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    text = make_study().model_dump_json()
    people = [
        context.Process(target=_approve_some, args=(tmp_path, text, [10 * n + k for k in range(5)]))
        for n in range(2)
    ]
    for person in people:
        person.start()
    for person in people:
        person.join(60)
        assert person.exitcode == 0
    assert len(approvals.all()) == 10
