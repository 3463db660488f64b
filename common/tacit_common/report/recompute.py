"""The figures of a report, from the events behind them.

Whoever writes a report and whoever verifies one calls the same functions, so a figure has
one definition: what they disagree on was changed on the way.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy.accounting import REPORT_INTERVAL, cross_check, epsilon
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.filter import releases_of, renyi_cost, renyi_epsilon
from tacit_common.privacy.groups import group_epsilon, group_epsilon_by_renyi
from tacit_common.privacy.tradeoff import trade_off, trade_off_by_renyi
from tacit_common.report.claims import (
    AccountantFigure,
    CurvePoint,
    GroupFigure,
    OperatingPoint,
)

if TYPE_CHECKING:
    from tacit_common.report.participation import SiteReport

CURVE_DELTAS = tuple(float(f"1e-{power}") for power in range(12, 2, -1))  # 1e-12, …, 1e-3
GROUP_SIZES = (1, 2, 4, 8)

PLD_DISCRETISATION = (
    f"losses on a grid of {REPORT_INTERVAL:g}, rounded so that ε is never too small; the grid is "
    "wider above ε = 32, and above ε = 512 the figure is the one by RDP"
)
RDP_DISCRETISATION = "the best of dp-accounting's default orders, without a grid"
PRV_DISCRETISATION = "an error of at most 0.01 in ε to either side, which the figure includes"
AS_ONE_PLAN = "; as if all of it had been planned in advance, for comparison alone"


@dataclass(frozen=True)
class Composition:
    """How releases are composed into the ε that is stated.

    "plan": by PLD, on the report grid. A bound where all noise was fixed before the first
    release. "filter": by Rényi divergence of one `order` that was fixed before the first
    release. A bound too where noise was chosen after earlier outputs were seen.

    Raises:
        PrivacyConfigError: there is an order under "plan", or none under "filter".
    """

    rule: Literal["plan", "filter"]
    order: float | None = None

    def __post_init__(self) -> None:
        if (self.rule == "filter") != (self.order is not None):
            raise PrivacyConfigError(
                f"composition by '{self.rule}' with order {self.order} has no meaning",
                why="the filter has one Rényi order, and a plan has none",
                fix="take both from the ledger",
            )

    @classmethod
    def of_site(cls, site: "SiteReport") -> "Composition":
        """That of `epsilon_total` in a site's report."""
        return cls(site.composition or "plan", site.renyi_order)

    def epsilon(
        self, events: Iterable[PrivacyEvent], delta: float, *, interval: float = REPORT_INTERVAL
    ) -> float:
        """ε of all `events` at `delta`. `interval` is the grid of PLD."""
        fixed = tuple(events)
        if self.order is None or any(isinstance(event, NonPrivateRelease) for event in fixed):
            return epsilon(fixed, delta, interval=interval)
        return renyi_epsilon(renyi_cost(releases_of(fixed), self.order), self.order, delta)


@dataclass(frozen=True)
class PrivacyFigures:
    """Everything that a report states of one site's events.

    Only finite figures are here: an accountant that has none is left out, and so is a
    group whose ε is too large to compute. The first accountant's ε is the one that is
    stated, and the group of one unit has the same.
    """

    accountants: tuple[AccountantFigure, ...]
    curve: tuple[CurvePoint, ...]
    trade_off: tuple[OperatingPoint, ...]
    groups: tuple[GroupFigure, ...]

    @property
    def epsilon(self) -> float:
        """ε at the δ that was asked for."""
        return self.accountants[0].epsilon


def figures_of_site(site: "SiteReport", delta: float) -> PrivacyFigures:
    """All figures of what a site has spent, composed as it says.

    Raises:
        PrivacyConfigError: as for `privacy_figures`.
    """
    return privacy_figures(site.spent, delta, Composition.of_site(site))


def privacy_figures(
    events: Iterable[PrivacyEvent], delta: float, composition: Composition
) -> PrivacyFigures:
    """All figures of `events` at `delta`. Independent of how steps are split over events.

    Raises:
        PrivacyConfigError: ε is infinite, so there is no figure to state; an event is unknown;
            or δ is not in (0, 1).
    """
    return _privacy_figures(grouped(events), delta, composition)


