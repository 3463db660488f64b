"""The ridge probe: bounded contributions, exact without noise, sound when noise dominates."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from tacit_common.errors import DataError, NonFiniteUpdateError, PluginError, WireError
from tacit_common.plugins import PluginTable
from tacit_common.probes import (
    CONFUSION_L2_SENSITIVITY,
    BlockShares,
    FloatArray,
    Probe,
    PublicBasis,
    RidgeProbe,
    accuracy_interval,
    build_probe,
    confusion_statistics,
    public_basis,
    wilson_interval,
)
from tacit_common.probes.basis import WHITENING
from tacit_common.probes.ridge import INTERCEPT, NOISE_MARGIN, RADIUS, bounded_features
from tacit_common.study import PluginProbePlan, RidgeProbePlan

CLASSES = 4
PLAIN = BlockShares(1.0, 1.0, 1.0)


def blobs(records: int, *, seed: int = 0, width: int = 6) -> tuple[FloatArray, np.ndarray]:
    """Features [records, width] around one centre for each class, and the classes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, width)) * 2
    labels = rng.integers(0, CLASSES, records)
    return centres[labels] + rng.normal(size=(records, width)), labels


PUBLIC, _ = blobs(200, seed=1)
BASIS = public_basis(PUBLIC, 5)


# --- the bound on a record -------------------------------------------------------------

any_float = st.floats(allow_nan=True, allow_infinity=True, width=64)


@settings(max_examples=300, deadline=None)
@given(
    features=hnp.arrays(np.float64, (1, 6), elements=any_float),
    label=st.integers(-2, CLASSES + 1),
    shares=st.sampled_from([BlockShares(), PLAIN, BlockShares(2.9, 0.05, 0.05)]),
)
def test_no_record_contributes_more_than_the_square_root_of_three(
    features: FloatArray, label: int, shares: BlockShares
) -> None:
    probe = RidgeProbe(CLASSES, shares)
    contribution = probe.statistics(features, np.array([label]), BASIS)
    assert np.isfinite(contribution).all()
    assert np.linalg.norm(contribution) <= probe.l2_sensitivity  # no tolerance
    assert probe.l2_sensitivity == np.sqrt(3)


@pytest.mark.parametrize("scale", [1e2, 1e150, 1e300])
@pytest.mark.parametrize("shares", [BlockShares(), PLAIN])
def test_the_bound_is_reached_by_an_outlier(scale: float, shares: BlockShares) -> None:
    probe = RidgeProbe(CLASSES, shares)
    contribution = probe.statistics(PUBLIC[:1] * scale, np.array([1]), BASIS)
    assert np.linalg.norm(contribution) == pytest.approx(np.sqrt(3), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 20))
def test_statistics_of_sites_add_up_and_no_records_give_zeros(seed: int, cut: int) -> None:
    features, labels = blobs(20, seed=seed)
    probe = RidgeProbe(CLASSES)
    parts = [
        probe.statistics(features[part], labels[part], BASIS)
        for part in (slice(0, cut), slice(cut, None))
    ]
    np.testing.assert_allclose(sum(parts), probe.statistics(features, labels, BASIS), atol=1e-12)
    nothing = probe.statistics(features[:0], labels[:0], BASIS)
    assert nothing.shape == parts[0].shape
    assert not nothing.any()


def test_statistics_are_the_documented_sums() -> None:
    features, labels = blobs(7)
    phi = bounded_features(features, BASIS)
    shares = BlockShares(0.5, 2.0, 0.5)
    expected: list[float] = []
    for i, j in itertools.combinations_with_replacement(range(phi.shape[1]), 2):
        weight = np.sqrt(0.5) * (1.0 if i == j else np.sqrt(2))
        expected.append(weight * sum(row[i] * row[j] for row in phi))
    for i, label in itertools.product(range(phi.shape[1]), range(CLASSES)):
        expected.append(np.sqrt(2.0) * sum(phi[n, i] for n in range(7) if labels[n] == label))
    expected += [np.sqrt(0.5) * int((labels == label).sum()) for label in range(CLASSES)]
    statistics = RidgeProbe(CLASSES, shares).statistics(features, labels, BASIS)
    np.testing.assert_allclose(statistics, expected, atol=1e-12)


@pytest.mark.parametrize("bad", ["nan", "inf", "label", "negative label"])
def test_an_unusable_record_contributes_nothing_at_all(bad: str) -> None:
    features, labels = blobs(10)
    probe = RidgeProbe(CLASSES)
    without = probe.statistics(np.delete(features, 4, 0), np.delete(labels, 4), BASIS)
    if bad in ("nan", "inf"):
        features[4, 2] = float(bad)
    else:
        labels[4] = CLASSES if bad == "label" else -1
    np.testing.assert_allclose(probe.statistics(features, labels, BASIS), without, atol=1e-12)


