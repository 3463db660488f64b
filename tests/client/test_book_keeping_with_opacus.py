"""Our clipped sums under Opacus's sampler, noise and accountant: for use without the rest."""

import torch
from opacus.accountants import RDPAccountant
from opacus.data_loader import DPDataLoader
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from tacit_client.book_keeper import BookKeeper
from tacit_common.training import seeded_generator

C, NOISE, STEPS_PER_EPOCH = 1.0, 0.7, 8


def labelled(count: int) -> tuple[Tensor, Tensor]:
    """Points on either side of a line."""
    x = torch.randn(count, 2, generator=seeded_generator("points"))
    return x, (x.sum(dim=1) > 0).long()


def test_training_with_opacus_sampler_noise_and_accountant() -> None:
    x, y = labelled(400)
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x) // STEPS_PER_EPOCH)
    poisson = DPDataLoader.from_data_loader(loader, generator=seeded_generator("sample"))
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    accountant = RDPAccountant()
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=NOISE,
        max_grad_norm=C,
        expected_batch_size=len(x) // STEPS_PER_EPOCH,
        generator=seeded_generator("noise"),
    )
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=1 / STEPS_PER_EPOCH))
    keeper = BookKeeper(model)
    for _ in range(3):
        for points, labels in poisson:
            optimizer.zero_grad()
            keeper.fill_gradients(
                lambda points=points, labels=labels: cross_entropy(
                    model(points), labels, reduction="none"
                ),
                rows=len(points),
                l2_clip_norm=C,
            )
            optimizer.step()
    assert accountant.history == [(NOISE, 1 / STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH)]
    assert 0 < accountant.get_epsilon(1e-5) < 20
    with torch.no_grad():
        right = (model(x).argmax(dim=1) == y).float().mean()
    assert right > 0.9


def test_gradients_are_the_sum_of_clipped_rows_and_zero_for_none() -> None:
    x, y = labelled(20)
    model = nn.Linear(2, 2)
    keeper = BookKeeper(model)
    keeper.fill_gradients(
        lambda: cross_entropy(model(x), y, reduction="none"), rows=20, l2_clip_norm=0.1
    )
    assert model.weight.grad is not None
    assert model.bias.grad is not None
    found = torch.cat([model.weight.grad.flatten(), model.bias.grad])
    expected = torch.zeros(6)
    for point, label in zip(x, y, strict=True):
        parts = torch.autograd.grad(cross_entropy(model(point), label), list(model.parameters()))
        row = torch.cat([part.flatten() for part in parts])
        expected += row * min(1.0, 0.1 / float(row.norm()))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    keeper.fill_gradients(lambda: cross_entropy(model(x), y), rows=0, l2_clip_norm=0.1)
    assert not model.weight.grad.any()
