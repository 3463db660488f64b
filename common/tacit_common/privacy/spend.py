"""What each atom of a site's data has spent, and whether a charge may be added.

The history of an atom is everything that it and the atoms it was cut from were charged,
in *blocks*: one block is one study in one run, whose whole plan was fixed before its
first release. A charge is *covered* by its block's plan if the plan still holds that many
steps at that sampling rate with that noise or less (more noise is post-processing), and
if no charge of the block had the same label before. Any other charge is an *extra*.

    rule "plan"     One block, no extras: allowed if its whole plan is within the cap by PLD.
    rule "filter"   Otherwise: allowed if all that is held is within the cap by the Rényi
                    filter (`filter`). An open block holds its whole plan and its extras,
                    ready for a started study to finish; a closed one what it reserved.
    sealed          If the first block's plan does not pass the filter, nothing but that
                    plan is ever admitted.

Why the cap holds. An atom's filter order is fixed by its first charge, and so is whether
the first plan passes the filter: nothing has been released by then, so neither depends on
an output. If the plan passes, then at every later moment all that was released is at most
what is held, whose Rényi cost is within the budget: that is the filter's condition, and
the whole history, however adaptive, is (ε, δ)-DP. If it does not pass, nothing but the
plan is ever released: its releases have dominating pairs fixed in advance, PLD composes
them, and less than the whole plan is post-processing. To allow both, the plan by PLD *or*
some other sequence by the filter, with the choice left until outputs were seen, is what
neither theorem covers. Therefore an atom whose first plan needs PLD is sealed.

The cap that counts is the one in the proposed charge: the site's present policy. The
order stays that of the first charge. A cap that was raised is kept as if it had stood
from the start, because the filter's condition at a smaller budget implies it at a larger.
A cap that was lowered far may leave no budget at that order, and so seal the atom.
A release without privacy makes every later charge inadmissible.

All charges of an atom are about one unit of privacy, a record or a subject, that of its first
private charge; a charge about another is never admitted. Bounds for one do not add up to a
bound for the other: a person has more than one record, and one record less of a person
changes that person's clipped gradient by up to twice the clip norm. An atom with
several parents holds units that turned out to be the same, and inherits all their charges.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from tacit_common.errors import LedgerError
from tacit_common.ledger_chain import Atom, Cap, Charge, VerifiedLedger
from tacit_common.privacy.accounting import REPORT_INTERVAL, epsilon
from tacit_common.privacy.events import NonPrivateRelease
from tacit_common.privacy.filter import (
    Releases,
    events_of,
    order_for,
    passes_filter,
    releases_of,
    renyi_cost,
    renyi_epsilon,
)

BlockName = tuple[str, str]
"""The run and the study's digest."""

Counted = Counter[tuple[float, float]]
"""Releases that can be counted up and down."""


class Rule(StrEnum):
    """By what a charge is judged, or why it cannot be."""

    PLAN = "plan"  # the only plan, by PLD
    FILTER = "filter"  # the Rényi filter
    SEALED = "sealed"  # the first plan needed PLD, so nothing but it is admitted
    CLOSED = "closed"  # the run was given up
    UNIT = "unit"  # the atom's other charges protect another unit
    NON_PRIVATE = "non-private"  # a release without privacy: no cap can be kept


@dataclass(frozen=True)
class Verdict:
    """Whether one atom admits a charge.

    `epsilon` is what the atom would hold by that rule, at the cap's δ; None where the
    rule has no figure.
    """

    atom: str
    admitted: bool
    rule: Rule
    epsilon: float | None

    @property
    def why(self) -> str:
        """The reason of a refusal, for people."""
        match self.rule:
            case Rule.SEALED:
                return (
                    f"atom {self.atom} is sealed: under this cap nothing but the plan of its "
                    "first study may ever be released of it"
                )
            case Rule.CLOSED:
                return "the rest of this run's plan was given up"
            case Rule.UNIT:
                return f"atom {self.atom} was charged for another unit of privacy"
            case Rule.NON_PRIVATE:
                return f"atom {self.atom} was released without differential privacy"
            case _:
                return f"atom {self.atom} would come to ε = {self.epsilon:.4g}"