def test_bounded_features_are_reduced_clipped_and_carry_a_constant() -> None:
    features = np.stack([BASIS.mean, BASIS.mean + 1e-3, BASIS.mean + 1e3, np.full(6, np.nan)])
    phi = bounded_features(features, BASIS)
    np.testing.assert_allclose(phi[:, -1], [INTERCEPT, INTERCEPT, INTERCEPT, 0.0])
    np.testing.assert_allclose(phi[0, :-1], 0.0, atol=1e-12)
    small = RADIUS * ((features[1] - BASIS.mean) @ BASIS.components)
    np.testing.assert_allclose(phi[1, :-1], small, rtol=1e-9)
    assert np.linalg.norm(phi[2]) == pytest.approx(1.0, rel=1e-9)
    assert not phi[3].any()


# --- the solution ----------------------------------------------------------------------


@pytest.mark.parametrize("shares", [BlockShares(), PLAIN])
def test_without_noise_the_solution_is_ridge_regression(shares: BlockShares) -> None:
    features, labels = blobs(300)
    probe = RidgeProbe(CLASSES, shares)
    classifier = probe.solve(probe.statistics(features, labels, BASIS), BASIS)
    phi, one_hot = bounded_features(features, BASIS), np.eye(CLASSES)[labels]
    reference = Ridge(alpha=classifier.ridge, fit_intercept=False, solver="cholesky")
    reference.fit(phi, one_hot)
    np.testing.assert_allclose(classifier.weights, reference.coef_.T, rtol=1e-6, atol=1e-8)
    unseen, truth = blobs(300, seed=5)
    predicted = reference.predict(bounded_features(unseen, BASIS)).argmax(axis=1)
    np.testing.assert_array_equal(classifier.predict(unseen), predicted)
    assert float((predicted == truth).mean()) > 0.9
    eigenvalue = np.trace(phi.T @ phi) / phi.shape[1]
    assert classifier.ridge == pytest.approx(1e-3 * eigenvalue, rel=1e-6)  # no noise was seen


@pytest.mark.parametrize("stddev", [0.5, 20.0])
def test_lambda_follows_the_noise_that_the_statistics_show(stddev: float) -> None:
    features, labels = blobs(300)
    probe = RidgeProbe(CLASSES)
    exact = probe.statistics(features, labels, BASIS)
    size = BASIS.components.shape[1] + 1
    ridges = []
    for seed in range(200):
        noise = stddev * np.random.default_rng(seed).normal(size=exact.shape)
        ridges.append(probe.solve(exact + noise, BASIS).ridge)
    norm = stddev / np.sqrt(probe.shares.gram) * np.sqrt(2 * size)
    assert float(np.mean(ridges)) == pytest.approx(NOISE_MARGIN * norm, rel=0.1)


def test_the_noise_of_the_gram_matrix_has_the_spectral_norm_that_lambda_assumes() -> None:
    size, rng = 25, np.random.default_rng(0)
    norms = []
    for _ in range(50):
        upper = np.triu(rng.normal(size=(size, size)) / np.sqrt(2), 1)
        noise = upper + upper.T + np.diag(rng.normal(size=size))
        norms.append(np.linalg.norm(noise, 2))
    assert np.sqrt(2 * size) == pytest.approx(np.mean(norms), rel=0.1)
    assert max(norms) < NOISE_MARGIN * np.sqrt(2 * size)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), stddev=st.sampled_from([0.0, 1.0, 1e3, 1e9]))
def test_a_solution_always_exists_even_when_there_is_nothing_but_noise(
    seed: int, stddev: float
) -> None:
    probe = RidgeProbe(CLASSES)
    zeros = probe.statistics(PUBLIC[:0], np.zeros(0, dtype=np.int64), BASIS)
    noise = stddev * np.random.default_rng(seed).normal(size=zeros.shape)
    classifier = probe.solve(zeros + noise, BASIS)
    predicted = classifier.predict(PUBLIC)
    assert predicted.dtype == np.int64
    assert predicted.shape == (len(PUBLIC),)
    assert set(predicted.tolist()) <= set(range(CLASSES))
    assert np.isfinite(classifier.weights).all()


def test_a_gram_matrix_that_noise_made_negative_does_not_turn_scores_around() -> None:
    features, labels = blobs(300)
    probe = RidgeProbe(CLASSES, PLAIN)
    statistics = probe.statistics(features, labels, BASIS)
    diagonal = [i for i, (r, c) in enumerate(zip(*np.triu_indices(6), strict=True)) if r == c < 5]
    statistics[diagonal] -= 1000.0  # below every eigenvalue, and unseen by the noise estimate
    classifier = probe.solve(statistics, BASIS)
    assert float((classifier.predict(features) == labels).mean()) > 0.8


