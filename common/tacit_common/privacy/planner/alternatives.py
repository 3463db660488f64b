"""The planner: from a budget to the schedules that fit it, before a study is written.

Pure computation from declared constants. Every noise multiplier is `plan.least_noise`. The
recommended row is, to the last digit, what `plan.calibrate` gives a study of the same terms.
The rows beside it are found on a coarser grid where that is accurate: as safe, and quicker.
"""

from collections.abc import Iterator

from tacit_common.privacy.accounting import PLANNING_INTERVAL, epsilon
from tacit_common.privacy.events import PoissonGaussianSteps
from tacit_common.privacy.planner import signal_to_noise as heuristic
from tacit_common.privacy.planner.feasibility import feasibility_of
from tacit_common.privacy.planner.figures import (
    MOST_STEPS,
    Alternative,
    CurvePoint,
    PlanFigures,
    PlanRequest,
)
from tacit_common.privacy.planner.findings import HEURISTIC, findings
from tacit_common.privacy.planner.modes import under_each_mode
from tacit_common.privacy.planner.terms import Terms

_SERIES = (*(float(f"{m}e-{e}") for e in range(6, 0, -1) for m in (1, 2, 5)), 1.0)
_BELOW, _ABOVE = 2, 2  # rates of the series to compare on either side of the likely choice
# A rate that asks for less noise is overcharged too much to be worth a row. On the fine grid,
# where little noise is slow to account for, such rows are left out sooner.
_LEAST_USEFUL_NOISE, _LEAST_ON_THE_FINE_GRID = 0.7, 1.2
_CURVE_POINTS = 8


def plan(request: PlanRequest) -> PlanFigures:
    """Schedules that keep the request's budget, compared, and what is to be said of them.

    Guarantees: depends on the request alone; each row's ε, by PLD, is at most the request's;
    σ of the recommended row is that of `calibrate` for a study of the same terms, and that
    of any other row is at most 1 % above it.

    Raises:
        PrivacyConfigError: the probes leave nothing of ε for training.
    """
    terms = Terms(request)
    rows, best = _mark_the_best(list(_table(terms)), terms)
    if best is not None and len(request.rounds) == 1:
        rows += [
            terms.row(rounds, best.sampling_rate)
            for rounds in (request.rounds[0] // 2, request.rounds[0] * 2)
            if 1 <= rounds <= MOST_STEPS // request.local_steps
        ]
    rows.sort(key=lambda row: (row.rounds, row.sampling_rate))
    feasibility = feasibility_of(rows, best, terms)
    modes = under_each_mode(terms, best) if best is not None else []
    return PlanFigures(
        records=request.records,
        unit=request.unit,
        records_per_subject=request.records_per_subject,
        sites=request.sites,
        epsilon=request.epsilon,
        delta=terms.delta,
        delta_proposed=request.delta is None,
        rounds=request.rounds[0],
        local_steps=request.local_steps,
        probe_epsilons=list(request.probe_epsilons),
        probe_noise_multipliers=[event.noise_multiplier for event in terms.probes],
        parameters=request.parameters,
        l2_clip_norm=request.l2_clip_norm,
        alternatives=rows,
        curve=_curve(best, terms) if best is not None else [],
        modes=modes,
        feasibility=feasibility,
        findings=findings(request, terms.delta, rows, feasibility),
        heuristic=HEURISTIC,
    )


def _curve(row: Alternative, terms: Terms) -> list[CurvePoint]:
    """ε after some of the row's rounds, up to all of them; never above the row's ε."""
    if row.noise_multiplier is None or row.epsilon is None:
        return []
    numbers = sorted({max(1, row.rounds * n // _CURVE_POINTS) for n in range(1, _CURVE_POINTS)})
    points = []
    for rounds in numbers[: row.rounds - 1]:
        training = PoissonGaussianSteps(
            sampling_rate=row.sampling_rate,
            noise_multiplier=row.noise_multiplier,
            steps=row.steps // row.rounds * rounds,
        )
        interval = terms.interval(row.steps)
        spent = epsilon([*terms.probes, training], terms.delta, interval=interval)
        # The coarser grid rounds up a little more, and a part cannot cost more than the whole.
        points.append(CurvePoint(rounds=rounds, epsilon=min(spent, row.epsilon)))
    return [*points, CurvePoint(rounds=row.rounds, epsilon=row.epsilon)]


# --- the table -------------------------------------------------------------------------


def _table(terms: Terms) -> Iterator[Alternative]:
    request = terms.request
    rates = request.rates or _chosen_rates(terms)
    for rounds in dict.fromkeys(request.rounds):
        for rate in sorted(set(rates)):
            yield terms.row(rounds, rate)


def _chosen_rates(terms: Terms) -> tuple[float, ...]:
    """Rates of the series 1, 2, 5, 10 around the one that is likely to be recommended."""
    request = terms.request
    steps = request.rounds[0] * request.local_steps
    rates = [rate for rate in _SERIES if rate * request.records >= 1]
    noise = [heuristic.predicted_noise(rate, steps, terms.gaussian_sigma) for rate in rates]
    shares = [
        heuristic.total_signal(sigma, rate, steps) / terms.best_signal
        for sigma, rate in zip(noise, rates, strict=True)
    ]
    good = (i for i, share in enumerate(shares) if share >= heuristic.GOOD_SHARE)
    likely = next(good, len(rates) - 1)
    around = range(max(0, likely - _BELOW), min(len(rates), likely + _ABOVE + 1))
    coarse = terms.interval(steps) == PLANNING_INTERVAL
    least = _LEAST_USEFUL_NOISE if coarse else _LEAST_ON_THE_FINE_GRID
    useful = [rates[i] for i in around if noise[i] >= least]
    return tuple(useful or [rates[likely]])


def _mark_the_best(
    rows: list[Alternative], terms: Terms
) -> tuple[list[Alternative], Alternative | None]:
    """The rows with the recommended one marked and made exact, and that one.

    Among the rows with the first number of rounds it is the one of least work that buys 90 %
    of the best signal; or, where none does, the one that buys the most.
    """
    rounds = terms.request.rounds[0]
    able = [row for row in rows if row.rounds == rounds and row.share_of_best is not None]
    if not able:
        return rows, None
    good = [row for row in able if (row.share_of_best or 0.0) >= heuristic.GOOD_SHARE]
    best = min(good, key=_work) if good else max(able, key=lambda row: row.share_of_best or 0.0)
    marked = terms.row(rounds, best.sampling_rate, exact=True).model_copy(
        update={"recommended": True}
    )
    return [marked if row is best else row for row in rows], marked


def _work(row: Alternative) -> float:
    return row.expected_batch * row.steps
