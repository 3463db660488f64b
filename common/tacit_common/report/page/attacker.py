"""The section of the page that says what the bound means for an attack."""

import math

from tacit_common.report import numbers, plots, statements
from tacit_common.report.claims import LocalPrivacy, OperatingPoint
from tacit_common.report.page.blocks import (
    Bullets,
    Cell,
    Column,
    Figure,
    FigurePair,
    Heading,
    Paragraph,
    Row,
    Section,
    Table,
)

HALF_WIDTH, HALF_HEIGHT = 372.0, 270.0
OPERATING_RATES = (0.001, 0.01, 0.1)


def attacker(privacy: LocalPrivacy) -> Section:
    """The trade-off function, the curve and groups: what the bound means for an attack."""
    words = statements.unit_words(privacy.unit)
    return Section(
        "attacker",
        "What the best attacker could do",
        (
            Bullets(
                tuple(
                    statements.attack_sentence(
                        false_positive_rate=rate,
                        largest_true_positive_rate=_bound_at(privacy.trade_off, rate),
                    )
                    for rate in OPERATING_RATES
                )
            ),
            Paragraph(statements.members_explained(unit=privacy.unit)),
            FigurePair(_trade_off_figure(privacy), _curve_figure(privacy)),
            _trade_off_table(privacy),
            _curve_table(privacy),
            Heading(f"Several {words.nouns} together"),
            Paragraph(statements.group_sentence(unit=privacy.unit)),
            _group_table(privacy),
        ),
    )


def _bound_at(points: tuple[OperatingPoint, ...], rate: float) -> float:
    """The bound at a rate, or at the next larger one that is known: it only grows."""
    known = [p for p in points if p.false_positive_rate >= rate * (1 - 1e-12)]
    return known[0].largest_true_positive_rate if known else 1.0


def _trade_off_figure(privacy: LocalPrivacy) -> Figure:
    points = tuple((p.false_positive_rate, p.largest_true_positive_rate) for p in privacy.trade_off)
    at = next((p for p in points if math.isclose(p[0], 0.01)), None)
    callouts: tuple[plots.Callout, ...] = ()
    if at is not None:
        found = numbers.percent_at_most(at[1])
        callouts = (plots.Callout(f"{found} at 1{numbers.THIN_SPACE}%", at),)
    chart = plots.Chart(
        title="Trade-off function",
        description=(
            "Largest share of members found, against the share of non-members accused wrongly. "
            "The diagonal is blind guessing. Table below."
        ),
        x=plots.share_axis("non-members accused wrongly"),
        y=plots.share_axis("members found, at most"),
        lines=(plots.Line("", points),),
        guessing=True,
        callouts=callouts,
        has_dots=False,
        width=HALF_WIDTH,
        height=HALF_HEIGHT,
    )
    return Figure(
        plots.draw_chart(chart),
        "What the best attacker can find at the site that spent most. Guessing blindly finds as "
        "large a share of members as it accuses of non-members.",
    )


def _curve_figure(privacy: LocalPrivacy) -> Figure:
    points = tuple((math.log10(p.delta), p.epsilon) for p in privacy.curve)
    deltas = [p.delta for p in privacy.curve] + [privacy.delta]
    here = (math.log10(privacy.delta), privacy.epsilon_spent)
    label = f"ε = {numbers.epsilon(privacy.epsilon_spent)}"
    chart = plots.Chart(
        title="ε for every δ",
        description=(
            f"ε of the site that spent most, for δ from {numbers.power(min(deltas))} to "
            f"{numbers.power(max(deltas))}; {label} at δ = {numbers.power(privacy.delta)}. "
            "Table below."
        ),
        x=plots.power_axis("δ, logarithmic", min(deltas), max(deltas)),
        y=plots.value_axis("ε", [*(e for _, e in points), here[1]], from_zero=True),
        lines=(plots.Line("", points),),
        callouts=(plots.Callout(label, here, is_below=True),),
        has_dots=False,
        width=HALF_WIDTH,
        height=HALF_HEIGHT,
    )
    return Figure(
        plots.draw_chart(chart),
        "ε and δ belong together: the same run has a larger ε at a smaller δ. The dot is the "
        "pair that this report states.",
    )


def _trade_off_table(privacy: LocalPrivacy) -> Table:
    return Table(
        "Largest true positive rate at each false positive rate, rounded up.",
        (
            Column("Non-members accused wrongly (false positive rate)"),
            Column("Members found, at most (true positive rate)", is_number=True),
        ),
        tuple(
            Row(
                (
                    Cell(numbers.short_percent(p.false_positive_rate)),
                    Cell(numbers.percent_at_most(p.largest_true_positive_rate)),
                )
            )
            for p in privacy.trade_off
        ),
        summary="The trade-off function, as a table",
        kind="narrow",
    )


def _curve_table(privacy: LocalPrivacy) -> Table:
    return Table(
        "ε of the site that spent most, rounded up.",
        (Column("δ"), Column("ε", is_number=True)),
        tuple(
            Row((Cell(numbers.power(p.delta)), Cell(numbers.epsilon(p.epsilon))))
            for p in privacy.curve
        ),
        summary="ε for every δ, as a table",
        kind="narrow",
    )


def _group_table(privacy: LocalPrivacy) -> Table:
    words = statements.unit_words(privacy.unit)
    return Table(
        f"At δ = {numbers.power(privacy.delta)}, at the site that spent most.",
        (
            Column(f"{words.nouns.capitalize()} together"),
            Column("ε", is_number=True),
            Column("Times the ε of one", is_number=True),
        ),
        tuple(
            Row(
                (
                    Cell(numbers.count(group.units)),
                    Cell(numbers.epsilon(group.epsilon)),
                    Cell(_times(group.epsilon, privacy.epsilon_spent)),
                )
            )
            for group in privacy.groups
        ),
        kind="narrow",
    )


def _times(group: float, one: float) -> str:
    return numbers.significant(group / one) if one > 0 else "–"