@dataclass(frozen=True)
class AtomSpend:
    """What one atom has spent, at one cap. All ε are at the cap's δ, by the rule named.

    Guarantees: `spent` ≤ `held`; `remaining` is 0 where nothing more is admitted.
    """

    atom: str
    rule: Rule | None  # None: nothing was ever released
    spent: float  # ε of what is reserved
    held: float  # ε of that and of what open plans still hold ready
    remaining: float  # ε that other plans may still cost
    order: float | None  # α of the atom's Rényi filter
    releases: int  # reserved requests


class _Block:
    """One study in one run, as one atom sees it."""

    def __init__(self, plan: Counted) -> None:
        self.plan = plan
        self.reserved: Counted = Counter()
        self.extras: Counted = Counter()
        self._unused = Counter(plan)
        self._labels: set[str] = set()

    def covers(self, charge: Charge) -> bool:
        """Whether a charge is part of the plan, and not an extra."""
        return self._covering(charge) is not None

    def add(self, charge: Charge) -> None:
        releases = releases_of([charge.event])
        covering = self._covering(charge)
        self.reserved += releases
        if covering is None:
            self.extras += releases
        else:
            self._unused -= covering
        self._labels.add(charge.label)

    def _covering(self, charge: Charge) -> Counted | None:
        """The planned releases that cover a charge; None if they do not.

        The noisiest that do come first: what is left for others is then the most possible.
        """
        if charge.label in self._labels:
            return None
        covering: Counted = Counter()
        for (rate, noise), steps in releases_of([charge.event]).items():
            missing = steps
            for planned, left in sorted(self._unused.items(), reverse=True):
                if planned[0] == rate and planned[1] <= noise:
                    covering[planned] = min(missing, left)
                    missing -= covering[planned]
            if missing:
                return None
        return covering


