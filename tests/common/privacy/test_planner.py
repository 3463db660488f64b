"""The planner: budgets are kept, the rows are those of a real study, and its advice holds."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit_common.errors import PrivacyConfigError, UsageError
from tacit_common.privacy import (
    REPORT_INTERVAL,
    GaussianRelease,
    PoissonGaussianSteps,
    PrivacySchedule,
    calibrate,
    epsilon,
)
from tacit_common.privacy.planner import plan
from tacit_common.privacy.planner import signal_to_noise as heuristic
from tacit_common.privacy.planner.declared import proposed_delta, rounded_down
from tacit_common.privacy.planner.figures import Alternative, PlanFigures, PlanRequest
from tacit_common.privacy.planner.numbers import bound, short
from tacit_common.study import (
    FederationPlan,
    LocalPrivacyPlan,
    MaskedPlan,
    RidgeProbePlan,
    Study,
    ViTPlan,
)

DELTA = 1e-5
GOLDEN = PlanRequest(
    records=10_000,
    epsilon=1.8283,
    delta=DELTA,
    rounds=(100,),
    local_steps=10,
    sampling_rates=(0.01,),
)
SMALL = PlanRequest(
    records=1400,
    epsilon=2.0,
    delta=DELTA,
    rounds=(20,),
    local_steps=2,
    sampling_rates=(0.5,),
    parameters=2_000_000,
)


def schedule(
    request: PlanRequest, row: Alternative, *, local_steps: int | None = None
) -> PrivacySchedule:
    """What a study of this row's terms is calibrated to."""
    assert request.delta is not None
    probes = [
        RidgeProbePlan(kind="ridge", classes=3, epsilon=eps, when=["after"])
        for eps in request.probe_epsilons
    ]
    return calibrate(
        Study(
            name="plan",
            seed=0,
            encoder=ViTPlan(
                kind="vit", image_size=8, channels=1, patch_size=4, width=16, depth=1, heads=2
            ),
            objective=MaskedPlan(kind="masked"),
            privacy=LocalPrivacyPlan(
                mode="local",
                unit=request.unit,
                records_per_subject=request.records_per_subject,
                epsilon=request.epsilon,
                delta=request.delta,
                l2_clip_norm=1.0,
                sampling_rate=row.sampling_rate,
            ),
            federation=FederationPlan(
                rounds=row.rounds, local_steps=local_steps or request.local_steps, client_lr=0.1
            ),
            probes=list(probes),
        )
    )


def best(figures: PlanFigures) -> Alternative:
    row = figures.recommended
    assert row is not None
    return row


def noise(row: Alternative) -> float:
    assert row.noise_multiplier is not None
    return row.noise_multiplier


def ratio(figures: PlanFigures) -> float:
    snr = best(figures).run_signal_to_noise
    assert snr is not None
    return snr


