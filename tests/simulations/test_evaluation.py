"""The evaluation of a rehearsal: right figures, paired verdicts, and its own disclaimer."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.datasets import load_digits

from tacit_common.errors import DataError
from tacit_simulations.evaluation import (
    DRAWS,
    Comparison,
    Difference,
    EvaluationTable,
    FeatureSet,
    Measure,
    Verdict,
    evaluate,
    mean_over_draws,
    paired_difference,
)

TESTED = 250
TRAIN, TEST = slice(0, 400), slice(400, 400 + TESTED)


@pytest.fixture(scope="module")
def table() -> EvaluationTable:
    """Digits as pixels against the same digits under noise, and against nothing at all."""
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    noisy = pixels + 12 * rng.normal(size=pixels.shape)
    nothing = rng.normal(size=(len(pixels), 16))
    sets = [
        FeatureSet(name, features[TRAIN], features[TEST])
        for name, features in (("nothing", nothing), ("noisy", noisy), ("pixels", pixels))
    ]
    return evaluate(sets, labels[TRAIN], labels[TEST], labels_per_class=5, seed=0)


def test_better_features_have_higher_accuracy_in_every_column(table: EvaluationTable) -> None:
    for measure in Measure:
        nothing, noisy, pixels = (row.accuracy[measure] for row in table.rows)
        assert nothing.high < noisy.low
        assert noisy.high < pixels.low
        assert nothing.low < 0.1 < nothing.high + 0.02


def test_neighbours_are_those_of_the_cosine(table: EvaluationTable) -> None:
    pixels, labels = load_digits(return_X_y=True)
    unit = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    nearest = np.argsort(-unit[TEST] @ unit[TRAIN].T, axis=1)[:, :5]
    votes = np.stack([np.bincount(labels[TRAIN][n], minlength=10) for n in nearest])
    correct = (votes.argmax(axis=1) == labels[TEST]).sum()
    interval = table.rows[-1].accuracy[Measure.KNN]
    assert interval.value == pytest.approx(
        correct / TESTED, abs=1 / TESTED
    )  # ties may fall otherwise
    assert "Wilson" in interval.method


def test_the_last_features_are_compared_with_each_before_them(table: EvaluationTable) -> None:
    pairs = [(c.features, c.baseline, c.measure) for c in table.comparisons]
    assert pairs == [("pixels", b, m) for b in ("nothing", "noisy") for m in Measure]
    assert {c.verdict for c in table.comparisons} == {Verdict.BETTER}
    for comparison in table.comparisons:
        rows = {row.features: row.accuracy[comparison.measure].value for row in table.rows}
        gain = rows["pixels"] - rows[comparison.baseline]
        assert comparison.difference.value == pytest.approx(gain)


def test_equal_features_show_no_difference() -> None:
    pixels, labels = load_digits(return_X_y=True)
    same = [FeatureSet(name, pixels[TRAIN], pixels[TEST]) for name in ("warm start", "encoder")]
    table = evaluate(same, labels[TRAIN], labels[TEST], labels_per_class=5, seed=0)
    assert {c.verdict for c in table.comparisons} == {Verdict.NO_DIFFERENCE}
    assert [c.difference.value for c in table.comparisons] == [0.0, 0.0, 0.0]


def test_the_table_says_that_it_is_not_private_and_survives_json(table: EvaluationTable) -> None:
    text = table.model_dump_json()
    assert "without privacy" in json.loads(text)["notice"]
    assert EvaluationTable.model_validate_json(text) == table


def test_a_seed_gives_the_same_table() -> None:
    pixels, labels = load_digits(return_X_y=True)
    features = [FeatureSet("pixels", pixels[TRAIN], pixels[TEST])]
    first, again, other = (
        evaluate(features, labels[TRAIN], labels[TEST], labels_per_class=3, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first.rows[0].accuracy[Measure.FEW_LABEL] != other.rows[0].accuracy[Measure.FEW_LABEL]
    assert first.rows[0].accuracy[Measure.LINEAR] == other.rows[0].accuracy[Measure.LINEAR]


def test_more_labels_help_and_a_class_that_has_fewer_gives_all() -> None:
    pixels, labels = load_digits(return_X_y=True)
    features = [FeatureSet("pixels", pixels[TRAIN], pixels[TEST])]
    few, all_of_them = (
        evaluate(features, labels[TRAIN], labels[TEST], labels_per_class=n, seed=0)
        for n in (2, 10_000)
    )
    accuracy = all_of_them.rows[0].accuracy
    assert few.rows[0].accuracy[Measure.FEW_LABEL].high < accuracy[Measure.FEW_LABEL].low
    # A solver stops a little elsewhere when the same records come in another order.
    linear = accuracy[Measure.LINEAR].value
    assert accuracy[Measure.FEW_LABEL].value == pytest.approx(linear, abs=0.01)


# --- paired intervals ------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(pairs=hnp.arrays(np.bool_, st.tuples(st.integers(1, 400), st.just(2))))
def test_a_paired_difference_is_antisymmetric_and_holds_its_value(
    pairs: np.ndarray,
) -> None:
    forth = paired_difference(pairs[:, 0], pairs[:, 1])
    back = paired_difference(pairs[:, 1], pairs[:, 0])
    assert forth.value == pytest.approx(pairs[:, 0].mean() - pairs[:, 1].mean())
    assert -1 <= forth.low <= forth.value <= forth.high <= 1
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))


def test_a_paired_interval_agrees_with_the_exact_mcnemar_test() -> None:
    """Away from the border, zero is outside the interval where McNemar's p is below 0.05."""
    records = 360
    for only_first, only_second in [(30, 10), (10, 30), (12, 12), (15, 10), (60, 20), (3, 2)]:
        first = np.zeros(records, dtype=bool)
        second = np.zeros(records, dtype=bool)
        first[:only_first] = True
        second[only_first : only_first + only_second] = True
        difference = paired_difference(first, second)
        excluded = difference.low > 0 or difference.high < 0
        p = stats.binomtest(only_first, only_first + only_second).pvalue
        assert excluded == (p < 0.05)


