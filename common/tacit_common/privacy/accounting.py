"""What a list of releases costs: ε at δ, by three accountants that share no code.

The figure that counts is PLD (privacy loss distributions, dp-accounting). Rényi DP
(dp-accounting) and PRV (Opacus) are cross-checks, and a report shows all three.

Adjacency is zero-out: a unit's contribution is replaced by zero (docs/privacy.md 1). PLD can
also state the replace-one figure. Rényi figures under replace-one are not offered:
`RdpAccountant(REPLACE_ONE)` ignores the adjacency for a plain Gaussian (4.73 instead of
9.997 at σ = 1, δ = 1e-5).

Every bound here rounds up, and a value that cannot be computed is an error or infinity,
never a zero. dp-accounting takes 0.7 s to import and Opacus 2 s, so both are imported
where they are used.
"""

import functools
import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Accountant = Literal["pld", "rdp", "prv"]

REPORT_INTERVAL = 1e-4
"""Grid of privacy losses for figures that are stated."""

PLANNING_INTERVAL = 1e-3
"""Grid for planning and live figures: ten times cheaper. Its ε is higher by 0.04 % after a
thousand steps at ε = 2, and by 4 % after a hundred thousand."""

# The grid of a PLD grows with ε: at σ = 0.01 it would take 2 GB to say that ε is 5400. It is
# therefore widened in proportion above this ε, and far above it the Rényi bound stands in.
_FINE_GRID_UP_TO = 32.0
_PLD_UP_TO = 512.0
_SIZING_ORDERS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 512.0)

_PRV_UP_TO = 100.0  # beyond it Opacus overflows e^loss
_PRV_EPSILON_ERROR = 0.01  # Opacus' default; part of its upper bound


class NeighboringRelation(StrEnum):
    """Which two data sets must be hard to tell apart."""

    ZERO_OUT = "zero_out"  # one unit's contribution is replaced by zero
    REPLACE_ONE = "replace_one"  # one unit is replaced by any other


@dataclass(frozen=True)
class Epsilons:
    """ε of the same events at the same δ, zero-out, by three accountants.

    `prv` is None where Opacus cannot compute a figure: ε far above 100, or δ too small
    for its arithmetic.
    """

    pld: float
    rdp: float
    prv: float | None


@dataclass(frozen=True, order=True)
class _Group:
    """Identical releases: `steps` Gaussian sums, each over a Poisson sample at this rate."""

    sampling_rate: float
    noise_multiplier: float
    steps: int


def epsilon(
    events: Iterable[PrivacyEvent],
    delta: float,
    *,
    accountant: Accountant = "pld",
    interval: float = PLANNING_INTERVAL,
    neighboring_relation: NeighboringRelation = NeighboringRelation.ZERO_OUT,
) -> float:
    """ε of all `events` together at `delta`, each event chosen before the first release.

    Guarantees: an upper bound; independent of the order of events and of how steps are
    split over them; infinite if any event is not private; 0 for no events. Above ε = 512
    the PLD figure is the Rényi bound (infinite under replace-one). Asking again is free.

    Raises:
        PrivacyConfigError: an event is unknown, δ is not in (0, 1), or the accountant
            cannot give the figure.
    """
    _check_delta(delta)
    groups = _group(events)
    if groups is None:
        return math.inf
    if accountant == "pld":
        return _pld_epsilon(groups, delta, interval, neighboring_relation)
    if neighboring_relation is not NeighboringRelation.ZERO_OUT:
        raise PrivacyConfigError(
            f"accountant '{accountant}' has no figure for {neighboring_relation.value}",
            why="only PLD accounts for that adjacency correctly",
            fix="use accountant 'pld'",
        )
    if accountant == "rdp":
        return _rdp_epsilon(groups, delta)
    prv = _prv_epsilon(groups, delta)
    if prv is None:
        raise PrivacyConfigError(
            "accountant 'prv' has no figure for these events",
            why="ε is far above 100, or δ is too small for its arithmetic",
            fix="use accountant 'pld'",
        )
    return prv


