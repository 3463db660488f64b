"""What leaves a site does not tell of a record: not by its bytes, and not by whether it comes."""

import dataclasses
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tacit_client.data import LabeledArraySource
from tacit_client.site import Site
from tacit_common.data import DataSource
from tacit_common.errors import UnreadableRecordError
from tacit_common.messages import (
    DescribeRequest,
    ProbeReply,
    ProbeRequest,
    SiteDescription,
    TrainReply,
    TrainRequest,
)
from tacit_common.privacy.noise import InsecureSeededRandom, SecureRandom
from tacit_common.study import Study

MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]
Ask = Callable[..., TrainRequest]
AskProbe = Callable[..., ProbeRequest]

EVERYBODY = "privacy.sampling_rate=1.0"


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return make_study(EVERYBODY)


class Forty(LabeledArraySource):
    """Forty images of ten classes, or as many as are asked for."""

    def __init__(self, records: int = 40) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(records, 1, 8, 8, generator=generator)
        super().__init__(images, np.arange(records, dtype=np.int64) % 10)


def update_of(site: Site, request: TrainRequest) -> bytes:
    reply = site.answer(request)
    assert isinstance(reply, TrainReply)
    return reply.update.tobytes()


def source_of(images: Tensor) -> LabeledArraySource:
    return LabeledArraySource(images, np.zeros(len(images), dtype=np.int64))


class LastIs(Forty):
    """Reading the last record gives this, or raises it; the others are sound."""

    def __init__(self, last: object, *, label: object = 0) -> None:
        super().__init__()
        self._last, self._last_label = last, label

    def __getitem__(self, index: int) -> Tensor:
        return super().__getitem__(index) if index < 39 else self._give(self._last)

    def label_of(self, index: int) -> int:
        return super().label_of(index) if index < 39 else self._give(self._last_label)

    @staticmethod
    def _give(thing: Any) -> Any:
        if isinstance(thing, Exception):
            raise thing
        return thing


