"""Schedules: the least noise that keeps a whole study within its budget."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy import (
    REPORT_INTERVAL,
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
    PrivacySchedule,
    ProbeRelease,
    calibrate,
    cross_check,
    epsilon,
    expected_batch,
    gaussian_epsilon,
)
from tacit_common.study import (
    FederationPlan,
    LocalPrivacyPlan,
    MaskedPlan,
    NoPrivacyPlan,
    PrivacyPlan,
    RidgeProbePlan,
    SimulationPlan,
    Study,
    StudyFile,
    ViTPlan,
)

DELTA = 1e-5


def local(eps: float, sampling_rate: float = 0.05) -> LocalPrivacyPlan:
    return LocalPrivacyPlan(
        mode="local",
        unit="record",
        epsilon=eps,
        delta=DELTA,
        l2_clip_norm=1.0,
        sampling_rate=sampling_rate,
    )


def probe(eps: float | None, *when: str) -> RidgeProbePlan:
    moments = list(when) or ["before", "after"]
    return RidgeProbePlan.model_validate(
        {"kind": "ridge", "classes": 3, "epsilon": eps, "when": moments}
    )


def study(
    privacy: PrivacyPlan,
    *probes: RidgeProbePlan,
    rounds: int = 20,
    local_steps: int = 5,
    declared_units: int = 1000,
) -> StudyFile:
    return StudyFile(
        name="plan",
        seed=0,
        encoder=ViTPlan(
            kind="vit", image_size=8, channels=1, patch_size=4, width=16, depth=1, heads=2
        ),
        objective=MaskedPlan(kind="masked"),
        privacy=privacy,
        federation=FederationPlan(rounds=rounds, local_steps=local_steps, client_lr=0.1),
        probes=list(probes),
        simulation=SimulationPlan(dataset="digits", sites=2, declared_units=declared_units),
    )


def whole(schedule: PrivacySchedule) -> list[PrivacyEvent]:
    return list(schedule.events_after(schedule.rounds, len(schedule.probe_releases)))


# --- the budget is kept, and used -------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.floats(0.2, 10.0),
    st.floats(0.005, 1.0),
    st.integers(1, 60),
    st.integers(1, 10),
    st.lists(st.floats(0.1, 0.5), max_size=2),
)
def test_the_whole_run_with_its_probes_stays_within_epsilon_and_uses_it(
    eps: float, q: float, rounds: int, local_steps: int, shares: list[float]
) -> None:
    probes = [probe(eps * share / 2, "before", "after") for share in shares]
    plan = study(local(eps, q), *probes, rounds=rounds, local_steps=local_steps)
    schedule = calibrate(plan)
    assert schedule.noise_multiplier is not None
    spent = epsilon(
        [
            *(
                GaussianRelease(noise_multiplier=r.noise_multiplier)
                for r in schedule.probe_releases
            ),
            PoissonGaussianSteps(
                sampling_rate=q,
                noise_multiplier=schedule.noise_multiplier,
                steps=rounds * local_steps,
            ),
        ],
        DELTA,
        interval=REPORT_INTERVAL,
    )
    assert spent == schedule.planned_epsilon <= eps
    less = PoissonGaussianSteps(
        sampling_rate=q,
        noise_multiplier=schedule.noise_multiplier * 0.99 - 1e-4,
        steps=rounds * local_steps,
    )
    with_less = [*(r.event for r in schedule.probe_releases), less]
    assert epsilon(with_less, DELTA, interval=REPORT_INTERVAL) > eps


def test_the_calibrated_noise_agrees_with_the_golden_values() -> None:
    # q = .01, σ = 1, T = 1000, δ = 1e-5 costs ε = 1.828, so ε = 1.828 asks for σ = 1.
    schedule = calibrate(study(local(1.8283, 0.01), rounds=100, local_steps=10))
    assert schedule.noise_multiplier == pytest.approx(1.0, abs=2e-3)
    figures = cross_check(whole(schedule), DELTA)
    assert figures.rdp == pytest.approx(2.101, abs=5e-3)


def test_training_without_sampling_has_the_analytic_noise() -> None:
    schedule = calibrate(study(local(2.0, 1.0), rounds=5, local_steps=5))
    assert schedule.noise_multiplier is not None
    exact = gaussian_epsilon(schedule.noise_multiplier / math.sqrt(25), DELTA)
    assert 2.0 * 0.997 < exact <= 2.0


@pytest.mark.parametrize("eps", [0.01, 60.0, 1e4])
def test_budgets_far_from_the_usual_are_kept_too(eps: float) -> None:
    schedule = calibrate(study(local(eps, 0.01)))
    assert schedule.planned_epsilon <= eps
    assert schedule.noise_multiplier is not None
    assert schedule.noise_multiplier >= 0.01


def test_each_probe_release_costs_at_most_its_own_epsilon() -> None:
    schedule = calibrate(study(local(1.0), probe(0.5), probe(0.25, "after")))
    for sigma, eps in zip(schedule.probe_noise_multipliers, (0.5, 0.25), strict=True):
        assert sigma is not None
        alone = epsilon([GaussianRelease(noise_multiplier=sigma)], DELTA, interval=REPORT_INTERVAL)
        assert eps * 0.999 < alone <= eps


def test_mistake_20_probes_are_paid_for_with_more_training_noise() -> None:
    without, with_probe = (calibrate(study(local(1.0), *p)) for p in ((), (probe(0.5),)))
    assert without.noise_multiplier is not None
    assert with_probe.noise_multiplier is not None
    assert with_probe.noise_multiplier > without.noise_multiplier


# --- what the schedule depends on -------------------------------------------------------


def test_mistake_9_the_schedule_is_the_same_for_n_and_n_plus_1_records() -> None:
    schedules = [calibrate(study(local(1.0), probe(0.5), declared_units=n)) for n in (1000, 1001)]
    assert repr(schedules[0]) == repr(schedules[1])


def test_mistake_9_the_expected_batch_is_the_declared_number_times_the_rate() -> None:
    assert expected_batch(1000, 0.03) == 30.0
    for declared, rate in ((0, 0.1), (10, 0.0), (10, 1.5), (10, math.nan)):
        with pytest.raises(PrivacyConfigError, match="declared"):
            expected_batch(declared, rate)


def test_only_rounds_times_steps_matters_for_the_noise() -> None:
    noise = {
        calibrate(study(local(1.0), rounds=r, local_steps=s)).noise_multiplier
        for r, s in ((100, 1), (20, 5), (1, 100))
    }
    assert len(noise) == 1


# --- what has been spent on the way -----------------------------------------------------


def test_mistake_11_the_events_of_all_rounds_hold_every_local_step_once() -> None:
    schedule = calibrate(study(local(1.0), probe(0.5), rounds=20, local_steps=5))
    events = schedule.events_after(20, 2)
    steps = [e.steps for e in events if isinstance(e, PoissonGaussianSteps)]
    assert steps == [5] * 20
    assert sum(isinstance(e, GaussianRelease) for e in events) == 2


def test_spending_rises_to_the_planned_epsilon_and_never_above() -> None:
    schedule = calibrate(study(local(1.0), probe(0.5), rounds=20))
    assert schedule.epsilon_after(0, 0) == 0.0
    spent = [
        schedule.epsilon_after(0, 1),
        *(schedule.epsilon_after(done, 1) for done in range(1, 21)),
        schedule.epsilon_after(20, 2),
    ]
    assert spent == sorted(spent)
    assert len(set(spent)) == len(spent)
    assert schedule.planned_epsilon * 0.999 < spent[-1] <= schedule.planned_epsilon <= 1.0


def test_probe_releases_are_in_order_of_time() -> None:
    schedule = calibrate(study(local(1.0), probe(0.2, "after"), probe(0.3, "after", "before")))
    first, second = schedule.probe_noise_multipliers
    assert schedule.probe_releases == (
        ProbeRelease(1, "before", second),
        ProbeRelease(0, "after", first),
        ProbeRelease(1, "after", second),
    )
    assert schedule.events_after(0, 1) == [schedule.probe_releases[0].event]


@pytest.mark.parametrize("done", [(21, 0), (-1, 0), (0, 3), (0, -1)])
def test_more_than_was_planned_is_not_in_the_schedule(done: tuple[int, int]) -> None:
    with pytest.raises(PrivacyConfigError, match="schedule"):
        calibrate(study(local(1.0), probe(0.5), rounds=20)).epsilon_after(*done)


# --- without privacy, and without a solution --------------------------------------------


def test_mode_none_says_at_every_release_that_nothing_is_private() -> None:
    schedule = calibrate(study(NoPrivacyPlan(mode="none", sampling_rate=0.1), probe(None)))
    assert schedule.noise_multiplier is None
    assert schedule.probe_noise_multipliers == (None,)
    assert schedule.round_event == NonPrivateRelease()
    assert schedule.events_after(2, 1) == [NonPrivateRelease()] * 3
    assert schedule.epsilon_after(0, 0) == 0.0
    assert schedule.epsilon_after(0, 1) == schedule.planned_epsilon == math.inf


def test_probes_that_spend_everything_are_refused_with_the_largest_that_fit() -> None:
    with pytest.raises(PrivacyConfigError) as caught:
        calibrate(study(local(1.0), probe(0.9)))
    assert "1.318 of 1" in caught.value.what
    assert "0.684" in caught.value.fix
    calibrate(study(local(1.0), probe(0.6)))  # below the limit that the message gives


def test_a_budget_that_no_noise_can_meet_is_refused_with_one_that_can_be() -> None:
    impossible = study(local(1e-4, 1.0), rounds=100, local_steps=100)
    with pytest.raises(PrivacyConfigError, match="cannot be met") as caught:
        calibrate(impossible)
    assert "raise privacy.epsilon well above" in caught.value.fix
    least = float(caught.value.fix.split("well above ")[1].split(",")[0])
    calibrate(study(local(least * 2, 1.0), rounds=100, local_steps=100))


def test_more_steps_than_can_be_counted_are_an_error_at_once(
    make_study: Callable[..., Study],
) -> None:
    study = make_study("federation.rounds=1000000", "federation.local_steps=100")
    with pytest.raises(PrivacyConfigError, match="100,000,000 noisy steps"):
        calibrate(study)
