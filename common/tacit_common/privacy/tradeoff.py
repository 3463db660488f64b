"""The trade-off function: what the best attack on one unit can reach.

An attacker who knows everything but whether one unit was used must decide from the
transcript. f(α) is the least rate of misses (used, but called unused) at a false positive
rate of α (unused, but called used), over all tests there are; 1 − f(α) is the best true
positive rate (Dong, Roth and Su 2022, "Gaussian differential privacy", arXiv 1905.02383).
"""

import math
from collections.abc import Iterable, Sequence

from tacit_common.privacy.accounting import PLANNING_INTERVAL, deltas, epsilon
from tacit_common.privacy.events import PrivacyEvent
from tacit_common.privacy.filter import renyi_epsilon

FALSE_POSITIVE_RATES: tuple[float, ...] = (
    *(0.0, 1e-6, 1e-5, 1e-4),
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *(0.95, 0.98, 0.99, 1.0),
)
"""Where a report states the trade-off: fine where few false alarms are made, as attacks on
membership are judged there (Carlini et al. 2022, arXiv 2112.03570)."""

_SMALLEST_DELTA = 1e-12  # the largest ε looked at is that at this δ
_EPSILONS = 1500


def trade_off(events: Iterable[PrivacyEvent]) -> list[tuple[float, float]]:
    """(α, 1 − f(α)) for each of `FALSE_POSITIVE_RATES`, by PLD.

    Releases that are (ε, δ(ε))-DP for every ε have
    f(α) = max over ε of max(0, 1 − δ(ε) − e^ε·α, e^−ε·(1 − δ(ε) − α)) (Dong, Roth and Su,
    proposition 6, after Kairouz, Oh and Viswanath 2015, arXiv 1311.0776). The maximum is
    taken over a grid of ε, with δ from the planning grid of losses, so f is never stated too
    large: the rates of one Gaussian release are too high by 2e-6 at most (measured).

    Guarantees: an upper bound on every attack's true positive rate; between α and 1; does
    not decrease; α itself for no events, and 1 if any event is not private.

    Raises:
        PrivacyConfigError: an event is unknown.
    """
    fixed = tuple(events)
    largest = epsilon(fixed, _SMALLEST_DELTA, interval=PLANNING_INTERVAL)
    if not math.isfinite(largest):
        return [(alpha, 1.0) for alpha in FALSE_POSITIVE_RATES]
    epsilons = _evenly_up_to(largest)
    return _trade_off_of(epsilons, deltas(fixed, epsilons, interval=PLANNING_INTERVAL))


def trade_off_by_renyi(cost: float, order: float) -> list[tuple[float, float]]:
    """The same for releases whose Rényi divergence of one `order` is at most `cost`.

    They are (ε, δ)-DP with log δ = (order − 1)·(cost + log(1 − 1/order) − ε) − log order
    (Canonne, Kamath and Steinke 2020, arXiv 2004.00010, proposition 12).
    """
    epsilons = _evenly_up_to(renyi_epsilon(cost, order, _SMALLEST_DELTA))
    if cost <= 0:
        return _trade_off_of(epsilons, [0.0] * len(epsilons))
    start = (order - 1) * (cost + math.log1p(-1 / order)) - math.log(order)
    return _trade_off_of(epsilons, [math.exp(min(0.0, start - (order - 1) * e)) for e in epsilons])


def _evenly_up_to(largest: float) -> list[float]:
    return [largest * i / (_EPSILONS - 1) for i in range(_EPSILONS)]


def _trade_off_of(epsilons: Sequence[float], deltas: Sequence[float]) -> list[tuple[float, float]]:
    """The trade-off of releases that are (ε, δ)-DP for every pair of `epsilons`, `deltas`."""
    return [
        (alpha, _largest_true_positive_rate(alpha, epsilons, deltas))
        for alpha in FALSE_POSITIVE_RATES
    ]


def _largest_true_positive_rate(
    alpha: float, epsilons: Sequence[float], deltas: Sequence[float]
) -> float:
    """1 − f(α), written so that nothing cancels for small α."""
    rate = min(
        min(
            delta + math.exp(min(e, 700.0)) * alpha,  # e^710 is not a float
            1 - math.exp(-e) * (1 - delta - alpha),
        )
        for e, delta in zip(epsilons, deltas, strict=True)
    )
    return min(1.0, max(alpha, rate))
