"""Spend: which charges an atom admits, and that what it admits stays within the cap."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit_common.errors import LedgerError
from tacit_common.ledger_chain import Atom, Cap, Charge
from tacit_common.privacy.accounting import REPORT_INTERVAL, epsilon
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.filter import order_for, releases_of, renyi_cost, renyi_epsilon
from tacit_common.privacy.spend import Rule, Spend, Verdict

DELTA = 1e-5
numbers = itertools.count()


def steps(q: float, sigma: float, count: int) -> PoissonGaussianSteps:
    return PoissonGaussianSteps(sampling_rate=q, noise_multiplier=sigma, steps=count)


def release(sigma: float) -> GaussianRelease:
    return GaussianRelease(noise_multiplier=sigma)


ROUND = steps(0.1, 1.2, 10)
PLAN = (steps(0.1, 1.2, 30), release(5.0))  # three rounds and a probe


def charge(
    event: PrivacyEvent,
    planned: tuple[PrivacyEvent, ...] = PLAN,
    *,
    run: str = "run",
    label: str = "",
    cap: float | None = 8.0,
    delta: float = DELTA,
    atoms: tuple[str, ...] = ("a0",),
) -> Charge:
    number = next(numbers)
    return Charge(
        key=f"k{number}",
        run=run,
        study="study",
        study_digest="d" * 64,
        action="train",
        label=label or f"round {number}",
        unit="record",
        event=event,
        planned=planned,
        atoms=atoms,
        cap=None if cap is None else Cap(epsilon=cap, delta=delta),
    )


def atom(name: str, *parents: str) -> Atom:
    return Atom(atom=name, lineage="scans", parents=parents, tags_sha256="0" * 64)


def spend_of(*charges: Charge) -> Spend:
    spend = Spend()
    spend.add_atom(atom("a0"))
    for one in charges:
        spend.add(one)
    return spend


def verdict(spend: Spend, one: Charge) -> Verdict:
    (found,) = spend.verdicts(one)
    return found


def pld(*events: PrivacyEvent, delta: float = DELTA) -> float:
    return epsilon(events, delta, interval=REPORT_INTERVAL)


# --- one plan ----------------------------------------------------------------------------


def test_a_plan_that_exactly_fits_by_pld_is_admitted_whole_and_nothing_beyond_it() -> None:
    cap = pld(*PLAN)
    spend = spend_of()
    for event in (ROUND, release(5.0), ROUND, ROUND):
        one = charge(event, cap=cap)
        assert verdict(spend, one).admitted
        spend.add(one)
    assert verdict(spend, one).rule is Rule.SEALED  # the plan is used up
    assert not verdict(spend, one).admitted
    assert spend.of_atom("a0", Cap(epsilon=cap, delta=DELTA)).spent == pytest.approx(cap)


def test_a_plan_is_judged_whole_before_its_first_release() -> None:
    cap = math.nextafter(pld(*PLAN), 0)
    assert pld(ROUND) < cap  # the first round alone would fit
    refused = verdict(spend_of(), charge(ROUND, cap=cap))
    assert (refused.admitted, refused.rule, refused.epsilon) == (False, Rule.PLAN, pld(*PLAN))


def test_a_sealed_atom_admits_nothing_but_its_plan() -> None:
    cap = pld(*PLAN)
    spend = spend_of(charge(ROUND, cap=cap, run="first"))
    for other in (
        charge(ROUND, cap=cap, run="second"),
        charge(release(1e4), (release(1e4),), cap=cap, run="second"),  # costs next to nothing
        charge(release(1e4), cap=cap, run="first"),  # covered: more noise than planned
        charge(release(4.9), cap=cap, run="first"),  # less noise than planned: not covered
        charge(steps(0.1, 1.2, 31), cap=cap, run="first"),
        charge(steps(0.11, 1.2, 1), cap=cap, run="first"),
    ):
        allowed = other.run == "first" and other.event == release(1e4)
        assert verdict(spend, other).admitted is allowed
        assert (verdict(spend, other).rule is Rule.SEALED) is not allowed


def test_a_sealed_atom_stays_sealed_when_its_run_is_closed() -> None:
    # Most of the plan was never released; but that was known only after seeing outputs.
    cap = pld(*PLAN)
    spend = spend_of(charge(ROUND, cap=cap, run="first"))
    spend.close("first")
    other = verdict(spend, charge(release(1e4), (release(1e4),), cap=cap, run="second"))
    assert (other.admitted, other.rule) == (False, Rule.SEALED)
    assert verdict(spend, charge(ROUND, cap=cap, run="first")).rule is Rule.CLOSED
    assert spend.of_atom("a0", Cap(epsilon=cap, delta=DELTA)).remaining == 0.0


def test_a_label_that_comes_twice_is_an_extra_and_not_a_part_of_the_plan() -> None:
    cap = pld(*PLAN)
    spend = spend_of(charge(ROUND, cap=cap, label="round 1"))
    assert not verdict(spend, charge(ROUND, cap=cap, label="round 1")).admitted
    assert verdict(spend, charge(ROUND, cap=cap, label="round 2")).admitted


def test_steps_of_a_plan_may_be_split_over_rounds_as_one_likes() -> None:
    cap = pld(*PLAN)
    spend = spend_of()
    for count in (1, 20, 9):
        one = charge(steps(0.1, 1.2, count), cap=cap)
        assert verdict(spend, one).admitted
        spend.add(one)
    assert not verdict(spend, charge(steps(0.1, 1.2, 1), cap=cap)).admitted


def test_a_plan_is_that_of_the_first_charge_whatever_later_ones_claim() -> None:
    cap = pld(*PLAN)
    spend = spend_of(*(charge(ROUND, cap=cap) for _ in range(3)))
    claim = charge(ROUND, (steps(0.1, 1.2, 1000), release(5.0)), cap=cap)
    assert not verdict(spend, claim).admitted


# --- the filter --------------------------------------------------------------------------


def test_a_second_plan_is_admitted_while_the_renyi_costs_fit() -> None:
    cap = Cap(epsilon=8.0, delta=DELTA)
    order = order_for(releases_of(PLAN), cap.epsilon, cap.delta)
    spend = spend_of()
    admitted = 0
    while True:
        one = charge(ROUND, run=f"run {admitted}")
        found = verdict(spend, one)
        figure = renyi_epsilon((admitted + 1) * renyi_cost(releases_of(PLAN), order), order, DELTA)
        assert found.epsilon == pytest.approx(figure)
        assert found.admitted == (figure <= cap.epsilon)
        if not found.admitted:
            break
        spend.add(one)
        admitted += 1
    assert admitted >= 2
    assert found.rule is Rule.FILTER
    assert pld(*PLAN * admitted) < 8.0


def test_an_open_plan_is_held_ready_and_a_closed_one_costs_what_it_reserved() -> None:
    cap = Cap(epsilon=8.0, delta=DELTA)
    spend = spend_of(charge(ROUND, run="first"))
    held = spend.of_atom("a0", cap)
    assert held.spent == pld(ROUND)
    assert held.held == pld(*PLAN)
    assert 0 < held.remaining < 8.0 - held.held  # the filter's figure is larger than PLD's
    spend.close("first")
    closed = spend.of_atom("a0", cap)
    assert closed.spent == closed.held == pld(ROUND)
    assert closed.remaining > held.remaining
    spend.close("first")  # again: nothing changes
    assert spend.of_atom("a0", cap) == closed


def test_a_started_study_can_finish_although_others_came_after_it() -> None:
    spend = spend_of(charge(ROUND, run="first", label="round 1"))
    for number in itertools.count():
        other = charge(ROUND, run=f"other {number}")
        if not verdict(spend, other).admitted:
            break
        spend.add(other)
    assert number >= 1
    for event in (ROUND, ROUND, release(5.0)):
        one = charge(event, run="first")
        assert verdict(spend, one).admitted
        spend.add(one)


def test_extras_are_paid_for_beside_the_plan() -> None:
    cap = Cap(epsilon=8.0, delta=DELTA)
    order = order_for(releases_of(PLAN), cap.epsilon, cap.delta)
    spend = spend_of(charge(ROUND, label="round 1"), charge(ROUND, label="round 1"))
    held = spend.of_atom("a0", cap)
    assert held.rule is Rule.FILTER
    figure = renyi_epsilon(renyi_cost(releases_of([*PLAN, ROUND]), order), order, DELTA)
    assert held.held == pytest.approx(figure)


def test_the_order_is_that_of_the_first_charge_under_the_cap_of_its_day() -> None:
    first = charge(ROUND, cap=8.0)
    spend = spend_of(first, charge(release(20.0), (release(20.0),), run="b", cap=2.0))
    order = order_for(releases_of(PLAN), 8.0, DELTA)
    assert order != order_for(releases_of(PLAN), 2.0, DELTA)
    for cap in (2.0, 8.0, 30.0):
        assert spend.of_atom("a0", Cap(epsilon=cap, delta=1e-6)).order == order


def test_the_cap_that_counts_is_the_one_of_today() -> None:
    spend = spend_of(charge(ROUND, cap=8.0))
    assert verdict(spend, charge(ROUND, cap=8.0)).admitted
    assert not verdict(spend, charge(ROUND, cap=1.0)).admitted
    second = charge(ROUND, run="second", cap=3.0)
    assert not verdict(spend, second).admitted
    assert verdict(spend, charge(ROUND, run="second", cap=20.0)).admitted
    assert verdict(spend, charge(ROUND, cap=8.0, delta=1e-3)).admitted
    assert not verdict(spend, charge(ROUND, cap=3.0, delta=1e-12)).admitted


# --- without privacy ---------------------------------------------------------------------


def test_after_a_release_without_privacy_nothing_private_is_admitted() -> None:
    spend = spend_of(charge(NonPrivateRelease(), (NonPrivateRelease(),), cap=None))
    found = verdict(spend, charge(release(1e4), (release(1e4),), cap=1e6))
    assert (found.admitted, found.rule) == (False, Rule.NON_PRIVATE)
    figures = spend.of_atom("a0", Cap(epsilon=1.0, delta=DELTA))
    assert (figures.spent, figures.held, figures.remaining) == (math.inf, math.inf, 0.0)


def test_a_plan_that_will_release_without_privacy_is_not_admitted() -> None:
    planned = (release(5.0), NonPrivateRelease())
    assert not verdict(spend_of(), charge(release(5.0), planned)).admitted


def test_a_charge_without_a_cap_is_never_admitted_and_poisons_what_follows() -> None:
    assert not verdict(spend_of(), charge(release(5.0), cap=None)).admitted
    assert not verdict(spend_of(charge(release(5.0), cap=None)), charge(release(5.0))).admitted


# --- atoms -------------------------------------------------------------------------------


def test_an_atom_without_a_history_has_spent_nothing() -> None:
    found = spend_of().of_atom("a0", Cap(epsilon=2.0, delta=DELTA))
    assert (found.rule, found.spent, found.held, found.remaining) == (None, 0.0, 0.0, 2.0)


def test_children_inherit_what_their_parent_was_charged_and_no_more() -> None:
    cap = Cap(epsilon=8.0, delta=DELTA)
    spend = spend_of(charge(ROUND))
    before = spend.of_atom("a0", cap)
    spend.add_atom(atom("a1", "a0"))
    spend.add_atom(atom("a2", "a0"))
    assert spend.atoms == ("a1", "a2")
    for child in spend.atoms:
        inherited = spend.of_atom(child, cap)
        assert (inherited.spent, inherited.held) == (before.spent, before.held)
    spend.add(charge(ROUND, run="second", atoms=("a1",)))
    assert spend.of_atom("a1", cap).releases == 2
    assert spend.of_atom("a2", cap).releases == 1


def test_a_charge_that_names_an_atom_that_was_cut_charges_all_that_became_of_it() -> None:
    cap = Cap(epsilon=8.0, delta=DELTA)
    spend = spend_of()
    for child in ("a1", "a2"):
        spend.add_atom(atom(child, "a0"))
    assert spend.touched(charge(ROUND)) == ("a1", "a2")
    assert spend.of_atom("a1", cap).releases == 0  # built before the charge, and kept up
    spend.add(charge(ROUND))
    assert [spend.of_atom(child, cap).releases for child in ("a1", "a2")] == [1, 1]


def test_units_of_two_atoms_inherit_both_histories_each_charge_once() -> None:
    cap = Cap(epsilon=30.0, delta=DELTA)
    spend = Spend()
    spend.add_atom(atom("a0"))
    spend.add_atom(atom("a1"))
    spend.add(charge(ROUND, run="a"))
    spend.add(charge(ROUND, run="b", atoms=("a1",)))
    spend.add(charge(ROUND, run="both", atoms=("a0", "a1")))
    spend.add_atom(atom("a2", "a0", "a1"))
    assert spend.of_atom("a2", cap).releases == 3


def test_a_charge_is_admitted_by_every_atom_that_it_touches_or_refused() -> None:
    spend = spend_of(charge(ROUND, cap=pld(*PLAN)))
    spend.add_atom(atom("a1"))
    one = charge(ROUND, run="second", cap=pld(*PLAN), atoms=("a0", "a1"))
    assert [found.admitted for found in spend.verdicts(one)] == [False, True]


def test_an_atom_that_is_not_known_is_an_error_and_never_empty() -> None:
    with pytest.raises(LedgerError, match="does not know"):
        spend_of().verdicts(charge(ROUND, atoms=("a0", "a9")))


# --- the guarantee -----------------------------------------------------------------------

events = st.one_of(
    st.builds(steps, st.sampled_from([0.05, 0.2]), st.sampled_from([0.8, 3.0]), st.integers(1, 20)),
    st.builds(release, st.sampled_from([1.0, 5.0, 40.0])),
)
requests = st.lists(
    st.tuples(
        st.integers(0, 3),  # the run that asks
        events,
        st.lists(events, max_size=2),  # what else it plans, if this is its first
        st.booleans(),  # as its plan has it, or as it likes
        st.booleans(),  # then close the run
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12)
@given(requests=requests, cap=st.sampled_from([0.5, 2.0, 6.0]))
def test_whatever_is_asked_what_was_admitted_stays_within_the_cap(
    requests: list[tuple[int, PrivacyEvent, list[PrivacyEvent], bool, bool]], cap: float
) -> None:
    spend = spend_of()
    plans: dict[str, tuple[PrivacyEvent, ...]] = {}
    admitted: list[Charge] = []
    for number, event, more, as_planned, close in requests:
        run = f"run {number}"
        planned = plans.get(run, (event, *more))
        asked = planned[len(admitted) % len(planned)] if as_planned else event
        one = charge(asked, planned, run=run, cap=cap)
        if verdict(spend, one).admitted:
            plans[run] = planned
            spend.add(one)
            admitted.append(one)
            if close:
                spend.close(run)
    assert pld(*(one.event for one in admitted)) <= cap
    figures = spend.of_atom("a0", Cap(epsilon=cap, delta=DELTA))
    assert figures.spent <= figures.held <= cap * (1 + 1e-12)
    # Once the cap is lowered to nothing, nothing more is admitted.
    assert not verdict(spend, charge(release(1e3), (release(1e3),), run="x", cap=1e-9)).admitted


@settings(max_examples=10)
@given(requests=requests)
def test_spend_kept_row_by_row_is_spend_rebuilt_from_all_rows(
    requests: list[tuple[int, PrivacyEvent, list[PrivacyEvent], bool, bool]],
) -> None:
    cap = Cap(epsilon=20.0, delta=DELTA)
    kept = spend_of()
    kept.of_atom("a0", cap)  # its history exists from the start
    charges: list[Charge] = []
    closed: list[str] = []
    for number, event, more, _, close in requests:
        run = f"run {number}"
        if run in closed:
            continue
        one = charge(event, (event, *more), run=run, cap=20.0)
        kept.add(one)
        charges.append(one)
        if close:
            kept.close(run)
            closed.append(run)
    rebuilt = spend_of(*charges)
    for run in reversed(closed):
        rebuilt.close(run)
    assert rebuilt.of_atom("a0", cap) == kept.of_atom("a0", cap)
    probe = charge(ROUND, run="new", cap=20.0)
    assert rebuilt.verdicts(probe) == kept.verdicts(probe)
