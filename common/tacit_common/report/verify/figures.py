"""Checks of a report: every ε and every curve, from the events that it says were reserved."""

import itertools

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy.accounting import PLANNING_INTERVAL
from tacit_common.privacy.events import PoissonGaussianSteps, PrivacyEvent
from tacit_common.report.claims import AccountantFigure, LocalPrivacy
from tacit_common.report.participation import SiteReport
from tacit_common.report.recompute import Composition, figures_of_site, grouped
from tacit_common.report.schema import Report
from tacit_common.report.verify.findings import (
    ARITHMETIC,
    GRID,
    NOT_THERE,
    RATE,
    Check,
    Comparison,
    Tolerance,
)

_PRV_ABOVE = 0.02
"""PRV states an estimate that is off by at most 0.01, plus 0.01."""

_RDP_BELOW = Tolerance(relative=1e-3, absolute=PLANNING_INTERVAL)
"""RDP is the looser bound: only the grid of PLD can lift PLD above it."""


# --- sites -----------------------------------------------------------------------------


def check_spending(report: Report) -> Check:
    """Each site's ε from its `spent`, and what must hold between its figures."""
    found = Comparison()
    for i, site in enumerate(report.sites):
        path = f"sites[{i}]"
        if site.reserves is None or site.never_committed is None or site.releases is None:
            _check_planned(found, path, site, report)
            continue
        left = site.reserves - site.never_committed
        found.at_most(f"{path}.releases", site.releases, left, ARITHMETIC)
        found.at_least(f"{path}.releases", site.releases, site.rounds_answered, ARITHMETIC)
        if isinstance(report.privacy, LocalPrivacy):
            _check_epsilons(found, path, site, report, report.privacy)
        else:
            found.same(f"{path}.composition", site.composition, None)
            found.same(f"{path}.renyi_order", site.renyi_order, None)
            found.same(f"{path}.epsilon_cap", site.epsilon_cap, None)
    return found.check(
        "spending",
        "Each site’s ε follows from everything that it says it reserved, and is within its cap.",
        note=_without_account(report),
    )


def _without_account(report: Report) -> str | None:
    names = [site.name for site in report.sites if not site.is_disclosed]
    if not names:
        return None
    return (
        f"no account of other runs was given by {', '.join(names)}: what is stated there is of "
        "this run alone, as the study plans it"
    )


def _check_planned(found: Comparison, path: str, site: SiteReport, report: Report) -> None:
    """A site without an account: this run, as the study plans it, and nothing else."""
    privacy = report.privacy
    planned: tuple[PrivacyEvent, ...] = ()
    cost, rule = None, None
    if isinstance(privacy, LocalPrivacy):
        planned = grouped(release.event for release in privacy.releases)
        cost, rule = Composition("plan").epsilon(planned, privacy.delta), "plan"
    found.sequences(f"{path}.spent", site.spent, planned)
    found.near(f"{path}.epsilon_run", site.epsilon_run, cost, GRID)
    found.same(f"{path}.composition", site.composition, rule)


def _check_epsilons(
    found: Comparison, path: str, site: SiteReport, report: Report, privacy: LocalPrivacy
) -> None:
    try:
        composition = Composition.of_site(site)
    except PrivacyConfigError as error:
        found.differs(f"{path}.renyi_order", site.renyi_order, error.why)
        return
    found.sequences(f"{path}.spent", site.spent, grouped(site.spent))
    found.same(f"{path}.composition", site.composition, composition.rule)
    total = composition.epsilon(site.spent, privacy.delta)
    found.near(f"{path}.epsilon_total", site.epsilon_total, total, GRID)
    if site.epsilon_cap is not None:
        found.at_least(f"{path}.epsilon_cap", site.epsilon_cap, total, GRID)
    answered = _answered(site, report, privacy)
    reserved = sum(_steps_like(event, answered) for event in site.spent)
    if answered is not None and reserved < answered.steps:
        found.differs(f"{path}.spent", site.spent, f"at least {answered.steps} steps of training")
    least = 0.0 if answered is None else composition.epsilon([answered], privacy.delta)
    if site.epsilon_run is not None:
        alone = [] if answered is None else [answered]
        by_plan = Composition("plan").epsilon(alone, privacy.delta)
        found.at_least(f"{path}.epsilon_run", site.epsilon_run, by_plan, GRID)
        found.at_most(f"{path}.epsilon_run", site.epsilon_run, total, GRID)
    after = site.epsilon_after_round or ()
    for number, (before, now) in enumerate(itertools.pairwise((0.0, *after))):
        found.at_least(f"{path}.epsilon_after_round[{number}]", now, before, ARITHMETIC)
    if after:
        last = f"{path}.epsilon_after_round[{len(after) - 1}]"
        found.at_least(last, after[-1], least, GRID)
        found.at_most(last, after[-1], total, GRID)