def delta(
    events: Iterable[PrivacyEvent],
    epsilon: float,
    *,
    interval: float = PLANNING_INTERVAL,
    neighboring_relation: NeighboringRelation = NeighboringRelation.ZERO_OUT,
) -> float:
    """Smallest δ (by PLD, an upper bound) for which `events` are (`epsilon`, δ)-DP.

    Guarantees: 1 if any event is not private, or if their ε is beyond what PLD computes.

    Raises:
        PrivacyConfigError: an event is unknown, or ε is negative or not finite.
    """
    return deltas(events, [epsilon], interval=interval, neighboring_relation=neighboring_relation)[
        0
    ]


def deltas(
    events: Iterable[PrivacyEvent],
    epsilons: Sequence[float],
    *,
    interval: float = PLANNING_INTERVAL,
    neighboring_relation: NeighboringRelation = NeighboringRelation.ZERO_OUT,
) -> list[float]:
    """`delta` at each of `epsilons`, in the order given; much quicker than one by one.

    Raises:
        PrivacyConfigError: an event is unknown, or an ε is negative or not finite.
    """
    for epsilon in epsilons:
        if not (math.isfinite(epsilon) and epsilon >= 0):
            raise PrivacyConfigError(
                f"epsilon {epsilon} is out of range",
                why="δ is a function of a finite ε that is not negative",
                fix="give an epsilon of 0 or more",
            )
    groups = _group(events)
    if groups is None:
        return [1.0] * len(epsilons)
    if not groups:
        return [0.0] * len(epsilons)
    grid = _grid(groups, 1e-12, interval, neighboring_relation)
    if grid is None:
        return [1.0] * len(epsilons)
    values = _composed(groups, grid, neighboring_relation).get_delta_for_epsilon(list(epsilons))
    return [min(1.0, max(0.0, float(value))) for value in values]  # the FFT can leave −1e-17


def curve(
    events: Iterable[PrivacyEvent],
    deltas: Iterable[float],
    *,
    interval: float = PLANNING_INTERVAL,
    neighboring_relation: NeighboringRelation = NeighboringRelation.ZERO_OUT,
) -> list[tuple[float, float]]:
    """(δ, ε) for each of `deltas`, in the order given, by PLD."""
    fixed = list(events)
    return [
        (d, epsilon(fixed, d, interval=interval, neighboring_relation=neighboring_relation))
        for d in deltas
    ]


def cross_check(events: Iterable[PrivacyEvent], delta: float) -> Epsilons:
    """ε by PLD on the report grid, Rényi DP and PRV: what a report shows side by side.

    PRV figures hold Opacus' own error bound of 0.01.

    Raises:
        PrivacyConfigError: an event is unknown, or δ is not in (0, 1).
    """
    _check_delta(delta)
    groups = _group(events)
    if groups is None:
        return Epsilons(pld=math.inf, rdp=math.inf, prv=math.inf)
    return Epsilons(
        pld=_pld_epsilon(groups, delta, REPORT_INTERVAL, NeighboringRelation.ZERO_OUT),
        rdp=_rdp_epsilon(groups, delta),
        prv=_prv_epsilon(groups, delta),
    )


def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """Smallest σ for which one Gaussian release is (`epsilon`, `delta`)-DP, in closed form.

    Balle and Wang 2018 (arXiv 1805.06530), equation 6.
    """
    import dp_accounting  # noqa: PLC0415

    return float(dp_accounting.get_sigma_gaussian(epsilon, delta))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """ε of one Gaussian release, in closed form: the inverse of `gaussian_noise_multiplier`."""
    import dp_accounting  # noqa: PLC0415

    return float(dp_accounting.get_epsilon_gaussian(noise_multiplier, delta))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyConfigError(
            f"delta {delta} is out of range",
            why="ε is stated at a δ strictly between 0 and 1",
            fix="choose δ well below one over the number of units, for example 1e-6",
        )


# --- grouping --------------------------------------------------------------------------


