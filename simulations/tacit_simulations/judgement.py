"""How good the encoder is beside its baselines, and what to say about it, whatever it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tacit_client.data import LabeledArraySource
from tacit_common.encoders import Encoder, embed
from tacit_common.model import build_model
from tacit_common.plugins import PluginTable
from tacit_common.report import Evaluation, EvaluationRow, Interval, Pictures
from tacit_common.strategy import ParameterVector
from tacit_common.study import DirichletPartition, LocalPrivacyPlan, StudyFile
from tacit_common.training import load_parameters
from tacit_server.checkpoint import RunState
from tacit_simulations.datasets import LabeledImages
from tacit_simulations.evaluation import (
    EvaluationTable,
    FeatureSet,
    Measure,
    Verdict,
    evaluate,
)
from tacit_simulations.gallery import gallery

RAW, RANDOM, WARM, RESULT = "raw features", "random encoder", "warm start only", "this encoder"
_IN_A_SENTENCE = {RAW: "raw features", RANDOM: "a random encoder", WARM: "the warm start alone"}
WHERE_IT_PAYS = (
    "Private pretraining pays with more records: noise is added once a step, whatever the "
    "batch, so ten times the records at the same ε is a tenth of the noise in the mean."
)
_COLUMNS = {
    Measure.KNN: "kNN, 5 neighbours",
    Measure.FEW_LABEL: "few labels",
    Measure.LINEAR: "linear, all labels",
}


@dataclass(frozen=True)
class Judgement:
    """The evaluation, its verdicts in words, and pictures; empty where data has no labels."""

    evaluation: Evaluation | None
    verdicts: tuple[str, ...]
    pictures: Pictures | None


def judge(study: StudyFile, state: RunState, data: LabeledImages) -> Judgement:
    """Evaluate the run's encoder beside raw features, a random encoder and the warm start."""
    simulation = study.simulation
    if simulation is None or not isinstance(data.train, LabeledArraySource):
        return Judgement(None, (), None)
    if not isinstance(data.test, LabeledArraySource):
        return Judgement(None, (), None)
    model, objective = build_model(study.travelling(), PluginTable(study.plugins))

    def features(name: str, parameters: ParameterVector | None) -> FeatureSet:
        if parameters is not None:
            load_parameters(model, parameters)
        return FeatureSet(name, _embed(model.encoder, data.train), _embed(model.encoder, data.test))

    raw = FeatureSet(RAW, *(s.images.flatten(1).double().numpy() for s in (data.train, data.test)))
    baselines = [raw, features(RANDOM, None)]
    if study.warm_start is not None:
        baselines.append(features(WARM, state.initial))
    result = features(RESULT, state.strategy.parameters)
    table = evaluate(
        [*baselines, result],
        data.train.labels,
        data.test.labels,
        labels_per_class=simulation.labels_per_class,
        seed=study.seed,
    )
    pictures = gallery(
        model, objective, data.test, result.test, source=data.description, seed=study.seed
    )
    return Judgement(
        _evaluation(study, data, table), _verdicts(study, table, [b.name for b in baselines]), pictures
    )


def _embed(encoder: Encoder, source: LabeledArraySource) -> NDArray[np.float64]:
    return embed(encoder, source.images).astype(np.float64)


def _evaluation(study: StudyFile, data: LabeledImages, table: EvaluationTable) -> Evaluation:
    simulation = study.simulation
    partition = simulation.partition if simulation is not None else None
    dealt = (
        f"Dirichlet({partition.alpha:g}) over classes"
        if isinstance(partition, DirichletPartition)
        else "evenly"
    )
    return Evaluation(
        dataset=data.description,
        classes=data.classes,
        train_records=table.train_records,
        test_records=table.test_records,
        labels_per_class=table.labels_per_class,
        partition=f"{dealt}, {simulation.sites if simulation is not None else 0} sites",
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
    sentences = [_against(table, name) for name in reversed(baselines)]
    start = baselines[-1]
    gained = any(
        comparison.verdict is Verdict.BETTER
        for comparison in table.comparisons
        if comparison.baseline == start
    )
    if isinstance(study.privacy, LocalPrivacyPlan) and not gained:
        sentences.insert(1, WHERE_IT_PAYS)
    return tuple(sentences)


def _against(table: EvaluationTable, baseline: str) -> str:
    """One sentence: where the encoder is better than a baseline, worse, or neither."""
    comparisons = [c for c in table.comparisons if c.baseline == baseline]
    parts = []
    for verdict in (Verdict.BETTER, Verdict.WORSE):
        found = [c for c in comparisons if c.verdict is verdict]
        if found:
            measures = ", ".join(
                f"{_COLUMNS[c.measure]} {100 * c.difference.value:+.1f} points" for c in found
            )
            parts.append(f"{verdict.value} than {_IN_A_SENTENCE[baseline]} ({measures})")
    if not parts:
        return f"This encoder adds nothing measurable over {_IN_A_SENTENCE[baseline]}."
    return f"This encoder is {' and '.join(parts)}."