def test_a_record_that_is_not_finite_gives_the_update_without_it(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    # One step, and the record comes last: so all others get the same views without it.
    study = make_study(EVERYBODY, "federation.local_steps=1")

    def update(last: float | None) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        sound = Forty()
        source: DataSource = LastIs(torch.full((1, 8, 8), last or 0.0))
        if last is None:
            source = source_of(torch.stack([sound[index] for index in range(len(sound) - 1)]))
        seeded = InsecureSeededRandom(1, insecure_rng=True)
        # One name, so one stream of views; another run, so another answer.
        reply = make_site(source=source, random=seeded).answer(
            train_request(study, run=f"last-is-{last}".replace("+", ""))
        )
        assert isinstance(reply, TrainReply)
        return reply.update

    without = update(None)
    lattice_step = 0.1 * 0.5 / 30 / (64 * math.sqrt(len(without)))  # lr·C/batch, as noise has it
    for value in (math.nan, math.inf, -math.inf, 3e38):
        moved = np.abs(update(value) - without)
        assert moved.max() < 1.5 * lattice_step  # sums of 39 and of 40 rows round apart
        assert (moved > 0.5 * lattice_step).mean() < 0.01
    assert np.abs(update(0.5) - without).max() > 10 * lattice_step  # a sound one does count


DAMAGED = UnreadableRecordError("a record is damaged", why="it is", fix="mend it")
UNUSABLE: dict[str, object] = {
    "damaged": DAMAGED,
    "raises anything": ZeroDivisionError("in a data source of one's own"),
    "of another shape": torch.zeros(1, 9, 9),
    "of another rank": torch.zeros(8, 8),
    "of double precision": torch.zeros(1, 8, 8, dtype=torch.float64),
    "of whole numbers": torch.zeros(1, 8, 8, dtype=torch.uint8),
    "of numpy": np.zeros((1, 8, 8), dtype=np.float32),
    "nothing": None,
}


@pytest.mark.parametrize(
    "name",
    list(UNUSABLE),
)
def test_whether_a_site_answers_does_not_depend_on_one_record(
    make_site: MakeSite,
    make_study: MakeStudy,
    with_probe: str,
    train_request: Ask,
    probe_request: AskProbe,
    name: str,
) -> None:
    """A refusal would tell that the record is there: a release that nobody paid for."""
    study, site = make_study(with_probe, EVERYBODY), make_site(source=LastIs(UNUSABLE[name]))
    update, statistics = site.answer(train_request(study)), site.answer(probe_request(study))
    assert isinstance(update, TrainReply)
    assert isinstance(statistics, ProbeReply)
    assert np.isfinite(update.update).all()
    assert np.isfinite(statistics.statistics).all()


@pytest.mark.parametrize(
    "label",
    [
        -1,
        10**6,
        2**80,
        DAMAGED,
        KeyError("label"),
    ],
    ids=repr,
)
def test_whether_a_site_answers_does_not_depend_on_one_label(
    make_site: MakeSite,
    make_study: MakeStudy,
    with_probe: str,
    probe_request: AskProbe,
    label: object,
) -> None:
    site = make_site(source=LastIs(torch.zeros(1, 8, 8), label=label))
    reply = site.answer(probe_request(make_study(with_probe)))
    assert isinstance(reply, ProbeReply)


def test_without_privacy_a_damaged_record_is_an_error(
    make_site: MakeSite, make_study: MakeStudy, no_privacy: str, train_request: Ask
) -> None:
    study = make_study(no_privacy, "privacy.sampling_rate=1.0")
    with pytest.raises(UnreadableRecordError):
        make_site(source=LastIs(DAMAGED)).answer(train_request(study))


def test_no_seed_controls_the_noise_of_an_update(
    make_site: MakeSite, study: Study, train_request: Ask
) -> None:
    updates = []
    for name in ("a", "b"):
        torch.manual_seed(0)
        np.random.seed(0)
        site = make_site(name, random=SecureRandom())
        updates.append(update_of(site, train_request(study)))
    assert updates[0] != updates[1]


class OnlyViewsAreRandom(SecureRandom):
    """Everybody joins and nothing is noised: what is left to chance are the views."""

    def bernoulli(self, n: int, p: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.ones(n, dtype=np.bool_)

    def gaussian(self, n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.zeros(n)


def test_no_seed_that_a_server_knows_controls_the_views_of_a_record(
    make_site: MakeSite, study: Study, train_request: Ask
) -> None:
    """In the order of the sample, known views would tell how many records stand before one."""
    site, updates = make_site(random=OnlyViewsAreRandom()), []
    for run in ("one", "two"):
        torch.manual_seed(0)
        updates.append(update_of(site, train_request(study, run=run)))
    assert updates[0] != updates[1]


def test_without_privacy_an_update_is_a_function_of_the_study_and_the_site(
    make_site: MakeSite, make_study: MakeStudy, no_privacy: str, train_request: Ask
) -> None:
    request = train_request(make_study(no_privacy))
    torch.manual_seed(0)
    first = update_of(make_site("a", source=Forty()), request)
    torch.manual_seed(1)
    again = update_of(make_site("a", source=Forty()), request)
    other = update_of(make_site("b", source=Forty()), request)
    assert first == again
    assert first != other  # sites draw their own samples and views


@pytest.mark.parametrize("records", [1, 40, 41])
def test_plans_descriptions_and_sizes_do_not_follow_from_the_number_of_records(
    make_site: MakeSite,
    make_study: MakeStudy,
    with_probe: str,
    train_request: Ask,
    probe_request: AskProbe,
    records: int,
) -> None:
    study = make_study(with_probe)
    told = []
    for name, count in (("a", 40), ("b", records)):
        site = make_site(name, source=Forty(count))
        update = site.answer(train_request(study))
        statistics = site.answer(probe_request(study))
        described = site.answer(DescribeRequest(study))
        assert isinstance(update, TrainReply)
        assert isinstance(statistics, ProbeReply)
        assert isinstance(described, SiteDescription)
        told.append(
            (
                described.model_copy(update={"site": ""}).model_dump_json(),
                update.update.shape,
                update.train_loss,
                statistics.statistics.shape,
                [charge.event for charge in site.ledger.charges],
            )
        )
    assert told[0] == told[1]


def test_a_training_loss_leaves_without_privacy_only(
    make_site: MakeSite, make_study: MakeStudy, no_privacy: str, train_request: Ask
) -> None:
    private = make_site("a").answer(train_request(make_study(EVERYBODY)))
    plain = make_site("b").answer(train_request(make_study(no_privacy)))
    assert isinstance(private, TrainReply)
    assert isinstance(plain, TrainReply)
    assert private.train_loss is None
    assert plain.train_loss is not None


class Lending(Forty):
    """Counts how many of the records that it gave are still in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = 0, 0

    def __getitem__(self, index: int) -> Tensor:
        record = super().__getitem__(index).clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(record, self._forget)
        return record

    def _forget(self) -> None:
        self.alive -= 1


def test_no_more_records_are_in_memory_than_the_physical_batch(
    make_site: MakeSite, study: Study, train_request: Ask
) -> None:
    source = Lending()
    site = dataclasses.replace(make_site(source=source), physical_batch=4)
    site.answer(train_request(study))
    assert 0 < source.most <= 2 * 4  # those in work, and those that are read meanwhile


def test_a_probe_leaves_no_trace_in_the_training_that_follows(
    make_site: MakeSite,
    make_study: MakeStudy,
    with_probe: str,
    train_request: Ask,
    probe_request: AskProbe,
) -> None:
    # Opacus's hooks sit on the model that a probe embeds with: neither may spoil the other.
    study = make_study(with_probe, EVERYBODY)
    updates = []
    for run in ("one", "two"):
        site = make_site(random=InsecureSeededRandom(6, insecure_rng=True))
        updates.append(update_of(site, train_request(study, run=run)))
        site.answer(probe_request(study, run=run))
    assert updates[0] == updates[1]
