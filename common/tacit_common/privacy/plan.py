"""From the budget of a study to the noise of every release: the privacy schedule.

Everything here is computed from the study and from declared constants. Nothing takes a
count of records that really exist, so N and N + 1 records give the same schedule, to the
last bit (docs/privacy.md 1, "declared constants").
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy.accounting import (
    PLANNING_INTERVAL,
    REPORT_INTERVAL,
    epsilon,
    gaussian_epsilon,
    gaussian_noise_multiplier,
)
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.study import LocalPrivacyPlan, Study

# Noise multipliers are rounded up to this many to the unit: a schedule is then short to
# print, and two machines whose last bits differ still agree on it.
_STEPS_TO_THE_UNIT = 10_000

_SMALLEST = 0.01  # below, more noise costs nothing that anybody would notice
LARGEST_NOISE_MULTIPLIER = 1e4  # above, nothing is learnt


_MOST_STEPS = 2_000_000  # a figure for these takes half a minute, and for ten times as many an hour


@dataclass(frozen=True)
class ProbeRelease:
    """One release of one probe's statistics. `noise_multiplier` is None without privacy."""

    probe: int  # index in `study.probes`
    when: Literal["before", "after"]
    noise_multiplier: float | None

    @property
    def event(self) -> PrivacyEvent:
        """What accounting needs to know of it."""
        if self.noise_multiplier is None:
            return NonPrivateRelease()
        return GaussianRelease(noise_multiplier=self.noise_multiplier)


@dataclass(frozen=True)
class PrivacySchedule:
    """Every release of a site in a study, and the noise of each.

    A site that is left out of some rounds has spent less than the schedule, never more.
    """

    rounds: int
    delta: float | None  # None without privacy
    target_epsilon: float | None  # what the study allows
    planned_epsilon: float  # what the whole run costs by PLD on the report grid
    noise_multiplier: float | None  # of training, relative to the mechanism's sensitivity
    round_event: PoissonGaussianSteps | NonPrivateRelease  # all local steps of one round
    probe_releases: tuple[ProbeRelease, ...]  # in order of time
    probe_noise_multipliers: tuple[float | None, ...]  # by index in `study.probes`

    @property
    def planned(self) -> tuple[PrivacyEvent, ...]:
        """Everything that the whole study releases at a site, all rounds taken together."""
        if isinstance(self.round_event, NonPrivateRelease):
            return (self.round_event,)
        steps = self.round_event.steps * self.rounds
        training = self.round_event.model_copy(update={"steps": steps})
        return (training, *(release.event for release in self.probe_releases))

    def events_after(self, rounds_done: int, probes_done: int) -> list[PrivacyEvent]:
        """What has been released after so many rounds and probe releases.

        Raises:
            PrivacyConfigError: the schedule does not hold so many.
        """
        for done, planned, name in (
            (rounds_done, self.rounds, "rounds"),
            (probes_done, len(self.probe_releases), "probe releases"),
        ):
            if not 0 <= done <= planned:
                raise PrivacyConfigError(
                    f"{done} {name} are not in the schedule",
                    why=f"it was calibrated for {planned}",
                    fix="plan a study with as many as shall run; a budget is never stretched",
                )
        probes = [release.event for release in self.probe_releases[:probes_done]]
        return [*probes, *[self.round_event] * rounds_done]

    def epsilon_after(self, rounds_done: int, probes_done: int) -> float:
        """ε spent after so many rounds and probe releases, at the plan's δ.

        Guarantees: an upper bound; never above `planned_epsilon`; infinite after the
        first release without privacy.

        Raises:
            PrivacyConfigError: the schedule does not hold so many.
        """
        events = self.events_after(rounds_done, probes_done)
        if self.delta is None:
            return math.inf if events else 0.0
        # The planning grid rounds up a little more than the report's, and a part of the run
        # cannot cost more than all of it.
        return min(epsilon(events, self.delta), self.planned_epsilon)


def expected_batch(declared_units: int, sampling_rate: float) -> float:
    """Mean size of a Poisson sample of the *declared* records: what a gradient sum is divided by.

    Raises:
        PrivacyConfigError: no records are declared, or the rate is not in (0, 1].
    """
    if declared_units < 1 or not 0 < sampling_rate <= 1:
        raise PrivacyConfigError(
            f"no batch can be expected of {declared_units} declared units "
            f"at sampling rate {sampling_rate}",
            why="both must be positive, and a rate is at most 1",
            fix="declare a public number of records, rounded down, that the site holds",
        )
    return declared_units * sampling_rate


