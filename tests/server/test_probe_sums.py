"""Adding up a probe's statistics: its shape is the study's, whoever answers first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from tacit_common.messages import ProbeReply, Request
from tacit_common.model import build_model
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import calibrate
from tacit_common.study import Study
from tacit_common.training import flatten_parameters
from tacit_common.witness import HeadBook
from tacit_server.cohort import Participant
from tacit_server.exchange import Answer
from tacit_server.probes import run_probe
from tacit_server.rounds import Federation
from tacit_server.run_log import ProbeFinished
from tacit_server.strategies import build_strategy

SIZE = 5 * 6 // 2 + 5 * 10 + 10  # four components and the constant, ten classes


@dataclass
class Sites:
    """An exchange whose nodes 0, 1, 2 send these statistics."""

    statistics: Sequence[np.ndarray]
    heads: HeadBook = field(default_factory=HeadBook)

    def node_ids(self) -> list[int]:
        return list(range(len(self.statistics)))

    def site_of(self, node: int) -> str | None:
        return f"site-{node}"

    def ask(self, nodes: Sequence[int], request: Request, timeout_s: float) -> Iterator[Answer]:
        for node in nodes:
            yield Answer(node, ProbeReply(self.statistics[node]))


def probed(study: Study, first: np.ndarray) -> ProbeFinished:
    plugins = PluginTable()
    model, _ = build_model(study, plugins)
    sites = Sites([first, np.ones(SIZE), np.ones(SIZE)])
    return run_probe(
        Federation(
            "run",
            study,
            calibrate(study),
            [Participant(node, f"site-{node}", 300) for node in sites.node_ids()],
            sites,
            build_strategy(study.federation.strategy, plugins),
        ),
        model,
        flatten_parameters(model),
        number=0,
        when="before",
        plugins=plugins,
        scoring=None,
        progress=lambda done, total: None,
    )


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (np.zeros(1), "unusable_reply"),
        (np.zeros(0), "unusable_reply"),
        (np.zeros(SIZE + 1), "unusable_reply"),
        (np.full(SIZE, np.nan), "non_finite_update"),
        (np.full(SIZE, 1e308), "outsized_update"),
    ],
    ids=["one number", "none", "one too many", "NaN", "numbers whose sum overflows"],
)
def test_the_first_site_to_answer_cannot_spoil_a_probe_for_the_others(
    make_study: Callable[..., Study], with_probe: str, first: np.ndarray, code: str
) -> None:
    event = probed(make_study(with_probe), first)
    assert event.failed == {"site-0": code}
    assert event.answered == ["site-1", "site-2"]


def test_statistics_of_the_right_length_count(
    make_study: Callable[..., Study], with_probe: str
) -> None:
    assert probed(make_study(with_probe), np.ones(SIZE)).failed == {}
