"""The Rényi filter: a cap that holds although each release is chosen after seeing the last.

Composition by PLD takes a plan whose noise was fixed before its first release. A second
plan may depend on what the first one gave away, and then needs a *privacy filter*: a
rule that stops in time. For Rényi divergence of one fixed order it is a plain sum.

Feldman and Zrnic, "Individual privacy accounting via a Rényi filter" (arXiv 2008.11193):
let release t, given all earlier outputs, have Rényi divergence at most ρ_t of order α,
where ρ_t may depend on those outputs. If Σ ρ_t ≤ B always, then all of it together has
divergence at most B of order α. Releases of several studies may interleave: a filter for
Rényi DP of a fixed order stays one under concurrent composition (Haney et al., arXiv
2309.05901).

Canonne, Kamath and Steinke, "The discrete Gaussian" (arXiv 2004.00010), proposition 12:
divergence R of order α gives (ε, δ)-DP with

    ε = R + log((α − 1) / α) − (log δ + log α) / (α − 1).

So B = ε_cap − log((α − 1) / α) + (log δ + log α) / (α − 1) is what the cap allows. The
order is fixed before the first release. A bound that is the best of several orders, each
computed afterwards, would be a bound for a plan; for adaptive releases it would need one
filter an order, all kept within their budgets. One order fixed in advance is one filter,
and needs no union over orders.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy.accounting import renyi_divergence, renyi_divergences, renyi_orders
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)

Releases = Mapping[tuple[float, float], int]
"""(sampling rate, noise multiplier) to the number of releases; rate 1 is no sampling."""


def releases_of(events: Iterable[PrivacyEvent]) -> Counter[tuple[float, float]]:
    """Private events as single releases, identical ones counted.

    Raises:
        PrivacyConfigError: an event is not private, or not known.
    """
    counted: Counter[tuple[float, float]] = Counter()
    for event in events:
        match event:
            case PoissonGaussianSteps():
                counted[event.sampling_rate, event.noise_multiplier] += event.steps
            case GaussianRelease():
                counted[1.0, event.noise_multiplier] += 1
            case _:
                raise _unknown(event)
    return counted


def events_of(releases: Releases) -> list[PrivacyEvent]:
    """The same releases as the fewest events, in a fixed order."""
    return [
        PoissonGaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=count)
        for (rate, noise), count in sorted(releases.items())
        if count > 0
    ]


def renyi_cost(releases: Releases, order: float) -> float:
    """Σ ρ_t: Rényi divergence of all `releases` at `order`, zero-out.

    Guarantees: depends on counts alone, not on the order of events or how they are split.
    """
    return math.fsum(
        count * renyi_divergence(rate, noise, order)
        for (rate, noise), count in sorted(releases.items())
        if count > 0
    )


def renyi_budget(order: float, epsilon: float, delta: float) -> float:
    """B: the Rényi divergence of `order` that (ε, δ)-DP allows. Negative where it allows none."""
    return epsilon - _conversion(order, delta)


def renyi_epsilon(cost: float, order: float, delta: float) -> float:
    """ε at `delta` of a Rényi divergence `cost` of `order`; 0 for no cost."""
    return max(0.0, cost + _conversion(order, delta)) if cost > 0 else 0.0


def passes_filter(releases: Releases, order: float, epsilon: float, delta: float) -> bool:
    """Whether `releases`, chosen adaptively, stay within (ε, δ) by the filter of `order`."""
    return renyi_cost(releases, order) <= renyi_budget(order, epsilon, delta)


def order_for(plan: Releases, epsilon: float, delta: float) -> float:
    """The order at which the most plans like `plan` fit the cap (ε, δ): the largest B/Σρ.

    Guarantees: computed from the plan and the cap alone, so it is fixed before the first
    release; if the plan passes the filter at any order, it passes at this one; of several
    that are equal, the smallest.
    """
    return _order_for(tuple(sorted(plan.items())), epsilon, delta)


@functools.lru_cache(maxsize=4096)
def _order_for(
    plan: tuple[tuple[tuple[float, float], int], ...], epsilon: float, delta: float
) -> float:
    curves = [(count, renyi_divergences(rate, noise)) for (rate, noise), count in plan]

    def plans_that_fit(i: int, order: float) -> float:
        cost = math.fsum(count * curve[i] for count, curve in curves)
        budget = renyi_budget(order, epsilon, delta)
        if budget <= 0:
            return budget  # none fits; nearest to a budget comes first
        return budget / cost if cost > 0 else math.inf

    best = max(
        enumerate(renyi_orders()), key=lambda numbered: (plans_that_fit(*numbered), -numbered[1])
    )
    return best[1]


def _conversion(order: float, delta: float) -> float:
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def _unknown(event: object) -> PrivacyConfigError:
    if isinstance(event, NonPrivateRelease):
        return PrivacyConfigError(
            "a release without privacy cannot be filtered",
            why="it costs an infinite ε, whatever else was released",
            fix="account for it apart: after it no cap can be kept",
        )
    return PrivacyConfigError(
        f"a release of kind '{type(event).__name__}' cannot be accounted for",
        why="this version has no rule for it, and no release is ever free",
        fix="use the Tacit version that wrote the event",
    )