def _group(events: Iterable[PrivacyEvent]) -> tuple[_Group, ...] | None:
    """Identical releases merged and sorted; None if any release is not private.

    Releases without sampling are all Gaussians on the same data, and Gaussians compose
    exactly: σ_1, …, σ_k cost what one release of σ = (Σ σ_i⁻²)^(−1/2) costs.
    """
    sampled: dict[tuple[float, float], int] = defaultdict(int)
    full: dict[float, int] = defaultdict(int)
    non_private = False
    for event in events:
        match event:
            case PoissonGaussianSteps(sampling_rate=1.0):
                full[event.noise_multiplier] += event.steps
            case PoissonGaussianSteps():
                sampled[event.sampling_rate, event.noise_multiplier] += event.steps
            case GaussianRelease():
                full[event.noise_multiplier] += 1
            case NonPrivateRelease():
                non_private = True
            case _:
                raise PrivacyConfigError(
                    f"a release of kind '{type(event).__name__}' cannot be accounted for",
                    why="this version has no rule for it, and no release is ever free",
                    fix="use the Tacit version that wrote the event",
                )
    if non_private:
        return None
    groups = [_Group(q, sigma, steps) for (q, sigma), steps in sampled.items()]
    if full:
        precision = math.fsum(count / sigma / sigma for sigma, count in full.items())
        groups.append(_Group(1.0, 1.0 / math.sqrt(precision), 1))
    return tuple(sorted(groups))


# --- PLD -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _pld_epsilon(
    groups: tuple[_Group, ...], delta: float, interval: float, relation: NeighboringRelation
) -> float:
    if not groups:
        return 0.0
    grid = _grid(groups, delta, interval, relation)
    if grid is None:
        zero_out = relation is NeighboringRelation.ZERO_OUT
        return _rdp_epsilon(groups, delta) if zero_out else math.inf
    return float(_composed(groups, grid, relation).get_epsilon_for_delta(delta))


def _grid(
    groups: tuple[_Group, ...], delta: float, interval: float, relation: NeighboringRelation
) -> float | None:
    """The grid that keeps a PLD of these events small; None if none does.

    A power of two times `interval`, so that live figures keep hitting the caches.
    """
    if relation is NeighboringRelation.REPLACE_ONE:  # twice the distance: only sizes the grid
        groups = tuple(_Group(g.sampling_rate, g.noise_multiplier / 2, g.steps) for g in groups)
    size = _rdp_epsilon(groups, delta, _SIZING_ORDERS)
    if size > _PLD_UP_TO:
        size = _rdp_epsilon(groups, delta)
    if size > _PLD_UP_TO:
        return None
    return interval * 2.0 ** max(0, math.ceil(math.log2(max(size, 1e-300) / _FINE_GRID_UP_TO)))


@functools.lru_cache(maxsize=8)
def _composed(
    groups: tuple[_Group, ...], interval: float, relation: NeighboringRelation
) -> "PrivacyLossDistribution":
    parts = [_pld_of_group(group, interval, relation) for group in groups]
    return functools.reduce(lambda left, right: left.compose(right), parts)


@functools.lru_cache(maxsize=16)
def _pld_of_group(
    group: _Group, interval: float, relation: NeighboringRelation
) -> "PrivacyLossDistribution":
    one = _pld_of_step(group.sampling_rate, group.noise_multiplier, interval, relation)
    return one if group.steps == 1 else one.self_compose(group.steps)


@functools.lru_cache(maxsize=16)
def _pld_of_step(
    sampling_rate: float, noise_multiplier: float, interval: float, relation: NeighboringRelation
) -> "PrivacyLossDistribution":
    from dp_accounting import NeighboringRelation as Relation  # noqa: PLC0415
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sampling_prob=sampling_rate,
        value_discretization_interval=interval,
        neighboring_relation={
            NeighboringRelation.ZERO_OUT: Relation.REPLACE_SPECIAL,
            NeighboringRelation.REPLACE_ONE: Relation.REPLACE_ONE,
        }[relation],
    )


# --- cross-checks ----------------------------------------------------------------------