def test_a_paired_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    shares = [0.70, 0.12, 0.07, 0.11]  # both right, only first, only second, neither
    covered = 0
    for _ in range(2000):
        cell = rng.choice(4, size=300, p=shares)
        difference = paired_difference(cell <= 1, (cell == 0) | (cell == 2))
        covered += difference.low <= 0.05 <= difference.high
    assert 0.935 <= covered / 2000 <= 0.975


@pytest.mark.parametrize(
    ("figures", "verdict", "sentence"),
    [
        (
            (0.003, -0.011, 0.017),
            Verdict.NO_DIFFERENCE,
            "encoder adds nothing measurable over the warm start "
            "(Δ kNN = +0.3 points, 95 % CI −1.1…+1.7)",
        ),
        (
            (0.05, 0.02, 0.08),
            Verdict.BETTER,
            "encoder is better than the warm start (Δ kNN = +5.0 points, 95 % CI +2.0…+8.0)",
        ),
        (
            (-0.05, -0.08, -0.02),
            Verdict.WORSE,
            "encoder is worse than the warm start (Δ kNN = −5.0 points, 95 % CI −8.0…−2.0)",
        ),
    ],
)
def test_a_verdict_is_a_plain_sentence(
    figures: tuple[float, float, float], verdict: Verdict, sentence: str
) -> None:
    value, low, high = figures
    comparison = Comparison(
        features="encoder",
        baseline="the warm start",
        measure=Measure.KNN,
        difference=Difference(value=value, low=low, high=high, method="by hand"),
    )
    assert comparison.verdict is verdict
    assert comparison.sentence == sentence


def test_a_few_label_interval_is_students_over_whichever_varies() -> None:
    values = np.random.default_rng(0).random(20)
    expected = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    by_draw = np.repeat(values[:, None], 50, axis=1)  # only the labels drawn matter
    by_record = np.repeat(values[None], 50, axis=0)  # only the test records matter
    for scores in (by_draw, by_record):
        mean, margin = mean_over_draws(scores)
        assert (mean - margin, mean + margin) == pytest.approx(expected)


def test_with_all_labels_a_few_label_interval_is_that_of_the_test_records() -> None:
    pixels, labels = load_digits(return_X_y=True)
    features = [FeatureSet("pixels", pixels[TRAIN], pixels[TEST])]
    table = evaluate(features, labels[TRAIN], labels[TEST], labels_per_class=10_000, seed=0)
    few, all_labels = (table.rows[0].accuracy[m] for m in (Measure.FEW_LABEL, Measure.LINEAR))
    assert few.high - few.low == pytest.approx(all_labels.high - all_labels.low, rel=0.15)
    assert f"{DRAWS} draws" in few.method


# --- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (np.zeros((3, 2)), np.zeros((2, 2))),
        (np.zeros((4, 2)), np.full((2, 2), np.nan)),
        (np.zeros(4), np.zeros((2, 2))),
    ],
    ids=["missing record", "nan", "one-dimensional"],
)
def test_features_that_do_not_fit_are_refused(train: np.ndarray, test: np.ndarray) -> None:
    with pytest.raises(DataError, match="'x'"):
        evaluate(
            [FeatureSet("x", train, test)],
            np.array([0, 1, 0, 1]),
            np.array([0, 1]),
            labels_per_class=1,
            seed=0,
        )


def test_records_of_one_class_are_refused() -> None:
    with pytest.raises(DataError, match="two classes"):
        evaluate(
            [FeatureSet("x", np.zeros((2, 2)), np.zeros((2, 2)))],
            np.array([1, 1]),
            np.array([1, 1]),
            labels_per_class=1,
            seed=0,
        )