def gaussian_delta(eps: float, sigma: float) -> float:
    """δ of one Gaussian release (Balle and Wang 2018, theorem 8), by the error function."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    shift = 1 / (2 * sigma)
    return phi(shift - eps * sigma) - math.exp(eps) * phi(-shift - eps * sigma)


# --- golden values and the one calibration ----------------------------------------------


def test_the_golden_values_come_back_as_a_plan() -> None:
    # q = .01, σ = 1, T = 1000, δ = 1e-5 costs ε = 1.828 by PLD and 2.101 by RDP.
    row = best(plan(GOLDEN))
    assert noise(row) == pytest.approx(1.0, abs=2e-3)
    assert row.steps == 1000
    event = PoissonGaussianSteps(sampling_rate=0.01, noise_multiplier=noise(row), steps=1000)
    assert epsilon([event], DELTA, interval=REPORT_INTERVAL) == row.epsilon
    assert epsilon([event], DELTA, accountant="rdp") == pytest.approx(2.101, abs=5e-3)


def test_a_plan_without_sampling_agrees_with_the_closed_form() -> None:
    request = replace(SMALL, sampling_rates=(1.0,))
    row = best(plan(request))
    one = noise(row) / math.sqrt(row.steps)
    assert gaussian_delta(2.0, one) <= DELTA
    assert gaussian_delta(2.0 * 0.997, one) > DELTA


@pytest.mark.parametrize(
    "request_",
    [
        GOLDEN,
        replace(SMALL, probe_epsilons=(0.5, 0.5)),
        replace(SMALL, sampling_rates=(0.05, 0.2, 1.0)),
        replace(SMALL, unit="subject", records_per_subject=4),
    ],
    ids=["golden", "probes", "rates", "subject"],
)
def test_the_recommended_noise_is_that_of_a_study_of_the_same_terms(request_: PlanRequest) -> None:
    figures = plan(request_)
    row = best(figures)
    real = schedule(request_, row)
    assert row.noise_multiplier == real.noise_multiplier
    assert row.epsilon == real.planned_epsilon
    assert tuple(figures.probe_noise_multipliers) == real.probe_noise_multipliers


@pytest.mark.parametrize("eps", [0.1, 2.0])
def test_every_row_keeps_the_budget_with_at_most_1_percent_more_noise_than_a_study(
    eps: float,
) -> None:
    request = replace(SMALL, epsilon=eps, sampling_rates=(0.1, 0.5), rounds=(20, 60))
    figures = plan(request)
    assert len(figures.alternatives) == 4
    for row in figures.alternatives:
        event = PoissonGaussianSteps(
            sampling_rate=row.sampling_rate, noise_multiplier=noise(row), steps=row.steps
        )
        assert epsilon([event], DELTA, interval=REPORT_INTERVAL) <= eps
        real = schedule(request, row).noise_multiplier
        assert real is not None
        assert noise(row) <= 1.01 * real


def test_mistake_20_probes_are_paid_for_with_more_training_noise() -> None:
    with_probes = plan(replace(SMALL, probe_epsilons=(0.5,)))
    assert noise(best(with_probes)) > noise(best(plan(SMALL)))
    assert with_probes.curve[0].epsilon > plan(SMALL).curve[0].epsilon
    with pytest.raises(PrivacyConfigError, match="probes alone"):
        plan(replace(SMALL, probe_epsilons=(1.9, 1.9)))


# --- declared numbers -------------------------------------------------------------------


def test_mistake_9_n_and_n_plus_1_records_give_the_same_plan_once_rounded_down() -> None:
    plans = [plan(replace(SMALL, records=rounded_down(n))) for n in (1436, 1437)]
    assert plans[0].model_dump_json() == plans[1].model_dump_json()


@given(st.integers(1, 10**12))
def test_a_rounded_count_is_below_it_near_it_and_stays(count: int) -> None:
    rounded = rounded_down(count)
    assert 0.9 * count < rounded <= count
    assert rounded_down(rounded) == rounded
    assert len(str(rounded).rstrip("0")) <= 2


@given(st.integers(1, 10**12))
def test_the_proposed_delta_is_the_largest_power_of_ten_a_tenth_below_one_over_the_units(
    units: int,
) -> None:
    delta = proposed_delta(units)
    exponent = round(-math.log10(delta))
    assert delta == float(f"1e-{exponent}")
    assert 10**exponent >= 10 * units > 10 ** (exponent - 1)


def test_a_proposed_delta_is_called_a_proposal_and_a_given_one_is_not() -> None:
    proposed = plan(replace(SMALL, delta=None, sites=5))
    assert proposed.delta_proposed
    assert proposed.delta == 1e-5  # a tenth of one over 5 × 1400 units is 1.4e-5
    assert any("proposal" in finding.text for finding in proposed.findings)
    given_ = plan(SMALL)
    assert not given_.delta_proposed
    assert not any("proposal" in finding.text for finding in given_.findings)


# --- monotone ---------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(st.floats(0.5, 8.0), st.sampled_from([0.2, 0.5, 1.0]), st.integers(5, 50))
def test_noise_falls_with_epsilon_and_rises_with_rounds(eps: float, q: float, rounds: int) -> None:
    request = replace(SMALL, epsilon=eps, sampling_rates=(q,), rounds=(rounds,))
    base = noise(best(plan(request)))
    assert noise(best(plan(replace(request, epsilon=eps * 1.1)))) < base
    assert noise(best(plan(replace(request, rounds=(rounds * 2,))))) > base


def test_signal_rises_with_units_and_sites_and_falls_with_parameters() -> None:
    base = ratio(plan(SMALL))
    assert ratio(plan(replace(SMALL, records=2800))) == pytest.approx(2 * base)
    assert ratio(plan(replace(SMALL, sites=4))) == pytest.approx(2 * base)
    assert ratio(plan(replace(SMALL, parameters=8_000_000))) == pytest.approx(base / 2)


def test_the_noise_depends_on_neither_units_nor_parameters_nor_the_kind_of_unit() -> None:
    variants = [
        replace(SMALL, records=5),
        replace(SMALL, parameters=None),
        replace(SMALL, unit="subject", records_per_subject=4),
        replace(SMALL, l2_clip_norm=0.1),
    ]
    assert {noise(best(plan(v))) for v in variants} == {noise(best(plan(SMALL)))}


def test_the_curve_rises_to_the_cost_of_the_run_and_is_that_of_the_schedule() -> None:
    figures = plan(replace(SMALL, rounds=(40,)))
    real = schedule(replace(SMALL, rounds=(40,)), best(figures))
    spent = [point.epsilon for point in figures.curve]
    assert spent == sorted(set(spent))
    assert figures.curve[-1].rounds == 40
    assert spent == [real.epsilon_after(point.rounds, 0) for point in figures.curve]
    assert [point.rounds for point in plan(replace(SMALL, rounds=(1,))).curve] == [1]


def test_the_curve_of_very_many_steps_still_rises_to_the_end() -> None:
    request = PlanRequest(
        records=5_000_000, epsilon=0.5, delta=1e-9, rounds=(20_000,), sampling_rates=(0.002,)
    )
    spent = [point.epsilon for point in plan(request).curve]
    assert all(later > 1.03 * earlier for earlier, later in itertools.pairwise(spent))


# --- the heuristic ----------------------------------------------------------------------


@given(
    st.floats(0.1, 100),
    st.floats(1e-4, 1),
    st.integers(1, 10**6),
    st.integers(1, 10**9),
    st.integers(1, 10**6),
    st.integers(1, 1000),
)
def test_both_forms_of_the_run_signal_to_noise_are_equal(
    sigma: float, q: float, steps: int, parameters: int, records: int, sites: int
) -> None:
    eta = heuristic.total_signal(sigma, q, steps)
    rho = heuristic.run_signal_to_noise(
        sigma, q * records, steps=steps, parameters=parameters, sites=sites
    )
    assert rho == pytest.approx(math.sqrt(2 * sites / parameters) * records * eta, rel=1e-9)


def test_the_run_signal_to_noise_is_what_a_simulated_run_shows() -> None:
    sigma, batch, steps, parameters, sites, clip = 3.0, 20.0, 50, 4000, 4, 0.7
    draws = np.random.default_rng(0).normal(size=(steps, sites, parameters))
    noise_sum = (sigma * clip / batch * draws).mean(axis=1).sum(axis=0)  # [P]
    measured = steps * clip / float(np.linalg.norm(noise_sum))
    stated = heuristic.run_signal_to_noise(
        sigma, batch, steps=steps, parameters=parameters, sites=sites
    )
    assert stated == pytest.approx(measured, rel=0.05)
    per_coordinate = float((sigma * clip / batch * draws[:, 0]).std())
    assert heuristic.effective_noise(sigma, batch) * clip == pytest.approx(per_coordinate, rel=0.02)


def test_sampling_everything_buys_all_of_the_signal_however_many_steps() -> None:
    request = replace(SMALL, sampling_rates=(1.0,), rounds=(1, 10, 100))
    for row in plan(request).alternatives:
        assert row.share_of_best == pytest.approx(1.0, abs=2e-3)


def test_the_recommended_row_is_the_least_work_that_buys_90_percent() -> None:
    figures = plan(replace(SMALL, sampling_rates=(), rounds=(50,)))
    rows = [row for row in figures.alternatives if row.rounds == 50]
    chosen = best(figures)
    good = [row for row in rows if (row.share_of_best or 0) >= 0.9]
    assert len(rows) >= 3
    assert len(good) < len(rows)
    assert chosen in good
    assert chosen.expected_batch == min(row.expected_batch for row in good)
    assert {row.rounds for row in figures.alternatives} == {25, 50, 100}


def test_where_no_rate_buys_90_percent_the_one_that_buys_most_is_recommended() -> None:
    figures = plan(replace(SMALL, sampling_rates=(0.02, 0.05)))
    assert best(figures).sampling_rate == 0.05
    assert any("overcharged" in f.text and f.kind == "warning" for f in figures.findings)


# --- too small, and what would help ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("delta", [DELTA, None])
def test_the_least_records_sites_parameters_and_epsilon_hold_when_planned_again(
    delta: float | None,
) -> None:
    request = replace(SMALL, delta=delta, records=700, epsilon=1.0)
    figures = plan(request)
    answer = figures.feasibility
    assert ratio(figures) < 1
    assert answer.verdict == "too_small"
    assert answer.least_records is not None
    assert answer.least_sites is not None
    assert answer.least_epsilon is not None
    parameters = best(figures).largest_model
    assert parameters is not None
    assert ratio(plan(replace(request, records=answer.least_records))) >= 1
    assert ratio(plan(replace(request, records=answer.least_records - 1))) < 1
    assert ratio(plan(replace(request, sites=answer.least_sites))) >= 1
    assert ratio(plan(replace(request, sites=answer.least_sites - 1))) < 1
    assert ratio(plan(replace(request, epsilon=answer.least_epsilon))) >= 1
    assert ratio(plan(replace(request, epsilon=answer.least_epsilon * 0.97))) < 1
    assert ratio(plan(replace(request, parameters=parameters))) >= 1
    assert ratio(plan(replace(request, parameters=parameters + 1))) < 1
    said = [finding for finding in figures.findings if finding.kind == "problem"]
    assert f"{answer.least_records:,}" in said[0].text


def test_more_records_are_not_advised_at_a_delta_that_would_publish_one_of_them() -> None:
    request = replace(SMALL, delta=1e-4, records=1000, epsilon=0.5, parameters=10**9)
    figures = plan(request)
    least = figures.feasibility.least_records
    assert least is not None
    assert least * 1e-4 >= 1
    assert ratio(plan(replace(request, records=least, delta=None))) >= 1
    assert ratio(plan(replace(request, records=least - 1, delta=None))) < 1
    said = (
        f"{least:,} records in each site at sampling rate 0.5 (and δ = {proposed_delta(least):g})"
    )
    assert any(said in finding.text for finding in figures.findings)


def test_a_plan_that_is_large_enough_is_not_sent_away() -> None:
    figures = plan(replace(SMALL, records=200_000, delta=None))
    assert figures.feasibility.verdict == "feasible"
    assert ratio(figures) >= heuristic.CLEAR_SIGNAL
    assert figures.feasibility.least_records is None
    assert not [finding for finding in figures.findings if finding.kind == "problem"]
    assert plan(replace(SMALL, records=10_000)).feasibility.verdict == "marginal"


def test_without_parameters_there_is_no_verdict_but_the_largest_model() -> None:
    figures = plan(replace(SMALL, parameters=None))
    assert figures.feasibility.verdict == "unknown"
    largest = best(figures).largest_model
    assert largest is not None
    assert any(
        f"more than {short(largest)} trained parameters" in finding.text
        for finding in figures.findings
    )


def test_a_budget_that_no_noise_keeps_is_impossible_and_the_epsilon_named_is_not() -> None:
    request = replace(SMALL, epsilon=1e-4, sampling_rates=(1.0,), rounds=(100,), local_steps=100)
    figures = plan(request)
    assert figures.recommended is None
    assert figures.feasibility.verdict == "impossible"
    assert figures.findings[0].kind == "problem"
    assert figures.feasibility.least_epsilon is not None
    again = plan(replace(request, epsilon=figures.feasibility.least_epsilon))
    assert again.recommended is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"delta": 1 / 1400}, "in the clear"),
        ({"sampling_rates": (0.0005, 0.5)}, "most steps see nobody"),
        ({"records": 1437}, "looks like a count"),
        ({"delta": 3e-4}, "above a tenth"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(change: dict[str, object], said: str) -> None:
    texts = [finding.text for finding in plan(replace(SMALL, **change)).findings]  # type: ignore[arg-type]
    assert any(said in text for text in texts)
    assert not any(said in finding.text for finding in plan(SMALL).findings)


# --- modes ------------------------------------------------------------------------------


def test_modes_without_secure_aggregation_are_marked_and_none_promises_nothing() -> None:
    modes = {figures.mode: figures for figures in plan(replace(SMALL, sites=5)).modes}
    assert list(modes) == ["local", "distributed", "site", "none"]
    assert {mode for mode, figures in modes.items() if figures.available} == {"local", "none"}
    for mode in ("distributed", "site"):
        assert "secure aggregation, which this release does not have" in modes[mode].note
    assert (modes["none"].epsilon, modes["none"].noise_multiplier) == (None, None)
    assert "no differential privacy" in modes["none"].note


def test_distributed_is_one_release_a_round_over_all_sites() -> None:
    request = replace(SMALL, sites=5)
    figures = plan(request)
    distributed = figures.modes[1]
    assert distributed.releases == 20
    assert distributed.expected_batch == 5 * best(figures).expected_batch
    real = schedule(request, best(figures), local_steps=1).noise_multiplier
    assert distributed.noise_multiplier == pytest.approx(real, rel=0.01)


def test_site_level_noise_is_the_closed_form_without_amplification() -> None:
    site = plan(replace(SMALL, sites=5)).modes[2]
    assert site.sampling_rate == 1.0
    assert site.noise_multiplier is not None
    one = site.noise_multiplier / math.sqrt(20)
    assert gaussian_delta(2.0, one) <= DELTA < gaussian_delta(2.0 * 0.99, one)


# --- the request and the answer -----------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"records": 0}, "--records 0"),
        ({"records": 10**13}, "--records"),
        ({"rounds": ()}, "no number of rounds"),
        ({"rounds": (5, 0)}, "--rounds 0"),
        ({"rounds": (100_001,)}, "--rounds 100001"),
        ({"rounds": (20, 10_001), "local_steps": 10}, "100,010 steps"),
        ({"local_steps": 0}, "--local-steps"),
        ({"sites": -1}, "--sites"),
        ({"parameters": 0}, "--parameters"),
        ({"epsilon": 0.0}, "--epsilon"),
        ({"epsilon": math.nan}, "--epsilon"),
        ({"epsilon": math.inf}, "--epsilon"),
        ({"delta": 1.0}, "--delta"),
        ({"delta": -1e-5}, "--delta"),
        ({"sampling_rates": (0.5, 1.5)}, "--sampling-rate 1.5"),
        ({"sampling_rates": (math.nan,)}, "--sampling-rate"),
        ({"batches": (10.0,)}, "both given"),
        ({"batches": (1401.0,), "sampling_rates": ()}, "cannot be sampled"),
        ({"probe_epsilons": (0.0,)}, "--probe-epsilon"),
        ({"l2_clip_norm": 0.0}, "--clip"),
        ({"unit": "subject"}, "do not fit together"),
        ({"records_per_subject": 3}, "do not fit together"),
        ({"rounds": tuple(range(1, 26))}, "too many"),
    ],
)
def test_a_request_that_is_not_sound_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(SMALL, **change)  # type: ignore[arg-type]
    assert said in caught.value.what
    assert caught.value.fix


def test_a_batch_is_another_way_to_write_a_rate() -> None:
    by_batch = plan(replace(SMALL, sampling_rates=(), batches=(700.0,)))
    assert best(by_batch) == best(plan(SMALL))


def test_the_clip_norm_scales_the_stated_noise_of_a_coordinate() -> None:
    plain, scaled = best(plan(SMALL)), best(plan(replace(SMALL, l2_clip_norm=0.1)))
    assert plain.effective_noise == pytest.approx(noise(plain) / 700)
    assert scaled.effective_noise == pytest.approx(0.1 * noise(plain) / 700)


def test_the_figures_survive_json() -> None:
    figures = plan(replace(SMALL, records=700))
    assert PlanFigures.model_validate_json(figures.model_dump_json()) == figures


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 10**7), st.floats(0.3, 10.0), st.integers(1, 300))
def test_the_chosen_rates_never_ask_for_less_than_one_unit_in_a_step(
    records: int, eps: float, rounds: int
) -> None:
    figures = plan(PlanRequest(records=records, epsilon=eps, rounds=(rounds,)))
    assert figures.recommended is not None
    assert len(figures.alternatives) <= 7
    assert all(row.expected_batch >= 1 for row in figures.alternatives)


def test_probe_noise_is_that_of_one_gaussian_release() -> None:
    figures = plan(replace(SMALL, probe_epsilons=(0.5,)))
    event = GaussianRelease(noise_multiplier=figures.probe_noise_multipliers[0])
    assert 0.499 < epsilon([event], DELTA, interval=REPORT_INTERVAL) <= 0.5


@given(st.floats(1e-6, 1e6), st.integers(3, 4))
def test_a_written_bound_is_never_below_the_bound(eps: float, digits: int) -> None:
    written = float(bound(eps, digits))
    assert eps * (1 - 1e-9) <= written <= eps * (1 + 10.0 ** (1 - digits))


@given(st.floats(1e-3, 9e14))
def test_a_short_figure_is_short(value: float) -> None:
    assert len(short(value)) <= 7