def _rdp_epsilon(
    groups: tuple[_Group, ...], delta: float, orders: tuple[float, ...] | None = None
) -> float:
    """ε by Rényi DP at dp-accounting's default orders, or at those given."""
    from dp_accounting import rdp  # noqa: PLC0415

    if not groups:
        return 0.0
    if orders is None:
        orders = tuple(rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
    curves = [_rdp_of_step(g.sampling_rate, g.noise_multiplier, orders) for g in groups]
    total = [
        math.fsum(group.steps * curve[i] for group, curve in zip(groups, curves, strict=True))
        for i in range(len(orders))
    ]
    # A divergence that rounding made negative would be turned into ε = 0: leave it out.
    usable = [(a, r) for a, r in zip(orders, total, strict=True) if 0 <= r < math.inf]
    if not usable:
        return math.inf
    value, _ = rdp.compute_epsilon([a for a, _ in usable], [r for _, r in usable], delta)
    return float(value)


@functools.lru_cache(maxsize=256)
def _rdp_of_step(
    sampling_rate: float, noise_multiplier: float, orders: tuple[float, ...]
) -> tuple[float, ...]:
    """Rényi divergences of one release."""
    import dp_accounting  # noqa: PLC0415
    from dp_accounting import rdp  # noqa: PLC0415

    accountant = rdp.RdpAccountant(
        orders, neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    )
    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    with _quiet_about_excluded_orders():
        accountant.compose(dp_accounting.PoissonSampledDpEvent(sampling_rate, gaussian))
    return tuple(float(value) for value in accountant.rdp)


def renyi_orders() -> tuple[float, ...]:
    """The orders α that Rényi figures are taken at: dp-accounting's own, ascending."""
    from dp_accounting import rdp  # noqa: PLC0415

    return tuple(float(order) for order in rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)


def renyi_divergences(sampling_rate: float, noise_multiplier: float) -> tuple[float, ...]:
    """Rényi divergence of one release, zero-out, at each of `renyi_orders()`.

    Infinite where dp-accounting's series does not converge.
    """
    orders = renyi_orders()
    if sampling_rate == 1:
        return tuple(_gaussian_divergence(noise_multiplier, order) for order in orders)
    return tuple(map(_at_least_zero, _rdp_of_step(sampling_rate, noise_multiplier, orders)))


@functools.lru_cache(maxsize=1 << 16)
def renyi_divergence(sampling_rate: float, noise_multiplier: float, order: float) -> float:
    """Rényi divergence of one release at one order, zero-out. Asking again is free.

    Guarantees: an upper bound, exact at whole orders (Mironov, Talwar and Zhang, arXiv
    1908.10530, section 3.3).
    """
    if sampling_rate == 1:
        return _gaussian_divergence(noise_multiplier, order)
    (value,) = _rdp_of_step(sampling_rate, noise_multiplier, (order,))
    return _at_least_zero(value)


def _gaussian_divergence(noise_multiplier: float, order: float) -> float:
    return order / 2 / noise_multiplier / noise_multiplier  # no square, so no division by zero


def _at_least_zero(divergence: float) -> float:
    # Written so that NaN, and a divergence that rounding made negative, are never free.
    return divergence if divergence >= 0 else math.inf


@contextmanager
def _quiet_about_excluded_orders() -> Iterator[None]:
    """dp-accounting logs each order whose series does not converge; it then counts as infinite."""

    def keep(record: logging.LogRecord) -> bool:
        return "failed to converge" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@functools.lru_cache(maxsize=64)
def _prv_epsilon(groups: tuple[_Group, ...], delta: float) -> float | None:
    """Opacus' upper bound (Gopi, Lee and Wutschitz 2021); None where it has none."""
    if not groups:
        return 0.0
    if _rdp_epsilon(groups, delta / 4000) > _PRV_UP_TO:  # the width of Opacus' grid
        return None
    return _opacus_epsilon(groups, delta)


def _opacus_epsilon(groups: Sequence[_Group], delta: float) -> float | None:
    import numpy as np  # noqa: PLC0415
    from opacus.accountants import PRVAccountant  # noqa: PLC0415

    accountant = PRVAccountant()
    accountant.history = [(g.noise_multiplier, g.sampling_rate, g.steps) for g in groups]
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        # log(1 − q) at q = 1 is −∞, as it should be; and the Rényi orders that Opacus
        # complains about only size its grid.
        warnings.filterwarnings("ignore", message="Optimal order is the (largest|smallest)")
        try:
            return float(accountant.get_epsilon(delta, eps_error=_PRV_EPSILON_ERROR))
        except (RuntimeError, ValueError):  # its own precision checks
            return None
