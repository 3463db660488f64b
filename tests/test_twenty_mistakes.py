"""The twenty mistakes of docs/privacy.md 9: which test catches each, shown on which fault.

An index, and the tests that keep it true: whatever it names exists, and every fault is used.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LATER = "secure aggregation, a later issue"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """`file::name` of tests and of the faults that they were shown to fail on."""

    what: str
    caught_by: tuple[str, ...] = ()
    shown_on: tuple[str, ...] = ()
    later: str | None = None


PLANTED = "simulations/test_planted_faults.py::test_a_planted_fault_is_caught"
SITE = "client/test_planted_site_faults.py::test_a_planted_fault_is_caught"

MISTAKES = {
    1: Mistake(
        what="accounting after the release",
        caught_by=(
            "client/test_ledger.py::test_mistake_1_after_200_kills_every_release_has_a_reserve",
            "client/test_ledger.py"
            "::test_mistake_1_a_ledger_that_is_charged_after_the_release_is_caught",
            "client/test_site.py::test_training_pays_then_reads_then_stores_then_commits",
            SITE,
        ),
        shown_on=("client/test_ledger.py::FAULTY", "faults/site.py::PaysAfterwards"),
    ),
    2: Mistake(
        what="refund on failure",
        caught_by=(
            "client/test_ledger.py::test_mistake_2_a_failure_leaves_spend_unchanged",
            "client/test_ledger.py::test_mistake_2_a_ledger_that_refunds_failures_is_caught",
            "client/test_site.py::test_a_failure_is_not_refunded_and_not_repeated",
        ),
        shown_on=("client/test_ledger.py::RefundingLedger",),
    ),
    3: Mistake(
        what="unnoised loss or count",
        caught_by=(
            "client/test_client_app.py"
            "::test_replies_hold_the_fields_of_the_allow_list_and_no_others",
            "client/test_client_app.py::test_a_record_that_was_not_sampled_changes_no_byte_of_a_reply",
            SITE,
        ),
        shown_on=("faults/site.py::TellsItsLoss", "faults/site.py::DescribesItsCount"),
    ),
    4: Mistake(
        what="batch-coupled loss",
        caught_by=(
            "common/privacy/separability/test_rows.py"
            "::test_mistake_4_a_batch_coupled_objective_is_refused_under_record_privacy",
            "client/test_gate_on_production_path.py"
            "::test_an_objective_that_couples_records_is_refused_by_the_clause_that_it_breaks",
            PLANTED,
        ),
        shown_on=(
            "faults/couplings.py::InfoNCE",
            "faults/catalogue.py::by_row",
        ),
    ),
    5: Mistake(
        what="a NaN record",
        caught_by=(
            "common/privacy/test_clipping.py"
            "::test_mistake_5_a_row_that_is_not_finite_contributes_exactly_zero",
            "common/privacy/test_noise.py::test_mistake_5_a_sum_that_is_not_finite_is_never_released",
            PLANTED,
        ),
        shown_on=("faults/clipping.py::NaNIsKept",),
    ),
    6: Mistake(
        what="clipping the mean or a microbatch",
        caught_by=(
            "common/privacy/test_clipping.py::test_mistake_6_influence_is_at_most_the_clip_norm",
            "client/test_dp_sgd.py::test_one_record_changes_the_sum_by_at_most_the_clip_norm",
            PLANTED,
        ),
        shown_on=("faults/clipping.py::ClipTheMean", "faults/clipping.py::ClipMicrobatches"),
    ),
    7: Mistake(
        what="wrong adjacency",
        caught_by=(
            "common/privacy/test_accounting.py"
            "::test_mistake_7_adjacency_moves_the_golden_figure_from_zero_out_to_replace_one",
            "simulations/test_planted_faults.py"
            "::test_mistake_7_a_wrong_adjacency_misses_the_golden_figure",
        ),
        shown_on=("faults/accounting.py::renyi_that_ignores_the_adjacency",),
    ),
    8: Mistake(
        what="shuffling with Poisson accounting",
        caught_by=(
            "common/privacy/test_noise.py"
            "::test_mistake_8_poisson_sample_sizes_have_the_binomial_mean_and_variance",
            PLANTED,
        ),
        shown_on=("faults/noise.py::FixedSizeBatches",),
    ),
    9: Mistake(
        what="q, B or δ from the private N",
        caught_by=(
            "common/privacy/test_plan.py"
            "::test_mistake_9_the_schedule_is_the_same_for_n_and_n_plus_1_records",
            "client/test_site_disclosure.py"
            "::test_plans_descriptions_and_sizes_do_not_follow_from_the_number_of_records",
            PLANTED,
        ),
        shown_on=("faults/steps.py::DividesByThePrivateCount",),
    ),
    10: Mistake(
        # A mean of updates that are private already may be weighted by public constants. A
        # mean that is noised as a mean may not: those modes come with secure aggregation.
        what="weighted mean under DP",
        caught_by=(
            "server/test_cohort.py::test_weights_are_one_or_the_declared_constant",
            SITE,
        ),
        shown_on=("faults/site.py::DescribesItsCount",),
    ),
    11: Mistake(
        what="accumulation mis-stepped",
        caught_by=(
            "client/test_site.py::test_as_many_steps_are_noised_as_the_ledger_says",
            "common/privacy/test_plan.py"
            "::test_mistake_11_the_events_of_all_rounds_hold_every_local_step_once",
            PLANTED,
        ),
        shown_on=("faults/noise.py::NoiseEverySecondStep",),
    ),
    12: Mistake(
        what="parameters outside clipping",
        caught_by=(
            "client/test_dp_sgd.py"
            "::test_the_sum_without_clipping_is_the_total_gradient_of_every_parameter",
            "client/test_gate_on_production_path.py"
            "::test_an_objective_that_couples_records_is_refused_by_the_clause_that_it_breaks",
            PLANTED,
        ),
        shown_on=(
            "faults/clipping.py::LastTensorIsNotClipped",
            "faults/couplings.py::FunctionalUse",
        ),
    ),
    13: Mistake(
        what="one key for every tensor, or after a fork",
        caught_by=(
            "common/privacy/test_noise.py::test_mistake_13_tensors_of_one_source_do_not_share_noise",
            "common/privacy/test_noise.py"
            "::test_mistake_13_a_forked_child_does_not_repeat_its_parents_or_siblings_noise",
            PLANTED,
        ),
        shown_on=("faults/noise.py::OneKeyForEveryTensor", "faults/noise.py::KeyKeptAfterFork"),
    ),
    14: Mistake(
        what="seeded noise",
        caught_by=(
            "common/privacy/test_noise.py::test_mistake_14_the_same_seed_gives_different_noise",
            "client/test_site_disclosure.py::test_no_seed_controls_the_noise_of_an_update",
            PLANTED,
        ),
        shown_on=("faults/noise.py::NoiseFromTheSeededGenerator",),
    ),
    15: Mistake(what="noise share σ²/n and dropouts", later=LATER),
    16: Mistake(what="discrete Gaussian taken as closed", later=LATER),
    17: Mistake(
        what="rounding inflation ignored",  # of the lattice; that of shares comes later
        caught_by=(
            "common/privacy/test_noise.py::test_rounding_at_ties_adds_what_the_sensitivity_allows_for",
            "simulations/test_planted_faults.py"
            "::test_mistake_17_a_sensitivity_without_rounding_is_caught",
        ),
        shown_on=("faults/mechanism.py::RoundingIsFree",),
    ),
    18: Mistake(what="mask reuse on retry", later=LATER),
    19: Mistake(what="both shares of one site", later=LATER),
    20: Mistake(
        what="probe, tuning and audit runs uncharged",
        caught_by=(
            "common/privacy/test_plan.py::test_mistake_20_probes_are_paid_for_with_more_training_noise",
            "client/test_site.py::test_the_budget_of_a_site_counts_every_study_and_run",
            "simulations/test_audit.py"
            "::test_mistake_20_an_audit_is_charged_before_a_record_is_read",
            "simulations/test_audit.py::test_mistake_20_an_audit_for_free_is_caught",
            SITE,
        ),
        shown_on=("faults/site.py::ProbesForFree", "faults/site.py::audits_for_free"),
    ),
}


@cache
def defined_in(file: str) -> frozenset[str]:
    """Functions, classes and constants at the top of a file under tests/."""
    names = set()
    for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(names)


@cache
def used_in_tests() -> frozenset[str]:
    """Every name and attribute that a test file, or a fault's file, reads."""
    names = set()
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
    return frozenset(names)


