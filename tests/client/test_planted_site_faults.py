"""Faults of a whole site, planted, and the checks that catch them; a sound site passes each."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.faults.site import (
    DescribesItsCount,
    PaysAfterwards,
    ProbesForFree,
    TellsItsLoss,
    as_faulty,
)
from torch import Tensor

from tacit_client.data import LabeledArraySource
from tacit_client.site import Site
from tacit_common.messages import DescribeRequest, ProbeReply, Request, SiteDescription, TrainReply
from tacit_common.privacy.noise import InsecureSeededRandom
from tacit_common.study import Study

MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]


class FaultFound(AssertionError):  # noqa: N818 - a finding, not a mishap
    """A check found a fault."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise FaultFound(what)


@dataclass
class Watched:
    """A data source that calls `look` before every look at a record or a label."""

    records: LabeledArraySource
    look: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor:
        self.look()
        return self.records[index]

    def unit_of(self, index: int) -> Hashable:
        return index

    def label_of(self, index: int) -> int:
        self.look()
        return self.records.label_of(index)


def records(count: int, last: float = 0.5) -> LabeledArraySource:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[-1] = last
    return LabeledArraySource(images, np.arange(count) % 10)


@dataclass(frozen=True)
class World:
    """Sites that run one kind of software, and what may be asked of them."""

    make_site: MakeSite
    software: type[Site]
    requests: dict[str, Request]

    def site(self, name: str, source: object) -> Site:
        made = self.make_site(
            "site-0", folder=name, source=source, random=InsecureSeededRandom(0, insecure_rng=True)
        )
        return as_faulty(made, self.software)


def every_look_at_data_is_paid_for_in_advance(world: World) -> None:
    """Whatever is asked, a reserve of its own is in the ledger before the first look."""
    for number, (name, request) in enumerate(world.requests.items()):
        source = Watched(records(40))
        site = world.site(f"{name}-{number}", source)
        reserves: list[int] = []
        source.look = lambda s=site, r=reserves: r.append(len(s.ledger.charges))  # type: ignore[misc]
        site.answer(request)
        require(bool(reserves) == (name != "describe"), f"'{name}' looked, or did not look")
        require(set(reserves) <= {1}, f"'{name}' looked at data before it was paid for")
        require(len(site.ledger.charges) == (name != "describe"), f"'{name}' was not paid for once")


def what_no_noise_covers_is_equal_for_neighbours(world: World) -> None:
    """D, D with another last record, and D with one record more say the same beside the noise."""
    for name, request in world.requests.items():
        said = [
            _without_what_is_noised(world.site(f"{name}-{n}", source).answer(request))
            for n, source in enumerate((records(40), records(40, last=0.9), records(41)))
        ]
        require(said[0] == said[1] == said[2], f"the answer to '{name}' tells of the data")


def _without_what_is_noised(reply: object) -> object:
    match reply:
        case TrainReply():
            return replace(reply, update=reply.update.shape)  # type: ignore[arg-type]
        case ProbeReply():
            return replace(reply, statistics=reply.statistics.shape)  # type: ignore[arg-type]
        case SiteDescription():
            return reply
    raise TypeError("another reply has other noised fields")


CHECKS: dict[str, Callable[[World], None]] = {
    check.__name__: check
    for check in (
        every_look_at_data_is_paid_for_in_advance,
        what_no_noise_covers_is_equal_for_neighbours,
    )
}

FAULTS = {
    PaysAfterwards: ("every_look_at_data_is_paid_for_in_advance", "'train' looked at data before"),
    ProbesForFree: ("every_look_at_data_is_paid_for_in_advance", "'probe' looked at data before"),
    TellsItsLoss: ("what_no_noise_covers_is_equal_for_neighbours", "'train' tells"),
    DescribesItsCount: ("what_no_noise_covers_is_equal_for_neighbours", "'describe' tells"),
}


@pytest.fixture
def requests(
    make_study: MakeStudy,
    with_probe: str,
    train_request: Callable[..., Any],
    probe_request: Callable[..., Any],
) -> dict[str, Request]:
    study = make_study(with_probe, "privacy.sampling_rate=0.9")
    return {
        "describe": DescribeRequest(study),
        "train": train_request(study),
        "probe": probe_request(study),
    }


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_sound_site_passes(
    make_site: MakeSite, requests: dict[str, Request], check: Callable[[World], None]
) -> None:
    check(World(make_site, Site, requests))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(
    make_site: MakeSite, requests: dict[str, Request], fault: type[Site]
) -> None:
    check, says = FAULTS[fault]
    with pytest.raises(FaultFound, match=says):
        CHECKS[check](World(make_site, fault, requests))
