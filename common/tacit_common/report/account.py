"""What a site's ledger says of one run: the part of a site's report that its rows decide."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from tacit_common.errors import PrivacyConfigError
from tacit_common.ledger_chain import Charge, SignedHead, VerifiedLedger
from tacit_common.privacy.accounting import PLANNING_INTERVAL
from tacit_common.privacy.events import NonPrivateRelease, PrivacyEvent
from tacit_common.privacy.spend import AtomSpend, Rule, Spend
from tacit_common.report.parts import Count, Epsilon, Part, Text
from tacit_common.report.recompute import Composition, grouped


class SiteAccount(Part):
    """One site's figures of one run, for a report. The fields are named as in `SiteReport`.

    `spent` and all ε are of the atom that was charged most, among those that this run
    touched (among all, if it touched none). The ε are None without δ.

    Guarantees: it follows from the rows of the ledger, which hold no record, no tag and no
    count of records. What the rows depend on besides requests and policy is which atoms a
    site's data sets share, and whether paid work failed (docs/privacy.md 8).
    """

    atoms: tuple[Text, ...]
    spent: tuple[PrivacyEvent, ...]
    composition: Literal["plan", "filter"] | None
    renyi_order: float | None = Field(gt=1)
    epsilon_after_round: tuple[Epsilon, ...] | None
    epsilon_run: Epsilon | None
    epsilon_total: Epsilon | None
    epsilon_cap: float | None = Field(gt=0)
    reserves: Count
    never_committed: Count
    releases: Count
    ledger: SignedHead


def site_account(
    ledger: VerifiedLedger, *, run: str, rounds_done: int, delta: float | None
) -> SiteAccount:
    """The account of `run` in a verified ledger, at `delta` (None without privacy).

    `epsilon_cap` is that of the newest charge of the run (or else of the newest of all), and
    None where that cap is for a larger δ and so bounds nothing at this one. `reserves` and
    `never_committed` are of all runs, `releases` of this one.

    Raises:
        PrivacyConfigError: there is a δ, and something was released without privacy, so that
            no ε is finite.
    """
    own = [charge for charge in ledger.charges if charge.run == run]
    spend = Spend.of(ledger)
    touched = {atom for charge in own for atom in spend.touched(charge)}
    atoms = tuple(atom for atom in spend.atoms if atom in touched)
    totals = [_total(ledger, spend, atom, delta) for atom in atoms or spend.atoms]
    # Of equal totals the first: max keeps it.
    most = max(totals, key=lambda total: total.epsilon or 0.0, default=_of_charges((), None, delta))
    if most.epsilon is not None and not math.isfinite(most.epsilon):
        raise PrivacyConfigError(
            "a site has no finite ε",
            why="data that the run touched was also released without differential privacy",
            fix="report a private study of data that was never released so",
        )
    composition = most.composition
    return SiteAccount(
        atoms=atoms,
        spent=grouped(charge.event for charge in most.charges),
        composition=None if composition is None else composition.rule,
        renyi_order=None if composition is None else composition.order,
        epsilon_after_round=_after_rounds(most, run, rounds_done, delta),
        epsilon_run=_of_run(most, run, delta),
        epsilon_total=most.epsilon,
        epsilon_cap=_cap(own or ledger.charges, delta),
        reserves=len(ledger.charges),
        never_committed=sum(not may_have_left(ledger, charge) for charge in ledger.charges),
        releases=sum(may_have_left(ledger, charge) for charge in own),
        ledger=ledger.head,
    )


def may_have_left(ledger: VerifiedLedger, charge: Charge) -> bool:
    """Whether the answer to a charge may have left the site.

    Without privacy an answer may leave as soon as it is paid for, so only a failure that was
    noted kept it back.
    """
    if isinstance(charge.event, NonPrivateRelease):
        return charge.key not in ledger.voided
    return charge.key in ledger.committed


@dataclass(frozen=True)
class _Total:
    """Everything that one atom was ever charged."""

    charges: tuple[Charge, ...]
    composition: Composition | None
    epsilon: float | None


def _total(ledger: VerifiedLedger, spend: Spend, atom: str, delta: float | None) -> _Total:
    charges = tuple(charge for charge in ledger.charges if atom in spend.touched(charge))
    caps = [charge.cap for charge in charges if charge.cap is not None]
    return _of_charges(charges, spend.of_atom(atom, caps[-1]) if caps else None, delta)


def _of_charges(
    charges: tuple[Charge, ...], account: AtomSpend | None, delta: float | None
) -> _Total:
    if delta is None:
        return _Total(charges, None, None)
    if account is not None and account.rule is Rule.FILTER:
        composition = Composition("filter", account.order)
    else:
        composition = Composition("plan")
    events = [charge.event for charge in charges]
    return _Total(charges, composition, composition.epsilon(events, delta))


def _after_rounds(
    total: _Total, run: str, rounds_done: int, delta: float | None
) -> tuple[float, ...] | None:
    if delta is None or total.composition is None or total.epsilon is None:
        return None
    figures: list[float] = []
    charged = 0
    for number in range(1, rounds_done + 1):
        events = _until(total.charges, run, number)
        if figures and len(events) == charged:  # a round that was not charged costs nothing
            figures.append(figures[-1])
            continue
        charged = len(events)
        # The quick grid overstates a little, and a part cannot cost more than the whole.
        figure = total.composition.epsilon(events, delta, interval=PLANNING_INTERVAL)
        figures.append(min(figure, total.epsilon))
    return tuple(figures)


def _until(charges: Sequence[Charge], run: str, round_number: int) -> list[PrivacyEvent]:
    """What was reserved before the round after this one."""
    events: list[PrivacyEvent] = []
    for charge in charges:
        if charge.run == run and _comes_after(charge, round_number):
            break
        events.append(charge.event)
    return events


def _comes_after(charge: Charge, round_number: int) -> bool:
    """Whether a charge of the run is for something later than this round."""
    words = charge.label.split()
    if charge.action == "train":
        return int(words[-1]) > round_number
    return words[-1] == "after"


def _of_run(total: _Total, run: str, delta: float | None) -> float | None:
    if delta is None or total.composition is None or total.epsilon is None:
        return None
    # One run is one plan, fixed before its first release, so PLD bounds it by itself.
    events = [charge.event for charge in total.charges if charge.run == run]
    return min(Composition("plan").epsilon(events, delta), total.epsilon)


def _cap(charges: Sequence[Charge], delta: float | None) -> float | None:
    newest = charges[-1].cap if charges else None
    if newest is None or delta is None or newest.delta > delta:
        return None
    return newest.epsilon
