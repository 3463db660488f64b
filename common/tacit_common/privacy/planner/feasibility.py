"""Whether a plan can learn, by the heuristic; and if not, what would make it feasible."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from tacit_common.privacy.accounting import REPORT_INTERVAL, epsilon
from tacit_common.privacy.events import PoissonGaussianSteps
from tacit_common.privacy.plan import LARGEST_NOISE_MULTIPLIER
from tacit_common.privacy.planner import signal_to_noise as heuristic
from tacit_common.privacy.planner.figures import MOST, Alternative, Feasibility, PlanRequest
from tacit_common.privacy.planner.findings import delta_is_sound
from tacit_common.privacy.planner.terms import Terms

_HIGHEST_USEFUL_EPSILON = 100.0  # nobody should be told that a higher one would help
_STEPS_TO_THE_UNIT = 10_000


def feasibility_of(
    rows: Sequence[Alternative], best: Alternative | None, terms: Terms
) -> Feasibility:
    """The verdict on the recommended row, and what would bring ρ to 1 where it is less.

    Guarantees: planned again with any one of the answers in place of what was asked, at the
    recommended rate and rounds, ρ is at least 1; one unit or one site less is not enough.
    """
    request = terms.request
    nothing = dict.fromkeys(("least_records", "least_sites", "least_epsilon"))
    if best is None:
        least = _least_possible_epsilon(rows, terms)
        return Feasibility.model_validate(
            nothing | {"verdict": "impossible", "run_signal_to_noise": None, "least_epsilon": least}
        )
    if best.run_signal_to_noise is None:
        return Feasibility.model_validate(
            nothing | {"verdict": "unknown", "run_signal_to_noise": None}
        )
    snr = best.run_signal_to_noise
    found = nothing | {"verdict": heuristic.judge(snr), "run_signal_to_noise": snr}
    if snr < 1:
        found |= {
            "least_records": _least(
                request.records, lambda n: _snr(replace(request, records=n), best), power=1
            ),
            "least_sites": _least(
                request.sites, lambda k: _snr(replace(request, sites=k), best), power=2
            ),
            "least_epsilon": _least_useful_epsilon(terms, best),
        }
    return Feasibility.model_validate(found)


def _snr(request: PlanRequest, best: Alternative) -> float:
    """ρ of the recommended rate and rounds for a request with other units or sites.

    δ is proposed anew where it had been proposed, or is too large for that many units.
    """
    if not delta_is_sound(request):
        request = replace(request, delta=None)
    row = Terms(request).row(best.rounds, best.sampling_rate, exact=True)
    return row.run_signal_to_noise or 0.0


def _least(start: int, snr: Callable[[int], float], *, power: int) -> int | None:
    """The least count with ρ ≥ 1, found from below: ρ grows as its `power`-th root."""
    count = start
    while (reached := snr(count)) < 1:
        count = max(count + 1, math.ceil(count / max(reached, 1e-6) ** power * (1 - 1e-12)))
        if count > MOST:
            return None
    return count


def _least_useful_epsilon(terms: Terms, best: Alternative) -> float | None:
    """An ε, rounded up to three digits, that buys ρ = 1 at this rate; None above 100."""
    request = terms.request
    if best.noise_multiplier is None or best.run_signal_to_noise is None:
        return None
    wanted = best.noise_multiplier * best.run_signal_to_noise  # ρ goes with 1/σ
    sigma = math.floor(wanted * _STEPS_TO_THE_UNIT) / _STEPS_TO_THE_UNIT
    if sigma < 0.05:  # ε is in the hundreds
        return None
    training = PoissonGaussianSteps(
        sampling_rate=best.sampling_rate, noise_multiplier=sigma, steps=best.steps
    )
    interval = terms.interval(best.steps)
    spent = epsilon([*terms.probes, training], terms.delta, interval=interval)
    least = _up(spent * 1.003)  # calibration may leave up to 0.25 % of a budget unused
    return least if request.epsilon < least <= _HIGHEST_USEFUL_EPSILON else None


def _least_possible_epsilon(rows: Sequence[Alternative], terms: Terms) -> float:
    """An ε that some noise meets for one of the rows, with a tenth to spare."""
    costs = []
    for row in rows:
        training = PoissonGaussianSteps(
            sampling_rate=row.sampling_rate,
            noise_multiplier=LARGEST_NOISE_MULTIPLIER,
            steps=terms.request.rounds[0] * terms.request.local_steps,
        )
        costs.append(epsilon([*terms.probes, training], terms.delta, interval=REPORT_INTERVAL))
    return _up(min(costs) * 1.1)


def _up(value: float) -> float:
    """`value` rounded up to three significant digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / step) * step:.3g}")
