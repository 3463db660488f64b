"""The life of a round.

1. pick a cohort and write the round's plan;
2. ask every site of the cohort; each checks the plan, pays, and only then trains;
3. take the mean of the updates, which are private already;
4. apply the strategy.

The caller writes the checkpoint: a round that is not in one has not happened.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tacit_common.errors import NonFiniteUpdateError, QuorumError, RefusalCode
from tacit_common.messages import Refusal, RoundPlan, TrainReply, TrainRequest, parameters_sha256
from tacit_common.privacy.plan import PrivacySchedule
from tacit_common.strategy import ParameterVector, Strategy, StrategyState
from tacit_common.study import FederationPlan, NoPrivacyPlan, Study
from tacit_server.cohort import Participant, choose_cohort, weight_of
from tacit_server.exchange import Answer, Exchange, Failure
from tacit_server.run_log import RoundFinished

_LARGEST_MEAN_SQUARE = 1e12
"""Of the numbers of one update: no model is left of smaller ones, and much larger ones would
overflow float32 in the parameters, and so end the run."""
_BLOCK = 32_768
_LARGEST_LOSS = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Federation:
    """What stays the same from round to round."""

    run: str
    study: Study
    schedule: PrivacySchedule
    participants: list[Participant]
    exchange: Exchange
    strategy: Strategy

    def epsilon_after(self, round_number: int) -> float | None:
        """ε of a site that joined every round so far; None without privacy."""
        if self.schedule.noise_multiplier is None:
            return None
        before = sum(release.when == "before" for release in self.schedule.probe_releases)
        return self.schedule.epsilon_after(round_number, before)


def _what_helps(codes: set[str]) -> str:
    if RefusalCode.BUDGET in codes:
        return (
            "ask for a study that costs less: `tacit site budget SITE --study STUDY.toml` says "
            "what a site has left, and what a study would cost"
        )
    if RefusalCode.APPROVAL in codes:
        return "ask each site to approve this run (`tacit site pending`), then resume"
    return (
        "look at the log of these sites (RUN/sites/log.txt in a simulation), then resume: nothing "
        "is lost"
    )


@dataclass
class Tally:
    """Who answered a request of the cohort, and why others did not."""

    answered: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def require_quorum(self, cohort: list[Participant], plan: FederationPlan, what: str) -> None:
        """Raises QuorumError if too few of the cohort answered."""
        needed = plan.quorum_of(len(cohort))
        if len(self.answered) >= needed:
            return
        reasons = ", ".join(f"{site}: {code}" for site, code in sorted(self.failed.items()))
        codes = set(self.failed.values())
        raise QuorumError(
            f"{what} failed: {len(self.answered)} of {len(cohort)} sites answered",
            why=f"the quorum is {needed} ({reasons})",
            fix=_what_helps(codes),
        )


def run_round(
    federation: Federation,
    state: StrategyState,
    *,
    public_loss: Callable[[ParameterVector], float],
    progress: Callable[[int, int], None],
) -> tuple[StrategyState, RoundFinished]:
    """One round from `state`: the next state, and what there is to log.

    Raises:
        QuorumError: too few sites gave a usable answer.
        NonFiniteUpdateError: the round ends in a model that is no use to anybody.
    """
    started = time.monotonic()
    study, number = federation.study, state.round + 1
    cohort = choose_cohort(
        federation.participants, study.federation, seed=study.seed, round_number=number
    )
    request = TrainRequest(
        RoundPlan(
            run=federation.run,
            round=number,
            study=study,
            noise_multiplier=federation.schedule.noise_multiplier,
            parameters_sha256=parameters_sha256(state.parameters),
        ),
        state.parameters,
    )
    mean, tally, train_loss = _mean_update(federation, cohort, request, progress)
    tally.require_quorum(cohort, study.federation, f"round {number}")
    with np.errstate(over="ignore", invalid="ignore"):  # looked for right below
        after = federation.strategy.apply(state, mean)
    _require_finite(number, after.parameters, *after.moments.values())
    loss = public_loss(after.parameters)
    _require_finite(number, np.array(loss))
    return after, RoundFinished(
        round=number,
        asked=[participant.site for participant in cohort],
        answered=tally.answered,
        failed=tally.failed,
        seconds=time.monotonic() - started,
        update_norm=float(np.linalg.norm(mean.astype(np.float64))),
        epsilon=federation.epsilon_after(number),
        public_loss=loss,
        train_loss=train_loss,
    )


def _mean_update(
    federation: Federation,
    cohort: list[Participant],
    request: TrainRequest,
    progress: Callable[[int, int], None],
) -> tuple[ParameterVector, Tally, float | None]:
    """Weighted mean of the usable updates, summed in the order of the cohort."""
    study = federation.study
    total: NDArray[np.float64] = np.zeros(len(request.parameters))
    total_weight = 0.0
    losses: list[float] = []
    tally = Tally()
    answers = federation.exchange.ask(
        [participant.node_id for participant in cohort], request, study.federation.deadline_s
    )
    for done, (participant, answer) in enumerate(zip(cohort, answers, strict=True), start=1):
        progress(done, len(cohort))
        reply = _usable(answer, study, expected_size=len(total))
        if not isinstance(reply, TrainReply):
            tally.failed[participant.site] = reply
            continue
        weight = weight_of(participant, study.federation)
        _add_to(total, reply.update, weight)
        total_weight += weight
        tally.answered.append(participant.site)
        if reply.train_loss is not None:
            losses.append(reply.train_loss)
    total /= max(total_weight, 1e-300)
    mean: ParameterVector = total.astype(np.float32)
    return mean, tally, float(np.mean(losses)) if losses else None


def _usable(answer: Answer, study: Study, *, expected_size: int) -> TrainReply | str:
    """The update, or the code that says why there is none to add to the mean."""
    match answer.reply:
        case TrainReply(update=update, train_loss=loss) as reply:
            if len(update) != expected_size or not _may_tell(loss, study):
                return Failure.UNUSABLE_REPLY
            if _sum_of_squares(update) < 0.9 * _LARGEST_MEAN_SQUARE * len(update):
                return reply  # all of it finite, and smaller than the rounding could hide
            if not np.isfinite(update).all():
                return Failure.NON_FINITE_UPDATE
            mean_square = np.mean(np.square(update, dtype=np.float64))
            return reply if mean_square <= _LARGEST_MEAN_SQUARE else Failure.OUTSIZED_UPDATE
        case Refusal(code=code):
            return code.value
        case Failure() as failure:
            return failure.value
        case _:
            return Failure.UNUSABLE_REPLY


def _sum_of_squares(update: ParameterVector) -> float:
    """To 0.2 %; infinite where float32 overflows, and not finite if one of the numbers is not.

    Block by block, so that rounding cannot add up; not by BLAS, which would start threads.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = (update[start : start + _BLOCK] for start in range(0, len(update), _BLOCK))
        return sum(float(np.einsum("i,i->", block, block)) for block in blocks)


def _add_to(total: NDArray[np.float64], update: ParameterVector, weight: float) -> None:
    """total += weight · update [P] in float64, by way of a buffer that stays in the CPU's cache."""
    buffer = np.empty(min(_BLOCK, len(update)))
    for start in range(0, len(update), _BLOCK):
        part = update[start : start + _BLOCK]
        wide = np.multiply(part, weight, out=buffer[: len(part)], dtype=np.float64)
        total[start : start + len(part)] += wide


def _may_tell(train_loss: float | None, study: Study) -> bool:
    """Whether a reply may hold this loss: it is not private, so a private study has none."""
    if train_loss is None:
        return True
    return isinstance(study.privacy, NoPrivacyPlan) and abs(train_loss) <= _LARGEST_LOSS


def _require_finite(number: int, *values: NDArray[np.floating]) -> None:
    if all(np.isfinite(value).all() for value in values):
        return
    raise NonFiniteUpdateError(
        f"round {number} ends in NaN or infinity",
        why="the parameters have grown without bound, or their loss on public images has; the "
        "round is not kept, and the checkpoint before it is as it was",
        fix="look which site's updates are large, remove it and resume; or start a run with a "
        "smaller learning rate",
    )
