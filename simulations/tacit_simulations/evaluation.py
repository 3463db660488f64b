"""SIMULATION ONLY: how useful features are, judged with every record and label in hand.

Nothing here is private. It reads all training records of all sites, which no server of a
deployment could, and exists so that a rehearsal can say what private training bought.
Every result carries that statement (`NOTICE`).

Three measures, on one held-out test set: the vote of the nearest neighbours, a linear
classifier on all labels, and the same on a few labels per class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import stats
from threadpoolctl import threadpool_limits

from tacit_common.errors import DataError
from tacit_common.probes import FloatArray, Interval, wilson_interval

NOTICE = (
    "Simulation only: this table reads every training record and label without privacy. "
    "A deployment has no such table; its probes are noisy and charged."
)

NEIGHBOURS = 5
SMALLEST_SAMPLE = NEIGHBOURS
"""Records of training and of test, each, below which nothing can be said."""
DRAWS = 20
CONFIDENCE = 0.95
Z_95 = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
FEW_METHOD = f"95 % t-interval over {DRAWS} draws of the labels and the test records"

Labels = NDArray[np.int64]
Correct = NDArray[np.bool_]
"""Which test records a classifier got right: [M]."""


@dataclass(frozen=True)
class FeatureSet:
    """One way to describe the same records: features of train [N, D] and test [M, D]."""

    name: str
    train: FloatArray
    test: FloatArray


class Measure(StrEnum):
    """What a column of the table says."""

    KNN = "kNN"
    LINEAR = "linear"
    FEW_LABEL = "few-label"


class Verdict(StrEnum):
    """What a paired comparison shows."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no measurable difference"


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Difference(_Value):
    """Accuracy minus a baseline's, in [-1, 1], with a 95 % confidence interval."""

    value: float
    low: float
    high: float
    method: str


class EvaluationRow(_Value):
    """One feature set under every measure."""

    features: str
    accuracy: dict[Measure, Interval]


class Comparison(_Value):
    """The last feature set against one baseline, on the same test records and label draws."""

    features: str
    baseline: str
    measure: Measure
    difference: Difference

    @property
    def verdict(self) -> Verdict:
        """Better or worse only where the interval leaves zero out."""
        if self.difference.low > 0:
            return Verdict.BETTER
        return Verdict.WORSE if self.difference.high < 0 else Verdict.NO_DIFFERENCE

    @property
    def sentence(self) -> str:
        """The verdict in plain words, with its figures in points."""
        phrase = {
            Verdict.BETTER: "is better than",
            Verdict.WORSE: "is worse than",
            Verdict.NO_DIFFERENCE: "adds nothing measurable over",
        }[self.verdict]
        d = self.difference
        return (
            f"{self.features} {phrase} {self.baseline} "
            f"(Δ {self.measure} = {_points(d.value)} points, "
            f"95 % CI {_points(d.low)}…{_points(d.high)})"
        )


class EvaluationTable(_Value):
    """The whole evaluation; `model_dump_json` gives its JSON form."""

    notice: str = NOTICE
    train_records: int
    test_records: int
    labels_per_class: int
    rows: list[EvaluationRow]
    comparisons: list[Comparison]


def evaluate(
    feature_sets: Sequence[FeatureSet],
    train_labels: Labels,
    test_labels: Labels,
    *,
    labels_per_class: int,
    seed: int,
) -> EvaluationTable:
    """Judge every feature set, and compare the last one with each that comes before.

    The same test records and the same draws of few labels serve all feature sets, so
    comparisons are paired. No correction is made for the number of comparisons.

    Raises:
        DataError: there are fewer than two classes, features and labels do not fit each
            other, or features are not finite.
    """
    if len(np.unique(train_labels)) < 2:
        raise DataError(
            "features cannot be evaluated",
            why="the training records have fewer than two classes",
            fix="simulate with labelled data, or leave the evaluation out",
        )
    for features in feature_sets:
        _check(features, train_labels, test_labels)
    draws = _few_label_draws(train_labels, labels_per_class, seed)
    with threadpool_limits(limits=1):  # the fits are many and small: threads only wait
        outcomes = [_outcome(f, train_labels, test_labels, draws) for f in feature_sets]
    *baselines, judged = outcomes
    return EvaluationTable(
        train_records=len(train_labels),
        test_records=len(test_labels),
        labels_per_class=labels_per_class,
        rows=[outcome.row() for outcome in outcomes],
        comparisons=[
            comparison for baseline in baselines for comparison in judged.against(baseline)
        ],
    )