def calibrate(study: Study) -> PrivacySchedule:
    """The least noise with which the whole study stays within its ε at every site.

    Each probe release gets the noise that its own ε asks for (at the study's δ, analytic
    Gaussian); training gets the least that fits beside them.

    Guarantees: `planned_epsilon`, by PLD on the report grid, is at most the study's ε; the
    figure is above 99.75 % of it, or the noise multiplier is the least multiple of 1/10,000
    that fits (or 0.01, where even less would do); the schedule depends on the study alone.

    Raises:
        PrivacyConfigError: no amount of noise up to a multiplier of 10,000 is enough.
    """
    steps = study.federation.local_steps
    if not isinstance(study.privacy, LocalPrivacyPlan):
        return _without_privacy(study)
    plan = study.privacy
    _check_countable(study.federation.rounds * steps)
    probe_noise = [
        None if probe.epsilon is None else probe_noise_multiplier(probe.epsilon, plan.delta)
        for probe in study.probes
    ]
    releases = _probe_releases(study, probe_noise)
    noise_multiplier, planned = least_noise(
        tuple(release.event for release in releases),
        plan.sampling_rate,
        study.federation.rounds * steps,
        plan.epsilon,
        plan.delta,
    )
    return PrivacySchedule(
        rounds=study.federation.rounds,
        delta=plan.delta,
        target_epsilon=plan.epsilon,
        planned_epsilon=planned,
        noise_multiplier=noise_multiplier,
        round_event=PoissonGaussianSteps(
            sampling_rate=plan.sampling_rate, noise_multiplier=noise_multiplier, steps=steps
        ),
        probe_releases=releases,
        probe_noise_multipliers=tuple(probe_noise),
    )


def _check_countable(steps: int) -> None:
    if steps > _MOST_STEPS:
        raise PrivacyConfigError(
            f"{steps:,} noisy steps cannot be accounted for",
            why=f"privacy loss distributions are computed for {_MOST_STEPS:,} steps at most",
            fix="lower federation.rounds or federation.local_steps",
        )


def _without_privacy(study: Study) -> PrivacySchedule:
    nothing: list[float | None] = [None] * len(study.probes)
    return PrivacySchedule(
        rounds=study.federation.rounds,
        delta=None,
        target_epsilon=None,
        planned_epsilon=math.inf,
        noise_multiplier=None,
        round_event=NonPrivateRelease(),
        probe_releases=_probe_releases(study, nothing),
        probe_noise_multipliers=tuple(nothing),
    )


def _probe_releases(
    study: Study, noise_multipliers: list[float | None]
) -> tuple[ProbeRelease, ...]:
    """All releases of all probes: those before the first round, then those after the last."""
    return tuple(
        ProbeRelease(index, moment, noise_multipliers[index])
        for now in ("before", "after")
        for index, probe in enumerate(study.probes)
        for moment in probe.when
        if moment == now
    )


def check_room_for_training(
    probe_events: tuple[PrivacyEvent, ...], target: float, delta: float
) -> None:
    """Raise PrivacyConfigError if the probes alone cost `target` at `delta`, or more."""
    if not probe_events:
        return
    spent = epsilon(probe_events, delta, interval=REPORT_INTERVAL)
    if spent < target:
        return
    # k equal Gaussian releases at √k·σ cost what one at σ costs.
    k = len(probe_events)
    limit = gaussian_epsilon(math.sqrt(k) * gaussian_noise_multiplier(target, delta), delta)
    raise PrivacyConfigError(
        f"the probes alone cost ε = {spent:.4g} of {target:.4g}",
        why=f"{k} probe releases leave nothing for training",
        fix=f"give each release an epsilon well below {limit:.3g}, make fewer of them, "
        f"or raise privacy.epsilon well above {spent:.3g}",
    )


def probe_noise_multiplier(epsilon: float, delta: float) -> float:
    """The least noise, to 1/10,000, of one probe release that may cost `epsilon` at `delta`."""
    return _up(gaussian_noise_multiplier(epsilon, delta))


