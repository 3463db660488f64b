"""What the tests of book-keeping share: tiny losses, plain autograd as the reference, a check."""

from typing import Any

import torch
from torch import Tensor, nn

from tacit_client.book_keeper import clip_weights
from tacit_client.book_keeping import BookKeepingGradients
from tacit_client.tape import Tape
from tacit_common.objectives.contract import Coupling, Objective, PretrainModel, Views
from tacit_common.training import seeded_generator, trained_parameters

C = 0.5


class LossOfFirstView:
    """An objective whose loss of a row is the squared length of what the model makes of it."""

    coupling = Coupling.NONE

    def build_head(self, encoder: object) -> nn.Module:
        return nn.Identity()

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (batch,)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return model.head(model.encoder(views[0])).flatten(1).square().sum(dim=1)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def clipped(
    path: Any,
    units: list[Tensor],
    *,
    norm: float = C,
    augmentations: int = 1,
    physical_batch: int = 64,
) -> Tensor:
    total: Tensor = path.clipped_sum(
        units,
        torch.Generator().manual_seed(0),
        l2_clip_norm=norm,
        augmentations=augmentations,
        physical_batch=physical_batch,
    )
    return total


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((actual - expected).norm() / expected.norm())
    assert error <= tolerance, f"relative error {error:.2g}"


def unclipped_rows(model: PretrainModel, objective: Objective, batch: Tensor) -> Tensor:
    """Gradient of every record by plain autograd, one after another: float64 [B, P]."""
    rows = []
    for record in batch:
        loss = objective.loss(model, (record[None],)).sum()
        parameters = [p for _, p in trained_parameters(model)]
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
        rows.append(torch.cat([part.reshape(-1) for part in parts]).double())
    return torch.stack(rows)


def norms_of(path: BookKeepingGradients, batch: Tensor) -> Tensor:
    """The norm that each record is clipped by, read off its weight at a tiny clip norm."""
    used = torch.ones(len(batch), 1, dtype=torch.bool)
    keeper = path._keeper
    tape = Tape(keeper._layers, rows=len(batch))
    with tape.recording():
        tape.backward(path._loss((batch,)))
    counts = torch.ones(len(batch), dtype=torch.float64)
    return 1e-30 / clip_weights(tape.pairs(used, len(batch)), counts, 1e-30)


def check_layer(layer: nn.Module, batch: Tensor) -> None:
    """Norms within 1e-12 and sums within 1e-11 of a loop, with a layer before and after."""
    model, objective = PretrainModel(layer, nn.Identity()).double(), LossOfFirstView()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded_generator("layer")))
    path = BookKeepingGradients(model, objective)
    rows = unclipped_rows(model, objective, batch)
    assert torch.allclose(norms_of(path, batch), rows.norm(dim=1), rtol=1e-12, atol=0)
    norm = float(rows.norm(dim=1).median())
    expected = (rows * (norm / rows.norm(dim=1)).clamp(max=1)[:, None]).sum(dim=0)
    assert_close(clipped(path, list(batch.split(1)), norm=norm), expected, 1e-11)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded_generator(*shape), dtype=torch.float64)