def paired_difference(correct: Correct, baseline: Correct) -> Difference:
    """Difference of two accuracies on the same M test records, with Agresti and Min's interval.

    With n₁₀ records that only the first got right and n₀₁ only the second: add ½ to each
    of the four cells, then d = (n₁₀ - n₀₁)/M and Var d = (n₁₀ + n₀₁ - M·d²)/M² (Agresti
    and Min 2005, Statistics in Medicine 24:729, "Wald+2"). The value itself is without
    the halves.
    """
    records = len(correct)
    only_first = int((correct & ~baseline).sum())
    only_second = int((~correct & baseline).sum())
    m, first, second = records + 2, only_first + 0.5, only_second + 0.5
    centre = (first - second) / m
    margin = Z_95 * np.sqrt(first + second - m * centre**2) / m
    value = (only_first - only_second) / records
    return Difference(
        value=value,
        low=max(float(centre - margin), -1.0),
        high=min(float(centre + margin), 1.0),
        method="95 % Agresti-Min interval, paired over the test records",
    )


@dataclass(frozen=True)
class _Outcome:
    """Which test records the classifiers on one feature set got right: [M], [M], [DRAWS, M]."""

    name: str
    knn: Correct
    linear: Correct
    few_label: Correct

    def row(self) -> EvaluationRow:
        mean, margin = mean_over_draws(self.few_label.astype(np.float64))
        few_label = Interval(mean, max(mean - margin, 0.0), min(mean + margin, 1.0), FEW_METHOD)
        return EvaluationRow(
            features=self.name,
            accuracy={
                Measure.KNN: wilson_interval(int(self.knn.sum()), len(self.knn)),
                Measure.LINEAR: wilson_interval(int(self.linear.sum()), len(self.linear)),
                Measure.FEW_LABEL: few_label,
            },
        )

    def against(self, baseline: "_Outcome") -> list[Comparison]:
        mean, margin = mean_over_draws(
            self.few_label.astype(np.float64) - baseline.few_label.astype(np.float64)
        )
        few_label = Difference(
            value=mean,
            low=max(mean - margin, -1.0),
            high=min(mean + margin, 1.0),
            method=f"{FEW_METHOD}, paired over both",
        )
        differences = {
            Measure.KNN: paired_difference(self.knn, baseline.knn),
            Measure.LINEAR: paired_difference(self.linear, baseline.linear),
            Measure.FEW_LABEL: few_label,
        }
        return [
            Comparison(
                features=self.name, baseline=baseline.name, measure=measure, difference=difference
            )
            for measure, difference in differences.items()
        ]


def _outcome(
    features: FeatureSet, train_labels: Labels, test_labels: Labels, draws: list[Labels]
) -> _Outcome:
    # scikit-learn takes half a second to import, which the first round need not wait for.
    from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415

    neighbours = KNeighborsClassifier(NEIGHBOURS, metric="cosine", algorithm="brute")
    neighbours.fit(features.train, train_labels)
    every = np.arange(len(train_labels))
    linear = _linear_correct(features, train_labels, test_labels, every)
    few = [_linear_correct(features, train_labels, test_labels, draw) for draw in draws]
    return _Outcome(
        name=features.name,
        knn=neighbours.predict(features.test) == test_labels,
        linear=linear,
        few_label=np.stack(few),
    )


def _linear_correct(
    features: FeatureSet, train_labels: Labels, test_labels: Labels, chosen: Labels
) -> Correct:
    """Test records that logistic regression on the training records `chosen` gets right."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - as in `_outcome`
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    scaler = StandardScaler().fit(features.train[chosen])
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit(scaler.transform(features.train[chosen]), train_labels[chosen])
    correct: Correct = classifier.predict(scaler.transform(features.test)) == test_labels
    return correct


def _few_label_draws(labels: Labels, labels_per_class: int, seed: int) -> list[Labels]:
    """DRAWS sets of record indices with `labels_per_class` of each class, or all it has."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return [
        np.concatenate([rng.permutation(records)[:labels_per_class] for records in members])
        for _ in range(DRAWS)
    ]


def mean_over_draws(scores: FloatArray) -> tuple[float, float]:
    """Mean of scores [DRAWS, M], and half the width of its 95 % interval.

    The mean varies with the labels drawn and with the test records, which every draw
    shares. Its variance is at most that of the draws' means over DRAWS plus that of the
    records' means over M (their common part is counted twice, so the interval errs on
    the wide side); the quantile is Student's for the smaller of the two samples.
    """
    draws, records = scores.shape
    over_draws = scores.mean(axis=1).var(ddof=1) / draws
    over_records = scores.mean(axis=0).var(ddof=1) / records
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, min(draws, records) - 1)
    return float(scores.mean()), float(quantile * np.sqrt(over_draws + over_records))


def _check(features: FeatureSet, train_labels: Labels, test_labels: Labels) -> None:
    for part, labels in ((features.train, train_labels), (features.test, test_labels)):
        if part.ndim != 2 or len(part) != len(labels) or not np.isfinite(part).all():
            raise DataError(
                f"features '{features.name}' cannot be evaluated",
                why=f"they have shape {part.shape} for {len(labels)} labels, or are not finite",
                fix="give finite features [N, D] with one label for each record",
            )


def _points(share: float) -> str:
    """A share in points with its sign: +0.3, −1.1."""
    return f"{100 * share:+.1f}".replace("-", "−")