@functools.lru_cache(maxsize=64)
def least_noise(
    probe_events: tuple[PrivacyEvent, ...],
    sampling_rate: float,
    steps: int,
    target: float,
    delta: float,
    interval: float = REPORT_INTERVAL,
) -> tuple[float, float]:
    """The training noise multiplier, and ε of the whole run with it, by PLD on this grid.

    Every schedule is calibrated here, on the report grid, and so is every row of `tacit plan`.

    Guarantees: as `calibrate`. On `PLANNING_INTERVAL`, ten times cheaper, ε is as safe a
    bound, and a little more noise is asked for than would be enough.

    Raises:
        PrivacyConfigError: the probes leave nothing, or a multiplier of 10,000 is not enough.
    """
    check_room_for_training(probe_events, target, delta)

    def cost(noise_multiplier: float, interval: float) -> float:
        training = PoissonGaussianSteps(
            sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps
        )
        return epsilon([*probe_events, training], delta, interval=interval)

    guess = _central_limit_guess(probe_events, sampling_rate, steps, target, delta)
    # Near the answer on the cheap grid, then the answer on the grid that was asked for.
    found = _least(lambda sigma: cost(sigma, PLANNING_INTERVAL), target, guess, tolerance=1e-3)
    if found is not None and interval != PLANNING_INTERVAL:
        found = _least(lambda sigma: cost(sigma, interval), target, found, tolerance=2.5e-3)
    if found is None:
        enough = cost(LARGEST_NOISE_MULTIPLIER, REPORT_INTERVAL)
        raise PrivacyConfigError(
            f"ε = {target:.4g} at δ = {delta:.3g} cannot be met",
            why=f"{steps} steps at sampling rate {sampling_rate:.4g} would need a noise "
            f"multiplier above {LARGEST_NOISE_MULTIPLIER:.0f}",
            fix=f"raise privacy.epsilon well above {enough:.3g}, or lower the sampling rate, "
            "rounds, local_steps or the probes' epsilon",
        )
    return found, cost(found, interval)


def _central_limit_guess(
    probe_events: tuple[PrivacyEvent, ...],
    sampling_rate: float,
    steps: int,
    target: float,
    delta: float,
) -> float:
    """Where to start: T sampled steps look like one Gaussian release with 1/σ equal to
    q·√(T·(e^{1/σ²} − 1)) (Bu, Dong, Long and Su 2020, arXiv 1911.11607, theorem 5)."""
    whole = gaussian_noise_multiplier(target, delta) ** -2
    probes = sum(e.noise_multiplier**-2 for e in probe_events if isinstance(e, GaussianRelease))
    room = max(whole - probes, 1e-3 * whole)
    guess = 1 / math.sqrt(math.log1p(room / (sampling_rate**2 * steps)))
    return min(max(guess, _SMALLEST), LARGEST_NOISE_MULTIPLIER)


def _least(
    cost: Callable[[float], float], target: float, guess: float, *, tolerance: float
) -> float | None:
    """A noise multiplier whose cost is at most `target` and more than `target`·(1 − tolerance).

    Or, where none is so close, the least multiple of 1/10,000 whose cost is at most
    `target`, but not below 0.01. None if 10,000 is not enough. `cost` must not increase.
    """
    first, last = (
        round(_SMALLEST * _STEPS_TO_THE_UNIT),
        round(LARGEST_NOISE_MULTIPLIER * _STEPS_TO_THE_UNIT),
    )
    low, high = first - 1, last + 1  # low costs too much, high fits: so far both by decree
    aim = math.log(target * (1 - tolerance / 2))
    slope = -1.5  # of log cost over log noise, until two points show it
    n = min(max(math.ceil(guess * _STEPS_TO_THE_UNIT), first), last)
    seen: tuple[float, float] | None = None
    for attempt in itertools.count():
        spent = cost(n / _STEPS_TO_THE_UNIT)
        if spent > target:
            low = n
        else:
            high = n
            if spent > target * (1 - tolerance):
                break
        if high - low <= 1:
            break
        here = (math.log(n), math.log(max(spent, 1e-300)))
        if seen is not None and here[0] != seen[0]:
            slope = min(max((here[1] - seen[1]) / (here[0] - seen[0]), -8.0), -0.25)
        seen = here
        step = min(max((aim - here[1]) / slope, -0.7), 0.7)  # at most a factor of two
        secant = round(n * math.exp(step))
        # Every fourth step halves the bracket, so that a kink in `cost` cannot stall the search.
        halve = attempt % 4 == 3 and low >= first and high <= last
        n = min(max((low + high) // 2 if halve else secant, low + 1), high - 1)
    return None if high > last else high / _STEPS_TO_THE_UNIT


def _up(noise_multiplier: float) -> float:
    return math.ceil(noise_multiplier * _STEPS_TO_THE_UNIT) / _STEPS_TO_THE_UNIT
