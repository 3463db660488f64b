"""How good the encoder is beside its baselines, and what to say about it, whatever it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tacit_client.data import LabeledArraySource
from tacit_common.encoders import embed
from tacit_common.model import build_model
from tacit_common.plugins import PluginTable
from tacit_common.report import Evaluation, EvaluationRow, Interval, Pictures
from tacit_common.study import (
    DirichletPartition,
    LocalPrivacyPlan,
    SimulationPlan,
    StudyFile,
)
from tacit_common.training import load_parameters
from tacit_server.checkpoint import RunState
from tacit_simulations.datasets import LabeledImages
from tacit_simulations.evaluation import (
    SMALLEST_SAMPLE,
    Comparison,
    EvaluationTable,
    FeatureSet,
    Measure,
    Verdict,
    evaluate,
)
from tacit_simulations.gallery import gallery

RAW, RANDOM, WARM, RESULT = "raw features", "random encoder", "warm start only", "this encoder"
# Intervals cover test records and label draws, not another seed's training, which moves
# accuracies by about this much: less than one point is not called a difference.
_SMALLEST_DIFFERENCE = 0.01
_IN_A_SENTENCE = {RAW: "raw features", RANDOM: "a random encoder", WARM: "the warm start alone"}
WHERE_IT_PAYS = (
    "Private pretraining pays with more records: noise is added once a step, whatever the "
    "batch, so ten times the records at the same ε is a tenth of the noise in the mean."
)
TOO_SMALL = (
    f"The data is too small to judge the encoder: it takes two classes and {SMALLEST_SAMPLE} "
    "records for training and as many held out."
)
ONE_RUN = (
    "These are the figures of one training run; its noise and its seed move them by a point or so."
)
_COLUMNS = {
    Measure.KNN: "kNN",
    Measure.FEW_LABEL: "few labels",
    Measure.LINEAR: "all labels",
}


@dataclass(frozen=True)
class Judgement:
    """The evaluation, its verdicts in words, and pictures; empty where data has no labels."""

    evaluation: Evaluation | None
    verdicts: tuple[str, ...]
    pictures: Pictures | None


def judge(
    study: StudyFile, simulation: SimulationPlan, state: RunState, data: LabeledImages
) -> Judgement:
    """Evaluate the run's encoder beside raw features, a random encoder and the warm start."""
    pool, held_out = data.train, data.test
    if not (isinstance(pool, LabeledArraySource) and isinstance(held_out, LabeledArraySource)):
        return Judgement(None, (), None)
    too_few = min(len(pool), len(held_out)) < SMALLEST_SAMPLE
    if too_few or len(np.unique(pool.labels)) < 2:
        return Judgement(None, (TOO_SMALL,), None)
    model, objective = build_model(study.travelling(), PluginTable(study.plugins))

    def features(name: str) -> FeatureSet:
        return FeatureSet(
            name, *(embed(model.encoder, s.images).astype(np.float64) for s in (pool, held_out))
        )

    raw = FeatureSet(RAW, *(s.images.flatten(1).double().numpy() for s in (pool, held_out)))
    baselines = [raw, features(RANDOM)]
    if study.warm_start is not None:
        load_parameters(model, state.initial)
        baselines.append(features(WARM))
    load_parameters(model, state.strategy.parameters)
    result = features(RESULT)
    table = evaluate(
        [*baselines, result],
        pool.labels,
        held_out.labels,
        labels_per_class=simulation.labels_per_class,
        seed=study.seed,
    )
    return Judgement(
        _evaluation(simulation, data, table),
        _verdicts(study, table, [baseline.name for baseline in baselines]),
        gallery(model, objective, held_out, result.test, source=data.description, seed=study.seed),
    )


def _evaluation(
    simulation: SimulationPlan, data: LabeledImages, table: EvaluationTable
) -> Evaluation:
    dealt = simulation.partition
    how = f"Dirichlet({dealt.alpha:g})" if isinstance(dealt, DirichletPartition) else "evenly dealt"
    return Evaluation(
        dataset=data.description,
        classes=data.classes,
        train_records=table.train_records,
        test_records=table.test_records,
        labels_per_class=table.labels_per_class,
        partition=f"{how} over {simulation.sites} sites",
        columns=tuple(_COLUMNS.values()),
        rows=tuple(
            EvaluationRow(
                label=row.features,
                role="result" if row.features == RESULT else "baseline",
                cells=tuple(Interval.of(row.accuracy[measure]) for measure in _COLUMNS),
            )
            for row in table.rows
        ),
    )


def _verdicts(
    study: StudyFile, table: EvaluationTable, baselines: Sequence[str]
) -> tuple[str, ...]:
    """What the comparisons show; the free start first, since it is what privacy was spent on."""
    start = baselines[-1]
    sentences = [_against(table, name) for name in reversed(baselines)]
    everywhere = len(_found(table, start, Verdict.BETTER)) == len(Measure)
    if isinstance(study.privacy, LocalPrivacyPlan) and not everywhere:
        sentences.insert(1, WHERE_IT_PAYS)
    return (*sentences, ONE_RUN)


def _found(table: EvaluationTable, baseline: str, verdict: Verdict) -> list[Comparison]:
    """The comparisons with a baseline that came out so, by enough to be called a difference."""
    return [
        comparison
        for comparison in table.comparisons
        if comparison.baseline == baseline
        and comparison.verdict is verdict
        and abs(comparison.difference.value) >= _SMALLEST_DIFFERENCE
    ]


def _against(table: EvaluationTable, baseline: str) -> str:
    """One sentence: where the encoder is better than a baseline, worse, or neither."""
    name = _IN_A_SENTENCE[baseline]
    better = _found(table, baseline, Verdict.BETTER)
    worse = _found(table, baseline, Verdict.WORSE)
    if not better and not worse:
        return f"This encoder adds nothing measurable over {name}."
    parts = [
        f"{word} than {name} ({_points(found)})"
        for word, found in (("better", better), ("worse", worse))
        if found
    ]
    rest = "" if len(better) + len(worse) == len(Measure) else ", and no different elsewhere"
    return f"This encoder is {' and '.join(parts)}{rest}."


def _points(comparisons: list[Comparison]) -> str:
    return ", ".join(
        f"{_COLUMNS[c.measure]} {100 * c.difference.value:+.1f} points".replace("-", "−")
        for c in comparisons
    )
