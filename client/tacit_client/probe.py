"""The site's half of a probe: statistics of labelled features, made private."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tacit_client.records import readable_labels, readable_records, required_image_shape
from tacit_client.resident import ResidentModel
from tacit_client.units import Units
from tacit_common.data import DataSource, LabeledDataSource
from tacit_common.encoders import embed
from tacit_common.errors import DataError
from tacit_common.messages import ProbeReply, ProbeRequest
from tacit_common.plugins import PluginTable
from tacit_common.privacy.clipping import CompensatedSum
from tacit_common.privacy.noise import LatticeGaussian, RandomSource
from tacit_common.probes import PublicBasis, build_probe
from tacit_common.study import EncoderPlan
from tacit_common.training import load_parameters


def require_labels(source: DataSource) -> LabeledDataSource:
    """The source, if its records have labels; asked before a probe is paid for.

    Raises:
        DataError: they have none.
    """
    if isinstance(source, LabeledDataSource):
        return source
    raise DataError(
        "a probe needs labels",
        why="the site's data source has no label_of",
        fix="give the site labelled data, or leave the probe out of the study",
    )


def statistics(
    request: ProbeRequest,
    source: LabeledDataSource,
    units: Units,
    resident: ResidentModel,
    plugins: PluginTable,
    random: RandomSource,
) -> ProbeReply:
    """The probe's statistics over all units of the site, with noise where the plan has it.

    A unit counts once, whatever it holds: its statistics are the mean over its records, at
    most the contribution cap of them, so their norm is at most that of one record.

    Records are embedded and counted one at a time. In a batch, matrix kernels round a row
    differently for different numbers of rows; parameters or a basis made for it could turn
    these last bits into whole features, and the private number of records would show.
    """
    plan = request.plan
    probe = build_probe(plan.study.probes[plan.probe], plugins)
    load_parameters(resident.model, request.parameters)
    basis = PublicBasis(request.basis_mean, request.basis_components)
    private = plan.noise_multiplier is not None
    nobody = probe.statistics(
        np.zeros((0, len(request.basis_mean))), np.zeros(0, dtype=np.int64), basis
    )  # [S], zeros
    total = CompensatedSum(len(nobody))
    for unit in range(len(units)):
        of_unit = []
        for index in units.records(unit, random):
            labelled = _read(source, int(index), plan.study.encoder, private=private)
            if labelled is not None:
                record, label = labelled
                features = embed(resident.model.encoder, record[None]).astype(np.float64)  # [1, D]
                of_unit.append(probe.statistics(features, label, basis))
        if of_unit:
            total.add(torch.from_numpy(np.mean(of_unit, axis=0)))
    if plan.noise_multiplier is None:
        return ProbeReply(total.value.numpy())
    mechanism = LatticeGaussian(
        l2_clip_norm=probe.l2_sensitivity,
        noise_multiplier=plan.noise_multiplier,
        dimension=len(nobody),
        source=random,
    )
    return ProbeReply(mechanism.apply(total.value).numpy())


def _read(
    source: LabeledDataSource, index: int, encoder: EncoderPlan, *, private: bool
) -> tuple[Tensor, NDArray[np.int64]] | None:
    """One record and its label [1]; None if it cannot be used and must not be an error."""
    if not private:
        return source[index], np.array([source.label_of(index)], dtype=np.int64)
    records, kept = readable_records(source, np.array([index]), required_image_shape(encoder))
    labels, read = readable_labels(source, kept)
    return (records[0], labels) if read.any() else None