def test_digits_of_five_noisy_sites_are_still_told_apart() -> None:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1437], order[1437:]
    basis = public_basis(pixels[test], 24)  # stands for public images of the same kind
    probe = RidgeProbe(10)
    exact = probe.statistics(pixels[train], labels[train], basis)
    stddev = 4 * probe.l2_sensitivity * np.sqrt(5)  # noise multiplier 4 at each of 5 sites
    accuracies = []
    for seed in range(10):
        noisy = exact + stddev * np.random.default_rng(seed).normal(size=exact.shape)
        predicted = probe.solve(noisy, basis).predict(pixels[test])
        accuracies.append((predicted == labels[test]).mean())
    assert float(np.mean(accuracies)) > 0.7


def test_the_default_shares_beat_equal_ones_under_noise() -> None:
    pixels, labels = load_digits(return_X_y=True)
    basis = public_basis(pixels[1437:], 24)
    accuracies = []
    for shares in (BlockShares(), PLAIN):
        probe = RidgeProbe(10, shares)
        exact = probe.statistics(pixels[:1437], labels[:1437], basis)
        stddev = 4 * probe.l2_sensitivity * np.sqrt(5)
        rng = np.random.default_rng(0)
        noisy = [exact + stddev * rng.normal(size=exact.shape) for _ in range(10)]
        predicted = [probe.solve(n, basis).predict(pixels[1437:]) for n in noisy]
        accuracies.append(float(np.mean([p == labels[1437:] for p in predicted])))
    assert accuracies[0] > accuracies[1] + 0.03


@pytest.mark.parametrize(
    ("statistics", "error"),
    [(np.zeros(3), WireError), (np.full(21 + 24 + 4, np.nan), NonFiniteUpdateError)],
)
def test_statistics_that_cannot_be_solved_are_refused(
    statistics: FloatArray, error: type[Exception]
) -> None:
    with pytest.raises(error):
        RidgeProbe(CLASSES).solve(statistics, BASIS)


def test_features_that_do_not_fit_are_refused() -> None:
    probe, labels = RidgeProbe(CLASSES), np.zeros(2, dtype=np.int64)
    with pytest.raises(DataError, match="basis"):
        probe.statistics(np.zeros((2, 5)), labels, BASIS)
    with pytest.raises(DataError, match="labels"):
        probe.statistics(np.zeros((3, 6)), labels, BASIS)


@pytest.mark.parametrize("shares", [(0.0, 2.9, 0.1), (1.0, 1.0, 1.1), (-1.0, 2.0, 2.0)])
def test_shares_above_the_bound_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="shares"):
        BlockShares(*shares)


# --- the public basis ------------------------------------------------------------------


def test_the_basis_is_pca_with_part_of_the_spread_divided_out() -> None:
    pca = PCA(5).fit(PUBLIC)
    reduced = (PUBLIC - BASIS.mean) @ BASIS.components
    np.testing.assert_allclose(BASIS.mean, pca.mean_)
    expected = pca.transform(PUBLIC) / np.sqrt(pca.explained_variance_) ** WHITENING
    ratio = np.abs(reduced / expected)
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-6)
    assert float(np.median(np.linalg.norm(reduced, axis=1))) == pytest.approx(2.0)


def test_the_basis_does_not_depend_on_the_order_of_public_records() -> None:
    shuffled = public_basis(PUBLIC[np.random.default_rng(0).permutation(len(PUBLIC))], 5)
    np.testing.assert_allclose(shuffled.components, BASIS.components, atol=1e-9)


def test_a_basis_has_no_more_components_than_there_are() -> None:
    assert public_basis(PUBLIC, 40).components.shape == (6, 6)
    assert public_basis(PUBLIC[:3], 40).components.shape == (6, 2)


def test_flat_directions_are_left_out_of_the_basis() -> None:
    flat = np.concatenate([PUBLIC[:, :2], np.ones((200, 4))], axis=1)
    components = public_basis(flat, 5).components
    assert np.isfinite(components).all()
    assert [bool(column.any()) for column in components.T] == [True, True, False, False, False]


@pytest.mark.parametrize(
    "features",
    [np.ones((9, 3)), np.full((9, 3), np.inf), np.zeros((1, 3)), np.zeros(9)],
    ids=["constant", "infinite", "one record", "flat"],
)
def test_features_without_variance_make_no_basis(features: FloatArray) -> None:
    with pytest.raises(DataError):
        public_basis(features, 2)