def _answered(
    site: SiteReport, report: Report, privacy: LocalPrivacy
) -> PoissonGaussianSteps | None:
    """The training that the site's answered rounds must have cost, at the least."""
    planned = next(
        (r.event for r in privacy.releases if isinstance(r.event, PoissonGaussianSteps)), None
    )
    if planned is None or site.rounds_answered == 0:
        return None
    steps = planned.steps // report.run.rounds_planned * site.rounds_answered
    return planned.model_copy(update={"steps": steps}) if steps else None


def _steps_like(event: object, model: PoissonGaussianSteps | None) -> int:
    """Steps of an event at the rate and noise of `model`."""
    if model is None or not isinstance(event, PoissonGaussianSteps):
        return 0
    rate, noise = event.sampling_rate, event.noise_multiplier
    return event.steps if (rate, noise) == (model.sampling_rate, model.noise_multiplier) else 0


# --- the site that spent most ----------------------------------------------------------


def check_figures(report: Report) -> Check:
    """Accountants, curve, trade-off and groups, at the site that spent most."""
    found = Comparison()
    privacy = report.privacy
    if not isinstance(privacy, LocalPrivacy):
        return found.check("figures", "Without differential privacy, no ε is stated.")
    claim = "The accountants, the curve, the trade-off and the group figures are right."
    totals = [site.epsilon_known or 0.0 for site in report.sites]
    found.near("privacy.epsilon_spent", privacy.epsilon_spent, max(totals), ARITHMETIC)
    worst = report.sites[totals.index(max(totals))]
    try:
        figures = figures_of_site(worst, privacy.delta)
    except PrivacyConfigError as error:
        found.differs("privacy.epsilon_spent", privacy.epsilon_spent, error.why)
        return found.check("figures", claim)
    found.near("privacy.epsilon_spent", privacy.epsilon_spent, figures.epsilon, GRID)
    _check_accountants(found, report, privacy.accountants, figures.accountants)
    _check_cross(found, privacy.accountants, worst)
    _check_points(
        found,
        "privacy.curve",
        ("delta", "epsilon"),
        [(point.delta, point.epsilon) for point in privacy.curve],
        [(point.delta, point.epsilon) for point in figures.curve],
        GRID,
    )
    _check_points(
        found,
        "privacy.trade_off",
        ("false_positive_rate", "largest_true_positive_rate"),
        [(p.false_positive_rate, p.largest_true_positive_rate) for p in privacy.trade_off],
        [(p.false_positive_rate, p.largest_true_positive_rate) for p in figures.trade_off],
        RATE,
    )
    _check_points(
        found,
        "privacy.groups",
        ("units", "epsilon"),
        [(group.units, group.epsilon) for group in privacy.groups],
        [(group.units, group.epsilon) for group in figures.groups],
        GRID,
    )
    return found.check("figures", claim)


def _check_accountants(
    found: Comparison,
    report: Report,
    stated: tuple[AccountantFigure, ...],
    recomputed: tuple[AccountantFigure, ...],
) -> None:
    path = "privacy.accountants"
    found.sequences(path, [a.method for a in stated], [a.method for a in recomputed])
    for i, (left, right) in enumerate(zip(stated, recomputed, strict=False)):
        found.near(f"{path}[{i}].epsilon", left.epsilon, right.epsilon, GRID)
        found.same(f"{path}[{i}].discretisation", left.discretisation, right.discretisation)
        package, name = (
            ("Opacus", report.software.opacus)
            if left.method == "PRV"
            else ("dp-accounting", report.software.dp_accounting)
        )
        found.same(f"{path}[{i}].software", left.software, f"{package} {name}")


def _check_cross(found: Comparison, stated: tuple[AccountantFigure, ...], site: SiteReport) -> None:
    """The second and third accountant against the first: they share no code."""
    if site.composition != "plan":
        return  # the filter's figure has its own order, and the others are for comparison
    pld = stated[0].epsilon
    for i, figure in enumerate(stated[1:], start=1):
        path = f"privacy.accountants[{i}].epsilon"
        if figure.method == "RDP":
            found.at_least(path, figure.epsilon, pld, _RDP_BELOW)
        else:
            found.at_least(path, figure.epsilon, pld, GRID)
            found.at_most(path, figure.epsilon, pld + _PRV_ABOVE, GRID)


def _check_points(
    found: Comparison,
    path: str,
    names: tuple[str, str],
    stated: list[tuple[float, float]],
    recomputed: list[tuple[float, float]],
    tolerance: Tolerance,
) -> None:
    """Points of a curve by the paths of their coordinates; none missing, none left over."""
    for i, (point, expected) in enumerate(itertools.zip_longest(stated, recomputed)):
        if point is None or expected is None:
            found.differs(f"{path}[{i}]", point or NOT_THERE, expected or NOT_THERE)
            continue
        found.near(f"{path}[{i}].{names[0]}", point[0], expected[0], ARITHMETIC)
        found.near(f"{path}[{i}].{names[1]}", point[1], expected[1], tolerance)
