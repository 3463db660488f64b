"""The site's half of a probe: statistics of labelled features, made private."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tacit_client.records import read_records, readable_labels, readable_records
from tacit_client.resident import ResidentModel
from tacit_common.data import DataSource, LabeledDataSource
from tacit_common.encoders import embed, image_shape
from tacit_common.errors import DataError
from tacit_common.plugins import PluginTable
from tacit_common.privacy.noise import LatticeGaussian, RandomSource
from tacit_common.probes import PublicBasis, build_probe
from tacit_common.training import load_parameters
from tacit_common.wire import ProbeReply, ProbeRequest


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
    resident: ResidentModel,
    plugins: PluginTable,
    random: RandomSource,
) -> ProbeReply:
    """The probe's statistics over all records of the site, with noise where the plan has it."""
    plan = request.plan
    probe = build_probe(plan.study.probes[plan.probe], plugins)
    load_parameters(resident.model, request.parameters)
    encoder, width = resident.model.encoder, len(request.basis_mean)
    basis = PublicBasis(request.basis_mean, request.basis_components)
    everyone = np.arange(len(source))
    if plan.noise_multiplier is None:
        labels = np.array([source.label_of(int(i)) for i in everyone], dtype=np.int64)
        features = _features(encoder, read_records(source, everyone), width)
        return ProbeReply(probe.statistics(features, labels, basis))
    records, kept = readable_records(source, everyone, image_shape(plan.study.encoder))
    labels, read = readable_labels(source, kept)
    features = _features(encoder, records, width)[read]
    exact = probe.statistics(features, labels[read], basis)  # [S]
    mechanism = LatticeGaussian(
        l2_clip_norm=probe.l2_sensitivity,
        noise_multiplier=plan.noise_multiplier,
        dimension=len(exact),
        source=random,
    )
    return ProbeReply(mechanism.apply(torch.from_numpy(exact)).numpy())


def _features(encoder: nn.Module, records: Tensor, width: int) -> NDArray[np.float64]:
    """Features [N, D] of `records`, D = `width`; no records give [0, D]."""
    if len(records) == 0:
        return np.zeros((0, width))
    return embed(encoder, records).astype(np.float64)