def test_there_are_twenty() -> None:
    assert list(MISTAKES) == list(range(1, 21))


@pytest.mark.parametrize("number", MISTAKES)
def test_a_mistake_has_a_test_that_exists_and_a_fault_that_it_failed_on(number: int) -> None:
    mistake = MISTAKES[number]
    if mistake.later is not None:
        assert number in {15, 16, 18, 19}
        assert not mistake.caught_by
        return
    assert mistake.caught_by
    assert mistake.shown_on
    for reference in (*mistake.caught_by, *mistake.shown_on):
        file, _, name = reference.partition("::")
        assert name in defined_in(file), reference
    for reference in mistake.caught_by:
        assert reference.partition("::")[2].startswith("test_")
    for reference in mistake.shown_on:
        assert reference.partition("::")[2] in used_in_tests(), reference


def test_every_planted_fault_belongs_to_a_mistake_or_to_the_audits_table() -> None:
    indexed = {r.partition("::")[2] for m in MISTAKES.values() for r in m.shown_on}
    for file in ("noise", "clipping", "couplings", "steps", "site", "mechanism", "accounting"):
        for name in defined_in(f"faults/{file}.py"):
            assert name in indexed | used_in_tests()


def test_the_index_notices_what_is_not_there() -> None:
    assert "test_of_nothing" not in defined_in("client/test_site.py")
    assert "FaultOfNobody" not in used_in_tests()
