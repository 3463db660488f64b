"""The server's half of a probe: dispatch, sum, solve, and score on public labelled data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tacit_common.encoders import embed
from tacit_common.messages import (
    ProbePlan,
    ProbeReply,
    ProbeRequest,
    Refusal,
    basis_sha256,
    parameters_sha256,
)
from tacit_common.objectives.contract import PretrainModel
from tacit_common.plugins import PluginTable
from tacit_common.probes import build_probe, public_basis, wilson_interval
from tacit_common.strategy import ParameterVector
from tacit_common.training import load_parameters, seeded_generator
from tacit_server.exchange import Failure
from tacit_server.public import public_images
from tacit_server.rounds import Federation, Tally
from tacit_server.run_log import ProbeFinished

_PUBLIC_IMAGES = 1024  # enough for a stable basis, and quick to embed
_LARGEST_STATISTIC = 1e30  # more than any number of records comes to; its square does not overflow


@dataclass(frozen=True)
class LabeledRecords:
    """Public labelled records of the coordinator's own: no site's data."""

    records: Tensor  # [N, ...]
    labels: NDArray[np.int64]  # [N]


def run_probe(
    federation: Federation,
    model: PretrainModel,
    parameters: ParameterVector,
    *,
    number: int,
    when: Literal["before", "after"],
    plugins: PluginTable,
    scoring: LabeledRecords | None,
    progress: Callable[[int, int], None],
) -> ProbeFinished:
    """Ask all sites for the statistics of probe `number`, solve, and score.

    Raises:
        QuorumError: too few sites gave a usable answer.
    """
    study = federation.study
    plan = study.probes[number]
    probe = build_probe(plan, plugins)
    load_parameters(model, parameters)
    generator = seeded_generator(study.seed, "probe basis")
    public = public_images(study, _PUBLIC_IMAGES, generator)
    basis = public_basis(_features(model.encoder, public), plan.project_dim)
    noise_multiplier = federation.schedule.probe_noise_multipliers[number]
    request = ProbeRequest(
        ProbePlan(
            run=federation.run,
            when=when,
            probe=number,
            study=study,
            noise_multiplier=noise_multiplier,
            parameters_sha256=parameters_sha256(parameters),
            basis_sha256=basis_sha256(basis.mean, basis.components),
        ),
        parameters,
        basis.mean,
        basis.components,
    )
    # As at the sites: no records give zeros of the right length.
    nobody = probe.statistics(
        np.zeros((0, len(basis.mean))), np.zeros(0, dtype=np.int64), basis
    )  # [S]
    total, tally = _sum_statistics(federation, request, progress, size=len(nobody))
    tally.require_quorum(federation.participants, study.federation, f"probe '{plan.kind}' {when}")
    classifier = probe.solve(total, basis)
    score = None
    if scoring is not None:
        predicted = classifier.predict(_features(model.encoder, scoring.records))
        score = wilson_interval(int((predicted == scoring.labels).sum()), len(predicted))
    return ProbeFinished(
        when=when,
        after_round=0 if when == "before" else study.federation.rounds,
        probe=number,
        kind=plan.kind,
        answered=tally.answered,
        failed=tally.failed,
        noise_multiplier=noise_multiplier,
        epsilon=plan.epsilon,
        accuracy=score,
    )


def _sum_statistics(
    federation: Federation,
    request: ProbeRequest,
    progress: Callable[[int, int], None],
    *,
    size: int,
) -> tuple[NDArray[np.float64], Tally]:
    participants = federation.participants
    total = np.zeros(size)
    tally = Tally()
    answers = federation.exchange.ask(
        [participant.node_id for participant in participants],
        request,
        federation.study.federation.deadline_s,
    )
    for done, (participant, answer) in enumerate(zip(participants, answers, strict=True), start=1):
        progress(done, len(participants))
        match answer.reply:
            case Refusal(code=code):
                tally.failed[participant.site] = code.value
            case Failure() as failure:
                tally.failed[participant.site] = failure.value
            case ProbeReply(statistics=part) if part.shape == total.shape:
                if not np.isfinite(part).all():
                    tally.failed[participant.site] = Failure.NON_FINITE_UPDATE.value
                elif np.abs(part).max(initial=0.0) > _LARGEST_STATISTIC:
                    tally.failed[participant.site] = Failure.OUTSIZED_UPDATE.value
                else:
                    total += part
                    tally.answered.append(participant.site)
            case _:
                tally.failed[participant.site] = Failure.UNUSABLE_REPLY.value
    return total, tally


def _features(encoder: nn.Module, records: Tensor) -> NDArray[np.float64]:
    return embed(encoder, records).astype(np.float64)
