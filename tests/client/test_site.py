"""A site pays before it reads, answers once, and says nothing of what it holds."""

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tacit_client.data import ArraySource, LabeledArraySource
from tacit_client.ledger import Ledger
from tacit_client.policy import SitePolicy
from tacit_client.site import Site
from tacit_common.errors import (
    DataError,
    LedgerError,
    NonFiniteUpdateError,
    PluginError,
    PrivacyConfigError,
    RefusalCode,
    SiteRefusal,
    TacitError,
    UnreadableRecordError,
    WireError,
)
from tacit_common.messages import (
    DescribeRequest,
    ProbeReply,
    ProbeRequest,
    SiteDescription,
    TrainReply,
    TrainRequest,
    basis_sha256,
    parameters_sha256,
)
from tacit_common.plugins import PluginTable
from tacit_common.privacy.events import GaussianRelease, PoissonGaussianSteps
from tacit_common.privacy.noise import SecureRandom
from tacit_common.privacy.plan import calibrate
from tacit_common.study import Study

MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]
Ask = Callable[..., TrainRequest]
AskProbe = Callable[..., ProbeRequest]

EVERYBODY = "privacy.sampling_rate=1.0"


class Watched:
    """A data source that writes down every look at its records."""

    def __init__(self, journal: list[str], records: int = 40) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(records, 1, 8, 8, generator=generator)
        self._source = LabeledArraySource(images, np.arange(records) % 10)
        self._journal = journal

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Tensor:
        self._journal.append("read")
        return self._source[index]

    def unit_of(self, index: int) -> Hashable:
        return index

    def label_of(self, index: int) -> int:
        self._journal.append("read label")
        return self._source.label_of(index)


class Unreadable(Watched):
    """Every record is damaged."""

    def __getitem__(self, index: int) -> Tensor:
        raise UnreadableRecordError("a record is damaged", why="it is", fix="mend it")


def watched(make_site: MakeSite, journal: list[str], **changes: Any) -> Site:
    """A site whose reads are in the journal, from after its data was bound to its ledger."""
    site = make_site(source=Watched(journal), **changes)
    journal.clear()
    return site


def update_of(site: Site, request: TrainRequest) -> bytes:
    reply = site.answer(request)
    assert isinstance(reply, TrainReply)
    return reply.update.tobytes()


def kinds(site: Site) -> list[str]:
    return [e.kind for e in site.ledger.entries() if e.kind not in {"GENESIS", "ATOM"}]


def refused(site: Site, request: TrainRequest | ProbeRequest) -> RefusalCode:
    with pytest.raises(SiteRefusal) as raised:
        site.answer(request)
    return raised.value.code


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return make_study(EVERYBODY)