class _History:
    """All blocks of one atom, its ancestors' included. `closed_runs` is shared and grows."""

    def __init__(self, charges: Iterable[Charge], closed_runs: set[str]) -> None:
        self._closed_runs = closed_runs
        self._blocks: dict[BlockName, _Block] = {}
        self._first: tuple[Counted, Cap] | None = None
        self._held: Counted = Counter()
        self._releases = 0
        self._non_private = False
        self._unit: str | None = None  # of the first private charge
        for charge in charges:
            self.add(charge)

    def add(self, charge: Charge) -> None:
        self._releases += 1
        if charge.cap is None or not _is_private(charge):
            self._non_private = True
            return
        self._unit = self._unit or charge.unit
        self._held += self._would_add(charge)
        if self._first is None:
            self._first = (self._opening(charge), charge.cap)
        if charge.block not in self._blocks:
            self._blocks[charge.block] = _Block(releases_of(charge.planned))
        self._blocks[charge.block].add(charge)

    def close(self, run: str) -> None:
        """Hold no longer what the run did not reserve. Call once a run."""
        for (name, _), block in self._blocks.items():
            if name == run:
                self._held += block.reserved
                self._held -= block.plan + block.extras

    def verdict(self, atom: str, charge: Charge, cap: Cap) -> Verdict:
        if self._non_private or not _is_private(charge):
            return Verdict(atom, False, Rule.NON_PRIVATE, None)
        if self._unit not in (None, charge.unit):
            return Verdict(atom, False, Rule.UNIT, None)
        if charge.run in self._closed_runs:
            return Verdict(atom, False, Rule.CLOSED, None)
        held = self._held + self._would_add(charge)
        first, day = self._first or (self._opening(charge), cap)
        order = order_for(first, day.epsilon, day.delta)
        may_follow = passes_filter(first, order, cap.epsilon, cap.delta)
        by_filter = renyi_epsilon(renyi_cost(held, order), order, cap.delta)
        if may_follow and passes_filter(held, order, cap.epsilon, cap.delta):
            return Verdict(atom, True, Rule.FILTER, by_filter)
        if self._stays_one_plan(charge):
            by_pld = _pld(held, cap.delta)
            return Verdict(atom, by_pld <= cap.epsilon, Rule.PLAN, by_pld)
        if may_follow:
            return Verdict(atom, False, Rule.FILTER, by_filter)
        return Verdict(atom, False, Rule.SEALED, None)

    def of_study(self, charge: Charge) -> Counted:
        held = self._would_add(charge)
        for (run, digest), block in self._blocks.items():
            if digest == charge.study_digest:
                closed = run in self._closed_runs
                held += block.reserved if closed else block.plan + block.extras
        return held

    def beyond_plan(self, charge: Charge) -> Counted | None:
        block = self._blocks.get(charge.block) or _Block(releases_of(charge.planned))
        if block.covers(charge) and not block.extras:
            return None
        return block.reserved + releases_of([charge.event])

    def spend(self, atom: str, cap: Cap) -> AtomSpend:
        if self._non_private:
            return AtomSpend(atom, Rule.NON_PRIVATE, math.inf, math.inf, 0.0, None, self._releases)
        if self._first is None:
            return AtomSpend(atom, None, 0.0, 0.0, cap.epsilon, None, 0)
        first, day = self._first
        order = order_for(first, day.epsilon, day.delta)
        reserved: Counted = Counter()
        for block in self._blocks.values():
            reserved += block.reserved
        may_follow = passes_filter(first, order, cap.epsilon, cap.delta)
        by_filter = renyi_epsilon(renyi_cost(self._held, order), order, cap.delta)
        remaining = max(0.0, cap.epsilon - by_filter) if may_follow else 0.0
        if len(self._blocks) == 1 and not self._has_extras:
            # What the only plan costs, whether or not others may follow it.
            rule = Rule.PLAN if may_follow else Rule.SEALED
            held = _pld(self._held, cap.delta)
            spent = min(_pld(reserved, cap.delta), held)
        else:
            rule, held = Rule.FILTER, by_filter
            spent = renyi_epsilon(renyi_cost(reserved, order), order, cap.delta)
        return AtomSpend(atom, rule, spent, held, remaining, order, self._releases)

    def _would_add(self, charge: Charge) -> Counted:
        """What the atom would hold more. A block's plan is that of its first charge."""
        block = self._blocks.get(charge.block)
        if block is None and charge.run not in self._closed_runs:
            return self._opening(charge)
        if block is not None and charge.run not in self._closed_runs and block.covers(charge):
            return Counter()
        return releases_of([charge.event])

    def _opening(self, charge: Charge) -> Counted:
        """What a charge holds as the first of its block."""
        plan = releases_of(charge.planned)
        return plan if _Block(plan).covers(charge) else plan + releases_of([charge.event])

    @property
    def _has_extras(self) -> bool:
        return any(block.extras for block in self._blocks.values())

    def _stays_one_plan(self, charge: Charge) -> bool:
        """Whether all of the history, with the charge, is part of one plan."""
        if self._blocks.keys() - {charge.block} or self._has_extras:
            return False
        block = self._blocks.get(charge.block) or _Block(releases_of(charge.planned))
        return block.covers(charge)