# --- accuracy under noise --------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(label=st.integers(-1, 3), prediction=st.integers(-1, 3))
def test_a_record_adds_one_to_at_most_one_cell(label: int, prediction: int) -> None:
    counts = confusion_statistics(np.array([label]), np.array([prediction]), 3)
    assert np.linalg.norm(counts) <= CONFUSION_L2_SENSITIVITY == 1.0
    if 0 <= label < 3 and 0 <= prediction < 3:
        assert counts.reshape(3, 3)[label, prediction] == 1


@settings(max_examples=200, deadline=None)
@given(total=st.integers(1, 2000), data=st.data())
def test_exact_counts_give_the_wilson_interval(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    interval = wilson_interval(correct, total)
    reference = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert interval.value == correct / total
    assert interval.low == pytest.approx(reference.low, abs=1e-9)
    assert interval.high == pytest.approx(reference.high, abs=1e-9)
    assert interval.low <= interval.value <= interval.high


@settings(max_examples=200, deadline=None)
@given(
    cells=hnp.arrays(np.float64, 9, elements=st.floats(-1e4, 1e4)),
    stddev=st.floats(0, 1e3),
)
def test_an_interval_is_always_within_the_unit_interval_and_holds_its_value(
    cells: FloatArray, stddev: float
) -> None:
    interval = accuracy_interval(cells, 3, noise_stddev=stddev)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


@pytest.mark.parametrize(("accuracy", "stddev"), [(0.8, 0.0), (0.8, 5.0), (0.3, 5.0), (0.95, 12.0)])
def test_the_interval_covers_the_true_accuracy_as_often_as_it_says(
    accuracy: float, stddev: float
) -> None:
    classes, records, repeats = 5, 400, 2000
    rng = np.random.default_rng(0)
    diagonal = np.eye(classes, dtype=bool).reshape(-1)
    shares = np.where(diagonal, accuracy / classes, (1 - accuracy) / (classes * (classes - 1)))
    covered, widths = 0, []
    for _ in range(repeats):
        counts = rng.multinomial(records, shares) + stddev * rng.normal(size=classes**2)
        interval = accuracy_interval(counts, classes, noise_stddev=stddev)
        covered += interval.low <= accuracy <= interval.high
        widths.append(interval.high - interval.low)
    assert 0.93 <= covered / repeats <= 0.97
    assert float(np.mean(widths)) < (0.1 if stddev == 0 else 0.6)


def test_noise_widens_the_interval_and_says_so() -> None:
    counts = np.array([40.0, 10.0, 10.0, 40.0])
    exact, noisy = (accuracy_interval(counts, 2, noise_stddev=s) for s in (0.0, 5.0))
    assert noisy.high - noisy.low > exact.high - exact.low
    assert "noise" in noisy.method
    assert "noise" not in exact.method
    drowned = accuracy_interval(counts, 2, noise_stddev=500.0)
    assert (drowned.low, drowned.high) == (0.0, 1.0)
    assert "hides" in drowned.method


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_counts_that_make_no_share_are_refused(correct: int, total: int) -> None:
    with pytest.raises(DataError):
        wilson_interval(correct, total)


def test_counts_of_another_size_are_refused() -> None:
    with pytest.raises(DataError):
        accuracy_interval(np.zeros(9), 2, noise_stddev=0.0)
    with pytest.raises(DataError):
        confusion_statistics(np.zeros(3, dtype=np.int64), np.zeros(2, dtype=np.int64), 2)


# --- from a plan -----------------------------------------------------------------------


def test_a_plan_builds_the_probe_that_it_names() -> None:
    built = build_probe(RidgeProbePlan(kind="ridge", classes=7), PluginTable())
    assert built == RidgeProbe(7)
    own = PluginTable({"mine": "tacit_common.probes:RidgeProbe"})
    plan = PluginProbePlan(kind="plugin", name="mine", options={"classes": 3})
    assert isinstance(build_probe(plan, own), Probe)
    with pytest.raises(PluginError):
        build_probe(
            PluginProbePlan(kind="plugin", name="mine"),
            PluginTable({"mine": "collections:UserDict"}),
        )


def test_a_basis_from_the_wire_solves_like_the_original() -> None:
    features, labels = blobs(50)
    probe = RidgeProbe(CLASSES)
    copy = PublicBasis(BASIS.mean.copy(), BASIS.components.copy())
    statistics = probe.statistics(features, labels, BASIS)
    np.testing.assert_array_equal(
        probe.solve(statistics, copy).predict(features),
        probe.solve(statistics, BASIS).predict(features),
    )
