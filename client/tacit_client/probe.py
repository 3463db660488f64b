"""The site's half of a probe: statistics of labelled features, made private."""

import numpy as np
import torch
from numpy.typing import NDArray

from tacit_client.records import read_records, readable_records
from tacit_client.resident import ResidentModel
from tacit_client.sampling import Indices
from tacit_common.data import DataSource, LabeledDataSource
from tacit_common.encoders import embed, image_shape
from tacit_common.errors import DataError
from tacit_common.plugins import PluginTable
from tacit_common.privacy.noise import LatticeGaussian, RandomSource
from tacit_common.probes import PublicBasis, build_probe
from tacit_common.training import load_parameters
from tacit_common.wire import ProbeReply, ProbeRequest


def statistics(
    request: ProbeRequest,
    source: DataSource,
    resident: ResidentModel,
    plugins: PluginTable,
    random: RandomSource,
) -> ProbeReply:
    """The probe's statistics over all records of the site, with noise where the plan has it.

    Raises:
        DataError: the site's records have no labels.
    """
    plan = request.plan
    probe = build_probe(plan.study.probes[plan.probe], plugins)
    load_parameters(resident.model, request.parameters)
    everyone = np.arange(len(source))
    if plan.noise_multiplier is None:
        records, kept = read_records(source, everyone), everyone
    else:
        records, kept = readable_records(source, everyone, image_shape(plan.study.encoder))
    if len(kept) == 0:
        features = np.zeros((0, len(request.basis_mean)))
    else:
        features = embed(resident.model.encoder, records).astype(np.float64)  # [N, D]
    basis = PublicBasis(request.basis_mean, request.basis_components)
    exact = probe.statistics(features, _labels(source, kept), basis)  # [S]
    if plan.noise_multiplier is None:
        return ProbeReply(exact)
    mechanism = LatticeGaussian(
        l2_clip_norm=probe.l2_sensitivity,
        noise_multiplier=plan.noise_multiplier,
        dimension=len(exact),
        source=random,
    )
    return ProbeReply(mechanism.apply(torch.from_numpy(exact)).numpy())


def _labels(source: DataSource, indices: Indices) -> NDArray[np.int64]:
    if not isinstance(source, LabeledDataSource):
        raise DataError(
            "a probe needs labels",
            why="the site's data source has no label_of",
            fix="give the site labelled data, or leave the probe out of the study",
        )
    return np.array([source.label_of(int(index)) for index in indices], dtype=np.int64)
