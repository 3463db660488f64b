"""How much a study's model takes is known before a byte of it is allocated."""

import tracemalloc
from collections.abc import Callable

import pytest
import torch

from tacit_common.model import build_model, memory_of
from tacit_common.objectives.contrastive import BankContrast
from tacit_common.plugins import PluginTable
from tacit_common.study import Study

MakeStudy = Callable[..., Study]

BANK = 'objective={ kind = "bank_contrast", bank_size = 32, projection_dim = 8 }'


@pytest.mark.parametrize("style", ["mae", "simmim"])
def test_it_is_the_size_of_the_model_that_is_built(make_study: MakeStudy, style: str) -> None:
    study = make_study(f'objective.style="{style}"')
    model, _ = build_model(study, PluginTable())
    assert memory_of(study) == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_a_public_bank_counts(make_study: MakeStudy) -> None:
    study = make_study(BANK, "views.max_shift=0.1")
    model, objective = build_model(study, PluginTable())
    assert isinstance(objective, BankContrast)
    bank = 4 * 32 * 64  # images of 8 × 8 in one channel
    encoder = 4 * sum(parameter.numel() for parameter in model.encoder.parameters())
    assert memory_of(study) == encoder + bank


def test_a_model_that_no_machine_holds_is_counted_in_little_memory(make_study: MakeStudy) -> None:
    study = make_study("encoder.width=8192", "encoder.depth=200", "encoder.heads=8")
    tracemalloc.start()
    try:
        size = memory_of(study)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 2**39
    assert peak < 2**27
    assert torch.zeros(1).device.type == "cpu"  # the device context has ended