# --- reserve, then touch data, then release, then commit --------------------------------


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens at a site, in order: rows of the ledger, reads, and stored answers."""
    events: list[str] = []
    store = "tacit_client.outbox.Outbox.store"
    for name, kind in (("reserve", "RESERVE"), ("commit", "COMMIT"), ("void", "VOID")):
        written = getattr(Ledger, name)

        def write(self: Ledger, *args: object, written=written, kind=kind) -> None:
            written(self, *args)
            events.append(kind)

        monkeypatch.setattr(Ledger, name, write)
    monkeypatch.setattr(store, lambda self, key, reply: events.append("store"))
    return events


def in_order(journal: Sequence[str]) -> list[str]:
    """The journal without repetitions."""
    return [event for n, event in enumerate(journal) if n == 0 or journal[n - 1] != event]


def test_training_pays_then_reads_then_stores_then_commits(
    make_site: MakeSite, study: Study, train_request: Ask, journal: list[str]
) -> None:
    site = watched(make_site, journal)
    site.answer(train_request(study))
    assert in_order(journal) == ["RESERVE", "read", "store", "COMMIT"]


def test_a_probe_pays_then_reads_then_stores_then_commits(
    make_site: MakeSite,
    make_study: MakeStudy,
    with_probe: str,
    probe_request: AskProbe,
    journal: list[str],
) -> None:
    site = watched(make_site, journal)
    site.answer(probe_request(make_study(with_probe)))
    first, *work, stored, last = in_order(journal)
    assert (first, stored, last) == ("RESERVE", "store", "COMMIT")
    assert set(work) == {"read", "read label"}


def test_a_description_reads_nothing_and_costs_nothing(
    make_site: MakeSite, study: Study, journal: list[str]
) -> None:
    site = make_site(source=Unreadable(journal))
    journal.clear()
    reply = site.answer(DescribeRequest(study))
    assert isinstance(reply, SiteDescription)
    assert (reply.site, reply.declared_units) == ("site-0", 30)
    assert journal == []


def test_what_is_charged_is_what_was_done(
    make_site: MakeSite,
    make_study: MakeStudy,
    with_probe: str,
    train_request: Ask,
    probe_request: AskProbe,
) -> None:
    study, site = make_study(with_probe), make_site()
    site.answer(train_request(study, noise_multiplier=17.0))
    site.answer(probe_request(study, when="after", noise_multiplier=29.0))
    assert site.ledger.events == [
        PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=17.0, steps=2),
        GaussianRelease(noise_multiplier=29.0),
    ]
    train, probe = site.ledger.charges
    assert (train.action, train.label, train.run) == ("train", "round 1", "run")
    assert (probe.action, probe.label) == ("probe", "probe 0 after")
    assert train.study_digest == probe.study_digest == study.digest()


def test_as_many_steps_are_noised_as_the_ledger_says(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    study = make_study("federation.local_steps=5", EVERYBODY)
    start = train_request(study)

    class Counting(SecureRandom):
        calls = 0

        def gaussian(self, n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            Counting.calls += 1
            assert n == len(start.parameters)
            return super().gaussian(n)

    site = make_site(random=Counting())
    site.answer(start)
    (event,) = site.ledger.events
    assert isinstance(event, PoissonGaussianSteps)
    assert Counting.calls == event.steps == 5


class NobodyJoins(SecureRandom):
    """Every coin of the Poisson sample shows tails."""

    def bernoulli(self, n: int, p: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.zeros(n, dtype=np.bool_)


def test_an_update_carries_the_noise_that_was_charged(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    study = make_study("federation.local_steps=1")
    site = make_site(random=NobodyJoins())
    reply = site.answer(train_request(study, noise_multiplier=2.5))
    assert isinstance(reply, TrainReply)
    client_lr, batch, clip_norm = 0.1, 30 * 0.25, 0.5
    stddev = float(reply.update.std()) * batch / client_lr
    # It is noise alone; 6 standard errors of 4,856 draws are 6 %.
    assert stddev == pytest.approx(2.5 * clip_norm * (1 + 1 / 64), rel=0.06)


def test_a_round_in_which_nobody_was_sampled_still_sends_noise(
    make_site: MakeSite, study: Study, train_request: Ask, journal: list[str]
) -> None:
    site = watched(make_site, journal, random=NobodyJoins())
    reply = site.answer(train_request(study))
    assert isinstance(reply, TrainReply)
    assert (reply.update != 0).mean() > 0.99
    assert "read" not in journal


def test_statistics_carry_the_noise_that_was_charged(
    make_site: MakeSite, make_study: MakeStudy, with_probe: str, probe_request: AskProbe
) -> None:
    study, site, draws = make_study(with_probe), make_site(), []
    for number in range(40):
        reply = site.answer(probe_request(study, run=f"{number}", noise_multiplier=50.0))
        assert isinstance(reply, ProbeReply)
        draws.append(reply.statistics)
    stddev = float(np.std(draws, axis=0, ddof=1).mean())
    assert stddev == pytest.approx(50.0 * math.sqrt(3) * (1 + 1 / 64), rel=0.08)


# --- one payment, one answer -----------------------------------------------------------


def test_the_same_request_twice_gives_the_same_bytes_for_one_payment(
    make_site: MakeSite, study: Study, train_request: Ask
) -> None:
    site, request = make_site(), train_request(study)
    first = update_of(site, request)
    assert update_of(site, request) == first
    assert update_of(make_site(), request) == first  # after the site was started again
    assert kinds(site) == ["RESERVE", "COMMIT"]


def test_the_same_probe_twice_gives_the_same_bytes_for_one_payment(
    make_site: MakeSite, make_study: MakeStudy, with_probe: str, probe_request: AskProbe
) -> None:
    site, request = make_site(), probe_request(make_study(with_probe))
    first, second = site.answer(request), make_site().answer(request)
    assert isinstance(first, ProbeReply)
    assert isinstance(second, ProbeReply)
    assert first.statistics.tobytes() == second.statistics.tobytes()
    assert kinds(site) == ["RESERVE", "COMMIT"]


def test_no_sequence_of_requests_gets_two_answers_out_of_one_payment(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    study, site = make_study("federation.rounds=8"), make_site()
    requests = [train_request(study, round=number) for number in range(1, 8)]
    answers = [update_of(site, request) for request in requests]
    for request, answer in [*zip(requests, answers, strict=True)] * 2:
        try:
            again: bytes | RefusalCode = update_of(site, request)
        except SiteRefusal as refusal:
            again = refusal.code
        assert again in {answer, RefusalCode.REPLAY}
    assert kinds(site) == ["RESERVE", "COMMIT"] * 7


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.mark.parametrize("moment", ["in the work", "before the store", "before the commit"])
def test_a_request_that_was_interrupted_is_paid_once_and_answered_once(
    make_site: MakeSite,
    study: Study,
    train_request: Ask,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    site, request = make_site(), train_request(study)

    def kill(*arguments: object) -> None:
        raise Killed

    place = {
        "in the work": "tacit_client.site.local_update",
        "before the store": "tacit_client.outbox.Outbox.store",
        "before the commit": "tacit_client.ledger.Ledger.commit",
    }[moment]
    with monkeypatch.context() as context:
        context.setattr(place, kill)
        with pytest.raises(Killed):
            site.answer(request)
    assert kinds(site) == ["RESERVE"]
    answer = update_of(make_site(), request)
    assert update_of(make_site(), request) == answer
    assert kinds(site) == ["RESERVE", "COMMIT"]


def test_an_answer_that_was_stored_is_committed_before_it_leaves(
    make_site: MakeSite, study: Study, train_request: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, request = make_site(), train_request(study)

    def full(self: Ledger, key: str) -> None:
        raise LedgerError("the ledger cannot be used", why="the disk is full", fix="make room")

    with monkeypatch.context() as context:
        context.setattr(Ledger, "commit", full)
        for _ in range(2):  # the work, and then the answer that was stored
            with pytest.raises(LedgerError):
                site.answer(request)
    assert kinds(site) == ["RESERVE"]


@pytest.mark.parametrize(
    "change",
    [
        {"run": "another"},
        {"round": 2},
        {"noise_multiplier": 1.0000001},
        {"parameters_sha256": "0" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_request_that_differs_in_anything_is_another_request(
    make_site: MakeSite, study: Study, train_request: Ask, change: dict[str, object]
) -> None:
    assert train_request(study).plan.key() != train_request(study, **change).plan.key()


def test_parameters_other_than_the_plan_names_are_refused_before_anything_is_paid(
    make_site: MakeSite, study: Study, train_request: Ask
) -> None:
    request = train_request(study)
    swapped = TrainRequest(request.plan, request.parameters + np.float32(1.0))
    site = make_site()
    with pytest.raises((SiteRefusal, WireError)):
        site.answer(swapped)
    assert kinds(site) == []


def test_without_privacy_a_repeated_request_repeats_itself(
    make_site: MakeSite, make_study: MakeStudy, no_privacy: str, train_request: Ask, tmp_path: Path
) -> None:
    site, request = make_site(), train_request(make_study(no_privacy))
    assert update_of(site, request) == update_of(site, request)
    assert kinds(site).count("RESERVE") == 1
    assert list((tmp_path / "sites" / "site-0").glob("outbox/*")) == []  # nothing to keep


# --- refusals depend on the plan and the ledger alone ------------------------------------


def test_a_request_over_budget_reads_nothing_and_reserves_nothing(
    make_site: MakeSite, study: Study, train_request: Ask, journal: list[str]
) -> None:
    policy = SitePolicy.rehearsal(
        unit="record", epsilon_cap=0.5, delta=1e-5, allow_non_private=False
    )
    site = watched(make_site, journal, policy=policy)
    assert refused(site, train_request(study)) is RefusalCode.BUDGET
    assert journal == []


def test_the_budget_of_a_site_counts_every_study_and_run(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    """Each plan of ε = 8 is held whole; two fit below 15, whoever asks, and a third does not."""
    one, other = make_study(EVERYBODY), make_study(EVERYBODY, "seed=9")
    policy = SitePolicy.rehearsal(
        unit="record", epsilon_cap=15.0, delta=1e-5, allow_non_private=False
    )
    site = make_site(policy=policy)
    site.answer(train_request(one, run="first"))
    site.answer(train_request(other, run="second"))
    assert refused(site, train_request(other, run="third")) is RefusalCode.BUDGET
    site.answer(train_request(one, run="first", round=2))  # what was begun may be finished
    assert kinds(site).count("RESERVE") == 3


def test_a_plan_that_takes_the_whole_cap_is_finished_and_followed_by_nothing(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    study = make_study(EVERYBODY)
    policy = SitePolicy.rehearsal(
        unit="record", epsilon_cap=8.0, delta=1e-5, allow_non_private=False
    )
    site = make_site(policy=policy)
    for number in (1, 2):
        site.answer(train_request(study, round=number))
    tiny = make_study(EVERYBODY, "privacy.epsilon=0.01")
    assert refused(site, train_request(tiny, run="second")) is RefusalCode.BUDGET
    assert refused(site, train_request(study, run="second")) is RefusalCode.BUDGET


def test_a_round_that_is_asked_for_again_with_other_parameters_is_no_part_of_the_plan(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    """Else a server could have round 1 as often as it likes, for one payment of the plan."""
    study = make_study(EVERYBODY)
    policy = SitePolicy.rehearsal(
        unit="record", epsilon_cap=8.0, delta=1e-5, allow_non_private=False
    )
    site = make_site(policy=policy)
    request = train_request(study)
    site.answer(request)
    again = train_request(study, request.parameters + np.float32(1.0))
    assert refused(site, again) is RefusalCode.BUDGET
    assert kinds(site).count("RESERVE") == 1


def test_a_request_is_not_taken_up_on_data_that_it_was_not_paid_for(
    make_site: MakeSite, study: Study, train_request: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site died after it paid, and came back with more records."""
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    request = train_request(study)

    def kill(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as context:
        context.setattr("tacit_client.site.local_update", kill)
        with pytest.raises(Killed):
            make_site(source=ArraySource(images[:40])).answer(request)
    grown = make_site(source=ArraySource(images))
    assert len(grown.atoms) == 2
    assert refused(grown, request) is RefusalCode.REPLAY
    assert kinds(grown) == ["RESERVE"]
    same = make_site(source=ArraySource(images[:40]))
    assert isinstance(same.answer(request), TrainReply)  # what was paid for may be done


@pytest.mark.parametrize(("asked", "kept"), [("record", "subject"), ("subject", "record")])
def test_a_site_admits_studies_of_its_own_unit_alone(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask, asked: str, kept: str
) -> None:
    cap = ["privacy.records_per_subject=3"] if asked == "subject" else []
    study = make_study(f"privacy.unit={asked}", *cap)
    policy = SitePolicy.rehearsal(unit=kept, epsilon_cap=100.0, delta=1e-5, allow_non_private=False)
    site = make_site(policy=policy)
    assert refused(site, train_request(study)) is RefusalCode.POLICY
    assert kinds(site) == []


def test_a_unit_does_not_change_when_the_operator_changes_the_policy(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    """A bound for records and one for subjects do not add up to either."""
    by_record = make_study()
    make_site().answer(train_request(by_record))
    by_subject = make_study("privacy.unit=subject", "privacy.records_per_subject=3")
    changed = SitePolicy.rehearsal(
        unit="subject", epsilon_cap=100.0, delta=1e-5, allow_non_private=False
    )
    site = make_site(policy=changed)
    assert refused(site, train_request(by_subject, run="second")) is RefusalCode.BUDGET
    assert kinds(site).count("RESERVE") == 1


# --- a ledger that forgot --------------------------------------------------------------


def test_a_site_whose_ledger_is_behind_its_own_word_refuses_and_reads_nothing(
    make_site: MakeSite, study: Study, train_request: Ask, journal: list[str], tmp_path: Path
) -> None:
    site = watched(make_site, journal)
    old = (tmp_path / "sites" / "site-0" / "ledger.db").read_bytes()
    site.answer(train_request(study))
    spent = site.ledger.head
    site.ledger.close()
    for stale in (tmp_path / "sites" / "site-0").glob("ledger.db*"):
        stale.unlink()
    (tmp_path / "sites" / "site-0" / "ledger.db").write_bytes(old)
    restored = watched(make_site, journal)
    with pytest.raises(LedgerError, match="rolled back"):
        restored.answer(train_request(study), witnessed=spent)
    assert journal == []


def test_a_head_of_another_site_is_no_witness(
    make_site: MakeSite, study: Study, train_request: Ask
) -> None:
    stranger = make_site("site-1").ledger.head
    with pytest.raises(LedgerError, match="not this site's"):
        make_site().answer(train_request(study), witnessed=stranger)


def test_mode_none_needs_the_operators_leave(
    make_site: MakeSite, make_study: MakeStudy, no_privacy: str, train_request: Ask
) -> None:
    strict = SitePolicy.rehearsal(
        unit="record", epsilon_cap=1e6, delta=1e-5, allow_non_private=False
    )
    site = make_site(policy=strict)
    assert refused(site, train_request(make_study(no_privacy))) is RefusalCode.POLICY
    assert kinds(site) == []


def test_an_objective_that_couples_records_is_refused_before_anything_is_paid(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask, journal: list[str]
) -> None:
    coupled = make_study(
        'objective={ kind = "simclr", projection_dim = 8 }', "views={ max_shift = 0.2 }"
    )
    with pytest.raises(PrivacyConfigError, match="couples the examples of a batch"):
        watched(make_site, journal).answer(train_request(coupled))
    assert journal == []


@pytest.mark.parametrize("noise", ["missing under DP", "named without DP"])
def test_noise_that_does_not_fit_the_mode_is_refused_before_anything_is_paid(
    make_site: MakeSite,
    make_study: MakeStudy,
    no_privacy: str,
    train_request: Ask,
    journal: list[str],
    noise: str,
) -> None:
    request = (
        train_request(make_study(), noise_multiplier=None)
        if noise == "missing under DP"
        else train_request(make_study(no_privacy), noise_multiplier=1.0)
    )
    assert refused(watched(make_site, journal), request) is RefusalCode.MESSAGE
    assert journal == []


def test_less_noise_than_the_studys_own_budget_asks_for_is_refused_before_anything_is_paid(
    make_site: MakeSite,
    make_study: MakeStudy,
    with_probe: str,
    train_request: Ask,
    probe_request: AskProbe,
) -> None:
    study, site = make_study(with_probe), make_site()
    schedule = calibrate(study)
    (probe_noise,) = schedule.probe_noise_multipliers
    assert schedule.noise_multiplier is not None
    assert probe_noise is not None
    train = train_request(study, noise_multiplier=math.nextafter(schedule.noise_multiplier, 0))
    probe = probe_request(study, noise_multiplier=math.nextafter(probe_noise, 0))
    assert refused(site, train) is RefusalCode.POLICY
    assert refused(site, probe) is RefusalCode.POLICY
    assert kinds(site) == []
    site.answer(train_request(study, noise_multiplier=2 * schedule.noise_multiplier))
    site.answer(probe_request(study, noise_multiplier=2 * probe_noise))


def test_steps_of_more_units_than_a_sum_is_proven_for_are_refused_before_anything_is_paid(
    make_site: MakeSite,
    make_study: MakeStudy,
    train_request: Ask,
    journal: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tacit_client.site.MOST_UNITS", 4)
    assert refused(watched(make_site, journal), train_request(make_study())) is RefusalCode.MESSAGE
    assert journal == []


def test_releases_that_the_study_does_not_plan_are_refused_before_anything_is_paid(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask, probe_request: AskProbe
) -> None:
    once = 'probes=[{ kind = "ridge", classes = 10, epsilon = 1.0, when = ["before"] }]'
    study, site = make_study(once), make_site()
    assert refused(site, train_request(study, round=3)) is RefusalCode.MESSAGE
    assert refused(site, probe_request(study, when="after")) is RefusalCode.MESSAGE
    assert kinds(site) == []


@pytest.mark.parametrize("wrong", ["moved", "wider", "of another width", "not finite"])
def test_a_basis_that_is_not_the_plans_is_refused_before_anything_is_paid(
    make_site: MakeSite, make_study: MakeStudy, with_probe: str, probe_request: AskProbe, wrong: str
) -> None:
    request, site = probe_request(make_study(with_probe)), make_site()
    mean, components = request.basis_mean, request.basis_components
    match wrong:
        case "moved":
            mean = mean + 1.0
        case "wider":
            components = np.eye(16)[:, :5]
        case "of another width":
            mean, components = np.zeros(15), np.eye(15)[:, :4]
        case _:
            mean = np.full(16, np.nan)
    named = request.plan
    if wrong != "moved":
        named = named.model_copy(update={"basis_sha256": basis_sha256(mean, components)})
    asked = ProbeRequest(named, request.parameters, mean, components)
    assert refused(site, asked) is RefusalCode.MESSAGE
    assert kinds(site) == []


def test_a_plug_in_that_is_not_installed_is_refused_before_anything_is_paid(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask, journal: list[str]
) -> None:
    study = make_study('objective={ kind = "plugin", name = "mine" }')
    parameters = np.zeros(3, dtype=np.float32)
    with pytest.raises(PluginError, match="not configured here"):
        watched(make_site, journal).answer(train_request(study, parameters))
    assert journal == []


@pytest.mark.parametrize("size", [0, 7])
def test_parameters_that_do_not_fit_the_model_cost_nothing(
    make_site: MakeSite, study: Study, train_request: Ask, size: int
) -> None:
    site = make_site()
    with pytest.raises(TacitError):
        site.answer(train_request(study, np.zeros(size, dtype=np.float32)))
    assert kinds(site) == []


def test_a_probe_that_the_study_does_not_have_costs_nothing(
    make_site: MakeSite, make_study: MakeStudy, with_probe: str, probe_request: AskProbe
) -> None:
    site = make_site()
    assert refused(site, probe_request(make_study(with_probe), probe=1)) is RefusalCode.MESSAGE
    assert kinds(site) == []


def test_a_probe_of_a_site_without_labels_is_refused_and_costs_nothing(
    make_site: MakeSite, make_study: MakeStudy, with_probe: str, probe_request: AskProbe
) -> None:
    class Unlabelled:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Tensor:
            return torch.zeros(1, 8, 8)

        def unit_of(self, index: int) -> Hashable:
            return index

    site = make_site(source=Unlabelled())
    with pytest.raises(DataError, match="needs labels"):
        site.answer(probe_request(make_study(with_probe)))
    assert kinds(site) == []


def test_a_failure_is_not_refunded_and_not_repeated(
    make_site: MakeSite, study: Study, train_request: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def diverges(*arguments: object) -> None:
        attempts.append(arguments)
        raise NonFiniteUpdateError("training diverged", why="it did", fix="lower client_lr")

    monkeypatch.setattr("tacit_client.site.local_update", diverges)
    site, request = make_site(), train_request(study)
    for _ in range(3):  # a second try would be a second look at the data, for nothing
        assert refused(site, request) is RefusalCode.DIVERGED
    assert len(attempts) == 1
    assert kinds(site) == ["RESERVE", "VOID"]
    assert len(site.ledger.events) == 1


# --- one site, several studies -----------------------------------------------------------


def test_a_site_answers_after_its_model_was_of_another_study(
    make_site: MakeSite, make_study: MakeStudy, no_privacy: str, train_request: Ask
) -> None:
    one = train_request(make_study(no_privacy))
    two = train_request(make_study(no_privacy, "encoder.width=8"))
    site = make_site()
    first = update_of(site, one)
    site.answer(two)
    assert update_of(site, one) == first


def test_the_hash_in_a_plan_is_that_of_the_bytes(train_request: Ask, study: Study) -> None:
    request = train_request(study)
    assert request.plan.parameters_sha256 == parameters_sha256(request.parameters.copy())
    assert parameters_sha256(request.parameters + 1) != request.plan.parameters_sha256


def test_a_site_uses_its_own_plug_ins_and_not_the_studys(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    study = make_study('objective={ kind = "plugin", name = "mine" }')
    assert not hasattr(study, "plugins")
    plugins = PluginTable({"mine": "no_such_module_of_ours:thing"})
    with pytest.raises(PluginError, match="cannot be imported"):
        make_site(plugins=plugins).answer(train_request(study, np.zeros(3, dtype=np.float32)))
