"""A site's budget for people: sentences, then two tables.

Names in a ledger came from outside: they are printed as they are, never as rich's markup, and
without anything that could move a cursor.
"""

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tacit_client.budget import AtomBudget, Budget, Proposal
from tacit_common.cli import printable
from tacit_common.privacy.spend import Rule
from tacit_common.report import numbers


def print_budget(budget: Budget, console: Console) -> None:
    """Print everything that `budget` says."""
    for sentence in sentences(budget):
        console.print(_shown(sentence), soft_wrap=True)
    if budget.atoms:
        console.print(_atoms_table(budget))
    if budget.runs:
        console.print(_runs_table(budget))
    console.print(
        f"ledger row {budget.head_seq}, {budget.head_hash[:16]}…; every hash and signature holds",
        soft_wrap=True,
    )


def sentences(budget: Budget) -> list[str]:
    """What there is to know, one sentence each."""
    cap = budget.cap
    said = [
        f"Site {budget.site} may reveal at most ε = {cap.epsilon:g} at δ = {cap.delta:g} "
        "of any one unit of its data, over all studies."
    ]
    used = [atom for atom in budget.atoms if atom.rule is not None]
    if not used:
        said.append("Nothing of its data has been released.")
    else:
        said += [_of_atom(atom) for atom in used]
    said += [_of_proposal(one, budget) for one in budget.proposals]
    return said


def _of_atom(atom: AtomBudget) -> str:
    name = f"Of atom {atom.atom} (data set {atom.lineage}),"
    match atom.rule:
        case Rule.NON_PRIVATE:
            return (
                f"{name} something was released without differential privacy: no cap holds for "
                "it, and no private study may use it any more."
            )
        case Rule.SEALED:
            return (
                f"{name} ε = {_epsilon(atom.spent)} is spent, and it will be "
                f"{_epsilon(atom.held)} when its only study has finished; under this cap nothing "
                "else may use it."
            )
        case _:
            return (
                f"{name} ε = {_epsilon(atom.spent)} is spent, and it will be "
                f"{_epsilon(atom.held)} when the started studies have finished; "
                f"ε = {_left(atom.remaining)} remains for others. Several studies add up by a "
                "filter, which counts more than each study alone."
            )


def _of_proposal(one: Proposal, budget: Budget) -> str:
    what = f"{one.label.capitalize()} of study {budget.study} on atom {one.atom}"
    if not one.admitted:
        return f"{what} would be refused: {one.why}."
    return (
        f"{what} would be allowed: ε = {_epsilon(one.spent)} would then be spent, and "
        f"ε = {_epsilon(one.held)} by the end of the study."
    )


def _atoms_table(budget: Budget) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("atom")
    table.add_column("data set")
    for heading in ("ε spent", "ε held", "ε remaining", "releases"):
        table.add_column(heading, justify="right", no_wrap=True)
    for atom in budget.atoms:
        table.add_row(
            _shown(atom.atom),
            _shown(atom.lineage),
            _epsilon(atom.spent),
            _epsilon(atom.held),
            _left(atom.remaining),
            str(atom.releases),
        )
    return table


def _runs_table(budget: Budget) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in ("run", "study", "state"):
        table.add_column(heading)
    for heading in ("releases", "failed", "unfinished", "ε alone", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in budget.runs:
        table.add_row(
            _shown(run.run),
            _shown(run.study),
            run.state,
            str(run.releases),
            str(run.failed),
            str(run.unfinished),
            _epsilon(run.alone),
            "" if run.share is None else numbers.percent(run.share),
        )
    return table


def _shown(text: str) -> Text:
    return Text(printable(text))


def _epsilon(value: float) -> str:
    """A bound, rounded up."""
    return "∞" if math.isinf(value) else numbers.epsilon(value)


def _left(value: float) -> str:
    """What remains, rounded down."""
    return "0" if value == 0 else numbers.at_least(value)