class Spend:
    """The spend of every atom of a ledger, kept row by row or rebuilt from its rows.

    `add_atom`, `add` and `close` take rows in the order of the ledger.
    """

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, ...]] = {}
        self._children: dict[str, list[str]] = {}
        self._charges: list[Charge] = []
        self._charged: dict[str, list[int]] = {}  # atom to numbers of charges that name it
        self._closed_runs: set[str] = set()
        self._histories: dict[str, _History] = {}  # built when first asked for

    @classmethod
    def of(cls, ledger: VerifiedLedger) -> Self:
        """The spend that a verified ledger tells of."""
        spend = cls()
        for atom in ledger.atoms:
            spend.add_atom(atom)
        for charge in ledger.charges:
            spend.add(charge)
        for run in ledger.closed_runs:
            spend.close(run)
        return spend

    @property
    def atoms(self) -> tuple[str, ...]:
        """Atoms that were not cut further: every unit is in exactly one of them."""
        return tuple(atom for atom, children in self._children.items() if not children)

    def add_atom(self, atom: Atom) -> None:
        """A new atom. Its parents' units may be elsewhere now: they are asked no more."""
        self._parents[atom.atom] = atom.parents
        self._children[atom.atom] = []
        for parent in atom.parents:
            self._children[parent].append(atom.atom)
            self._histories.pop(parent, None)

    def add(self, charge: Charge) -> None:
        """A reserve: what it touches has spent it for ever."""
        for atom in self.touched(charge):
            if atom in self._histories:
                self._histories[atom].add(charge)
        for atom in charge.atoms:
            self._charged.setdefault(atom, []).append(len(self._charges))
        self._charges.append(charge)

    def close(self, run: str) -> None:
        """The rest of a run's plan is given up."""
        if run not in self._closed_runs:
            self._closed_runs.add(run)
            for history in self._histories.values():
                history.close(run)

    def touched(self, charge: Charge) -> tuple[str, ...]:
        """The uncut atoms that a charge touches: those named, or what became of them.

        Raises:
            LedgerError: it names an atom that the ledger does not know.
        """
        found: dict[str, None] = {}
        waiting = list(charge.atoms)
        while waiting:
            atom = waiting.pop()
            if atom not in self._children:
                raise LedgerError(
                    "a charge names an atom that the ledger does not know",
                    why="its data was never bound to this ledger",
                    fix="bind the data set to the ledger before it is charged",
                )
            if self._children[atom]:
                waiting += self._children[atom]
            else:
                found[atom] = None
        return tuple(sorted(found, key=_number))

    def verdicts(self, charge: Charge) -> tuple[Verdict, ...]:
        """Whether each atom that `charge` touches admits it under `charge.cap`.

        Guarantees: depends on the ledger and the charge alone; changes nothing.

        Raises:
            LedgerError: it names an atom that the ledger does not know.
        """
        return tuple(
            Verdict(atom, False, Rule.NON_PRIVATE, None)
            if charge.cap is None
            else self._history(atom).verdict(atom, charge, charge.cap)
            for atom in self.touched(charge)
        )

    def of_study(self, charge: Charge) -> tuple[Releases, ...]:
        """What each atom would hold of a private charge's study, in all its runs, with it."""
        return tuple(self._history(atom).of_study(charge) for atom in self.touched(charge))

    def beyond_plan(self, charge: Charge) -> tuple[Releases, ...]:
        """What each atom would have paid to a private charge's run, where that has extras.

        Nothing for an atom to which the run's plan covers all that the run is charged.
        """
        found = (self._history(atom).beyond_plan(charge) for atom in self.touched(charge))
        return tuple(releases for releases in found if releases is not None)

    def of_atom(self, atom: str, cap: Cap) -> AtomSpend:
        """What one atom has spent and may still spend under `cap`."""
        return self._history(atom).spend(atom, cap)

    def _history(self, atom: str) -> _History:
        if atom not in self._histories:
            numbers: set[int] = set()
            for name in self._lineage(atom):
                numbers.update(self._charged.get(name, ()))
            charges = (self._charges[number] for number in sorted(numbers))
            self._histories[atom] = _History(charges, self._closed_runs)
        return self._histories[atom]

    def _lineage(self, atom: str) -> set[str]:
        """The atom and all that it was cut from."""
        found: set[str] = set()
        waiting = [atom]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self._parents[name]
        return found


def _is_private(charge: Charge) -> bool:
    return not any(
        isinstance(event, NonPrivateRelease) for event in (charge.event, *charge.planned)
    )


def _pld(releases: Releases, delta: float) -> float:
    return epsilon(events_of(releases), delta, interval=REPORT_INTERVAL)


def _number(atom: str) -> tuple[int, str]:
    """'a2' before 'a10'."""
    return len(atom), atom
