"""Flower's simulation on Ray; under privacy its client trains with Opacus.

The client is that of Flower's own example (`examples/opacus`): in every round it makes a
model, an optimiser and a loader, and hands them to `PrivacyEngine.make_private`. The example
also asks the engine for ε after every round: that is measured apart.
"""

import os
import warnings
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from opacus import PrivacyEngine
from torch.utils.data import DataLoader, TensorDataset

from tacit_simulations.benchmarks.peers.clock import RoundTimes, Samples
from tacit_simulations.benchmarks.peers.task import (
    Autoencoder,
    Dealt,
    Vector,
    read_dealt,
    started_model,
)


def rounds(folder: str, name: str, cores: int, epsilon: bool = False) -> Samples:
    """`run_simulation` with a FedAvg strategy; `cores` clients at a time, one core each.

    With `epsilon` the client also asks what its round cost, and one round alone counts.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    dealt = read_dealt(folder)
    strategy = TimedFedAvg(dealt.work.sites)
    server_app, client_app = ServerApp(), ClientApp()

    @server_app.main()
    def serve(grid: Grid, _: Context) -> None:
        initial = ArrayRecord(started_model(dealt).state_dict())
        counted = 1 if epsilon else dealt.work.rounds
        result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=1 + counted)
        dealt.finish(name, _flat(result.arrays))

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        site = int(context.node_config["partition-id"])
        model = Autoencoder(dealt.work.hidden)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        if dealt.noise_multiplier is None:
            _train(model, dealt, site)
        else:
            _train_privately(model, dealt, site, epsilon=epsilon)
        content = RecordDict(
            {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"num-examples": dealt.work.records}),
            }
        )
        return Message(content=content, reply_to=message)

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=dealt.work.sites,
        backend_config={
            "init_args": {"num_cpus": cores},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return strategy.clock.samples


class TimedFedAvg(FedAvg):
    """FedAvg over all sites that notes when rounds end."""

    def __init__(self, sites: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
        self.clock = RoundTimes()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's interface; the first call waits for all sites to be there."""
        messages = super().configure_train(server_round, arrays, config, grid)
        if server_round == 1:
            self.clock.begin()
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's interface.

        Raises:
            RuntimeError: some site did not answer, so that the round was not the whole work.
        """
        answers = list(replies)
        failed = [answer for answer in answers if answer.has_error()]
        if failed:
            raise RuntimeError(f"{len(failed)} sites failed: {failed[0].error}")
        aggregated = super().aggregate_train(server_round, answers)
        self.clock.end_round()
        return aggregated


def _train(model: Autoencoder, dealt: Dealt, site: int) -> None:
    work = dealt.work
    loader = DataLoader(_data(str(dealt.folder), site), batch_size=work.batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=work.learning_rate)
    for _ in range(work.epochs):
        for (images,) in loader:
            optimizer.zero_grad()
            model(images).mean().backward()
            optimizer.step()


def _train_privately(model: Autoencoder, dealt: Dealt, site: int, *, epsilon: bool) -> None:
    work = dealt.work
    engine = PrivacyEngine(secure_mode=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its randomness is not secure, once a round
        private, optimizer, loader = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=work.learning_rate),
            data_loader=DataLoader(_data(str(dealt.folder), site), batch_size=work.batch),
            noise_multiplier=dealt.noise_multiplier,
            max_grad_norm=work.l2_clip_norm,
        )
        for _ in range(work.epochs):
            for (images,) in loader:
                optimizer.zero_grad()
                private(images).mean().backward()
                optimizer.step()
        if epsilon:
            engine.get_epsilon(delta=work.delta)
    private.remove_hooks()


@cache
def _data(folder: str, site: int) -> TensorDataset:
    """The site's images, read once a worker."""
    torch.set_num_threads(1)
    return TensorDataset(read_dealt(folder).site(site))


def _flat(arrays: ArrayRecord) -> Vector:
    parts = [value.numpy().reshape(-1) for value in arrays.to_torch_state_dict().values()]
    flat: Vector = np.concatenate(parts)
    return flat
