"""A round: who counts, with what weight, in what order, and when it is void."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tacit_common.errors import NonFiniteUpdateError, QuorumError, RefusalCode
from tacit_common.messages import (
    ProbeReply,
    Refusal,
    Reply,
    Request,
    SiteDescription,
    TrainReply,
    TrainRequest,
    parameters_sha256,
)
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import PrivacySchedule, calibrate
from tacit_common.strategy import ParameterVector, StrategyState
from tacit_common.study import FedAvgPlan, Study
from tacit_common.witness import HeadBook
from tacit_server.cohort import Participant
from tacit_server.exchange import Answer, Failure
from tacit_server.rounds import Federation, Tally, run_round
from tacit_server.run_log import RoundFinished
from tacit_server.strategies import build_strategy

MakeStudy = Callable[..., Study]
SIZE = 6
NAMES = ["site-0", "site-1", "site-2", "site-3"]


def update(*values: float) -> TrainReply:
    return TrainReply(np.resize(np.array(values, dtype=np.float32), SIZE))


@dataclass
class Sites:
    """An exchange whose nodes answer as told; node 10 + i is site i."""

    replies: Sequence[Reply | Failure]
    asked: list[TrainRequest] = field(default_factory=list)
    heads: HeadBook = field(default_factory=HeadBook)

    def node_ids(self) -> list[int]:
        return [10 + index for index in range(len(self.replies))]

    def ask(self, nodes: Sequence[int], request: Request, timeout_s: float) -> Iterator[Answer]:
        assert isinstance(request, TrainRequest)
        self.asked.append(request)
        self.timeout_s = timeout_s
        for node in nodes:
            yield Answer(node, self.replies[node - 10])


def federation(
    study: Study, exchange: Sites, *, schedule: PrivacySchedule | None = None
) -> Federation:
    return Federation(
        run="run",
        study=study,
        schedule=schedule or calibrate(study),
        participants=[
            Participant(10 + index, name, 100 * (index + 1))
            for index, name in enumerate(NAMES[: len(exchange.replies)])
        ],
        exchange=exchange,
        strategy=build_strategy(study.federation.strategy, PluginTable()),
    )


START = StrategyState(np.arange(SIZE, dtype=np.float32), round=0)


def one_round(
    study: Study,
    replies: Sequence[Reply | Failure],
    *,
    state: StrategyState = START,
    progress: list[tuple[int, int]] | None = None,
) -> tuple[StrategyState, RoundFinished]:
    steps = progress if progress is not None else []
    return run_round(
        federation(study, Sites(replies)),
        state,
        public_loss=lambda parameters: float(parameters.sum()),
        progress=lambda done, total: steps.append((done, total)),
    )


@pytest.fixture
def plain(make_study: MakeStudy, no_privacy: str) -> Study:
    return make_study(no_privacy)


# --- the mean ----------------------------------------------------------------------------


def test_the_next_parameters_are_the_old_ones_plus_the_mean_update(plain: Study) -> None:
    state, event = one_round(plain, [update(1.0), update(2.0), update(6.0)])
    assert np.array_equal(state.parameters, START.parameters + 3.0)
    assert state.round == event.round == 1
    assert event.asked == event.answered == NAMES[:3]
    assert event.failed == {}
    assert event.update_norm == pytest.approx(3.0 * math.sqrt(SIZE))
    assert event.public_loss == float(state.parameters.sum())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    updates=st.lists(
        npst.arrays(np.float32, SIZE, elements=st.floats(-1e6, 1e6, width=32)),
        min_size=1,
        max_size=4,
    )
)
def test_the_mean_is_numpys_mean_in_float64(plain: Study, updates: list[ParameterVector]) -> None:
    replies = [TrainReply(one) for one in updates]
    state, _ = one_round(plain, replies, state=StrategyState(np.zeros(SIZE, np.float32)))
    expected = np.mean([u.astype(np.float64) for u in updates], axis=0)
    assert np.allclose(state.parameters, expected, rtol=1e-6, atol=1e-6 * np.abs(updates).max())


def test_weights_are_the_declared_constants(make_study: MakeStudy, no_privacy: str) -> None:
    study = make_study(no_privacy, "federation.weighting=declared_units")
    state, _ = one_round(study, [update(1.0), update(2.0), update(6.0)])
    expected = (100 * 1.0 + 200 * 2.0 + 300 * 6.0) / 600
    assert np.allclose(state.parameters, START.parameters + expected)


def test_a_site_that_failed_has_no_weight(make_study: MakeStudy, no_privacy: str) -> None:
    study = make_study(no_privacy, "federation.weighting=declared_units")
    replies: list[Reply | Failure] = [
        update(1.0),
        Refusal(code=RefusalCode.BUDGET),
        update(6.0),
    ]
    state, _ = one_round(study, replies)
    assert np.allclose(state.parameters, START.parameters + (100 * 1.0 + 300 * 6.0) / 400)


def test_training_losses_are_averaged_where_there_are_any(plain: Study) -> None:
    losses = [replace(update(1.0), train_loss=0.5), replace(update(1.0), train_loss=1.5)]
    assert one_round(plain, losses)[1].train_loss == 1.0
    assert one_round(plain, [losses[0], update(1.0)])[1].train_loss == 0.5
    assert one_round(plain, [update(1.0)])[1].train_loss is None


# --- who counts --------------------------------------------------------------------------

UNUSABLE: dict[str, tuple[Reply | Failure, str]] = {
    **{code.value: (Refusal(code=code), code.value) for code in RefusalCode},
    "silent": (Failure.NO_ANSWER, "no_answer"),
    "node error": (Failure.NODE_ERROR, "node_error"),
    "malformed": (Failure.UNUSABLE_REPLY, "unusable_reply"),
    "NaN": (update(1.0, math.nan), "non_finite_update"),
    "infinite": (update(1.0, -math.inf), "non_finite_update"),
    "outsized": (update(3e38), "outsized_update"),
    "one outsized number": (update(0.0, 0.0, 0.0, 0.0, 0.0, -3e38), "outsized_update"),
    "a loss that no float32 holds": (replace(update(1.0), train_loss=1e308), "unusable_reply"),
    "too short": (TrainReply(np.ones(SIZE - 1, dtype=np.float32)), "unusable_reply"),
    "too long": (TrainReply(np.ones(SIZE + 1, dtype=np.float32)), "unusable_reply"),
    "empty": (TrainReply(np.ones(0, dtype=np.float32)), "unusable_reply"),
    "statistics": (ProbeReply(np.ones(SIZE)), "unusable_reply"),
    "a description": (
        SiteDescription(site="x", declared_units=1, tacit_version="0"),
        "unusable_reply",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_site_without_a_usable_update_is_left_out_and_named_with_its_code(
    plain: Study, name: str
) -> None:
    reply, code = UNUSABLE[name]
    state, event = one_round(plain, [update(1.0), reply, update(3.0)])
    assert np.array_equal(state.parameters, START.parameters + 2.0)
    assert event.answered == ["site-0", "site-2"]
    assert event.failed == {"site-1": code}


def test_a_training_loss_told_to_a_private_study_costs_that_site_its_answer_and_not_the_report(
    make_study: MakeStudy,
) -> None:
    telling = replace(update(1.0), train_loss=1.0)
    _, event = one_round(make_study(), [telling, update(1.0), update(1.0)])
    assert event.failed == {"site-0": "unusable_reply"}
    assert event.train_loss is None


def test_a_round_that_ends_in_infinity_is_an_error_and_no_checkpoint(plain: Study) -> None:
    steep = plain.model_copy(
        update={
            "federation": plain.federation.model_copy(
                update={"strategy": FedAvgPlan(kind="fedavg", server_lr=1e38)}
            )
        }
    )
    with pytest.raises(NonFiniteUpdateError, match="round 1 ends in NaN or infinity"):
        one_round(steep, [update(1e6)] * 3)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_public_loss_that_is_not_finite_is_an_error_and_no_event(
    plain: Study, loss: float
) -> None:
    with pytest.raises(NonFiniteUpdateError, match="round 1"):
        run_round(
            federation(plain, Sites([update(1.0)] * 3)),
            START,
            public_loss=lambda parameters: loss,
            progress=lambda done, total: None,
        )


@pytest.mark.parametrize(
    ("quorum", "sites", "needed"),
    [
        (0.5, 4, 2),
        (0.5, 3, 2),
        (0.51, 4, 3),
        (1.0, 4, 4),
        (0.01, 4, 1),
        (0.25, 4, 1),
        (0.75, 4, 3),
    ],
)
def test_a_round_counts_exactly_from_its_quorum_on(
    make_study: MakeStudy, no_privacy: str, quorum: float, sites: int, needed: int
) -> None:
    study = make_study(no_privacy, f"federation.quorum={quorum}")
    silent: list[Reply | Failure] = [Failure.NO_ANSWER] * (sites - needed)
    enough = [*[update(1.0)] * needed, *silent]
    assert len(one_round(study, enough)[1].answered) == needed
    too_few = [*[update(1.0)] * (needed - 1), *silent, Failure.NODE_ERROR]
    with pytest.raises(QuorumError) as raised:
        one_round(study, too_few)
    assert f"{needed - 1} of {sites} sites answered" in raised.value.what
    assert f"quorum is {needed}" in raised.value.why
    assert f"site-{sites - 1}: node_error" in raised.value.why


def test_a_quorum_is_not_raised_by_the_rounding_of_its_product(
    make_study: MakeStudy, no_privacy: str
) -> None:
    study = make_study(no_privacy, "federation.quorum=0.55")
    cohort = [Participant(index, f"site-{index}", 1) for index in range(100)]
    tally = Tally(answered=[participant.site for participant in cohort[:55]])
    tally.require_quorum(cohort, study.federation, "round 1")


def test_a_round_in_which_nobody_answers_never_counts(
    make_study: MakeStudy, no_privacy: str
) -> None:
    study = make_study(no_privacy, "federation.quorum=0.0001")
    with pytest.raises(QuorumError, match="0 of 3 sites answered"):
        one_round(study, [Failure.NO_ANSWER] * 3)


def test_a_failed_round_leaves_the_state_as_it_was(plain: Study) -> None:
    before = START.parameters.copy()
    with pytest.raises(QuorumError):
        one_round(plain, [Failure.NO_ANSWER] * 3)
    one_round(plain, [update(1.0)] * 3)
    assert np.array_equal(START.parameters, before)


# --- order -------------------------------------------------------------------------------


def test_the_sum_is_taken_in_the_order_of_the_cohort(plain: Study) -> None:
    """Floats do not add up the same in every order, and these show it."""
    updates = [update(1e6), update(1.0), update(-1e6), update(3e-11)]
    sums = {
        float(np.sum([u.update[0].astype(np.float64) for u in order]))
        for order in itertools.permutations(updates)
    }
    assert len(sums) > 1  # else the test shows nothing
    state, _ = one_round(plain, updates, state=StrategyState(np.zeros(SIZE, np.float32)))
    total = np.zeros(SIZE)
    for reply in updates:
        total += reply.update
    assert np.array_equal(state.parameters, (total / 4).astype(np.float32))


def test_progress_counts_every_site_of_the_cohort(plain: Study) -> None:
    steps: list[tuple[int, int]] = []
    one_round(plain, [update(1.0), Failure.NO_ANSWER, update(1.0)], progress=steps)
    assert steps == [(1, 3), (2, 3), (3, 3)]


# --- what is asked -----------------------------------------------------------------------


def test_a_request_names_the_round_the_noise_and_the_parameters(make_study: MakeStudy) -> None:
    study = make_study("federation.deadline_s=17")
    exchange = Sites([update(1.0)] * 3)
    schedule = calibrate(study)
    state = replace(START, round=1)
    after, event = run_round(
        federation(study, exchange, schedule=schedule),
        state,
        public_loss=lambda parameters: 0.0,
        progress=lambda done, total: None,
    )
    (request,) = exchange.asked
    assert request.plan.round == after.round == event.round == 2
    assert request.plan.run == "run"
    assert request.plan.noise_multiplier == schedule.noise_multiplier
    assert request.plan.study == study
    assert request.plan.parameters_sha256 == parameters_sha256(START.parameters)
    assert np.array_equal(request.parameters, START.parameters)
    assert exchange.timeout_s == 17


def test_the_logged_epsilon_is_that_of_a_site_that_joined_every_round(
    make_study: MakeStudy, with_probe: str, plain: Study
) -> None:
    study = make_study(with_probe)
    schedule = calibrate(study)
    _, first = one_round(study, [update(1.0)] * 3)
    _, second = one_round(study, [update(1.0)] * 3, state=replace(START, round=1))
    # One probe is before the rounds; the one after the last round is yet to come.
    assert first.epsilon == schedule.epsilon_after(1, 1)
    assert second.epsilon == schedule.epsilon_after(2, 1)
    assert first.epsilon is not None
    assert second.epsilon is not None
    assert 0 < first.epsilon < second.epsilon <= schedule.planned_epsilon
    assert one_round(plain, [update(1.0)])[1].epsilon is None


def test_a_cohort_is_asked_and_nobody_else(make_study: MakeStudy, no_privacy: str) -> None:
    study = make_study(no_privacy, "federation.cohort_size=2")
    _, event = one_round(study, [update(1.0)] * 4)
    assert len(event.asked) == 2
    assert event.asked == sorted(event.asked)
    assert event.answered == event.asked
