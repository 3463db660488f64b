"""One site after the other with Opacus: DP-SGD by its hooks, without federation.

As sparing as Opacus allows: the model is wrapped once, and each site's loader made once.
"""

import warnings

import torch
from opacus import GradSampleModule
from opacus.data_loader import DPDataLoader
from opacus.optimizers import DPOptimizer
from torch.utils.data import DataLoader, TensorDataset

from tacit_simulations.benchmarks.peers.clock import RoundTimes, Samples
from tacit_simulations.benchmarks.peers.task import load_flat, read_dealt, started_model, to_flat


def rounds(folder: str, name: str) -> Samples:
    """Local DP-SGD at every site and the mean of the updates, `work.rounds` times and once."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    dealt = read_dealt(folder)
    work = dealt.work
    loaders = [_loader(dealt.site(index), work.batch) for index in range(work.sites)]
    model = GradSampleModule(started_model(dealt))
    parameters = to_flat(model)
    clock = RoundTimes()
    clock.begin()
    for _ in range(1 + work.rounds):
        total = torch.zeros_like(parameters)
        for loader in loaders:
            load_flat(model, parameters)
            optimizer = DPOptimizer(
                torch.optim.SGD(model.parameters(), lr=work.learning_rate),
                noise_multiplier=dealt.noise_multiplier,
                max_grad_norm=work.l2_clip_norm,
                expected_batch_size=work.batch,
            )
            for _ in range(work.epochs):
                for (images,) in loader:
                    optimizer.zero_grad()
                    model(images).mean().backward()
                    optimizer.step()
            total += to_flat(model) - parameters
        parameters = parameters + total / work.sites
        clock.end_round()
    dealt.finish(name, parameters.numpy())
    return clock.samples


def _loader(images: torch.Tensor, batch: int) -> DPDataLoader:
    """Poisson batches of the site's images, as `make_private` draws them."""
    return DPDataLoader.from_data_loader(DataLoader(TensorDataset(images), batch_size=batch))