def grouped(events: Iterable[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
    """The same releases, as `SiteReport.spent` wants them: in a fixed order, and equal
    sampled steps taken together.

    Releases without sampling stay one by one. Of releases without privacy one is kept:
    nothing is known after the first.

    Raises:
        PrivacyConfigError: an event is unknown.
    """
    steps: Counter[tuple[float, float]] = Counter()
    gaussians: list[float] = []
    non_private = False
    for event in events:
        match event:
            case PoissonGaussianSteps():
                steps[event.sampling_rate, event.noise_multiplier] += event.steps
            case GaussianRelease():
                gaussians.append(event.noise_multiplier)
            case NonPrivateRelease():
                non_private = True
            case _:
                raise PrivacyConfigError(
                    f"a release of kind '{type(event).__name__}' cannot be reported",
                    why="this version has no rule for it, and no release is ever left out",
                    fix="use the Tacit version that wrote the event",
                )
    return (
        *(
            PoissonGaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=count)
            for (rate, noise), count in sorted(steps.items())
        ),
        *(GaussianRelease(noise_multiplier=noise) for noise in sorted(gaussians)),
        *((NonPrivateRelease(),) if non_private else ()),
    )


@functools.lru_cache(maxsize=16)  # sites of one run mostly share their events
def _privacy_figures(
    events: tuple[PrivacyEvent, ...], delta: float, composition: Composition
) -> PrivacyFigures:
    if not math.isfinite(composition.epsilon(events, delta)):
        raise PrivacyConfigError(
            "there is no finite ε to report",
            why="something was released without differential privacy, or with next to no noise",
            fix="report the run under mode 'none', or use data that was never released so",
        )
    order = composition.order
    if order is None:
        rates = trade_off(events)
        groups = [(units, group_epsilon(events, units, delta)) for units in GROUP_SIZES]
    else:
        cost = renyi_cost(releases_of(events), order)
        rates = trade_off_by_renyi(cost, order)
        groups = [
            (units, group_epsilon_by_renyi(cost, order, units, delta)) for units in GROUP_SIZES
        ]
    return PrivacyFigures(
        accountants=_accountants(events, delta, composition),
        curve=tuple(
            CurvePoint(delta=at, epsilon=figure)
            for at in CURVE_DELTAS
            if math.isfinite(figure := composition.epsilon(events, at))
        ),
        trade_off=tuple(
            OperatingPoint(false_positive_rate=alpha, largest_true_positive_rate=rate)
            for alpha, rate in rates
        ),
        groups=tuple(
            GroupFigure(units=units, epsilon=figure)
            for units, figure in groups
            if math.isfinite(figure)
        ),
    )


def _accountants(
    events: tuple[PrivacyEvent, ...], delta: float, composition: Composition
) -> tuple[AccountantFigure, ...]:
    by_method = cross_check(events, delta)
    dp_accounting, opacus = f"dp-accounting {version('dp-accounting')}", version("opacus")
    stated: list[tuple[Literal["PLD", "RDP", "PRV"], float | None, str, str]] = [
        ("PLD", by_method.pld, dp_accounting, PLD_DISCRETISATION),
        ("RDP", by_method.rdp, dp_accounting, RDP_DISCRETISATION),
        ("PRV", by_method.prv, f"Opacus {opacus}", PRV_DISCRETISATION),
    ]
    if composition.order is not None:
        filtered = composition.epsilon(events, delta)
        one_order = f"the one order {composition.order:g}, fixed before the first release"
        stated = [
            ("RDP", filtered, dp_accounting, one_order),
            *((method, e, by, how + AS_ONE_PLAN) for method, e, by, how in stated),
        ]
    return tuple(
        AccountantFigure(
            method=method, epsilon=figure, software=software, discretisation=discretisation
        )
        for method, figure, software, discretisation in stated
        if figure is not None and math.isfinite(figure)
    )
