"""The floor: one site after the other in plain PyTorch, without privacy or federation."""

import torch

from tacit_simulations.benchmarks.peers.clock import RoundTimes, Samples
from tacit_simulations.benchmarks.peers.task import load_flat, read_dealt, started_model, to_flat


def rounds(folder: str, name: str) -> Samples:
    """Federated averaging by hand: one resident model, its parameters written in place.

    Where records are drawn at random, a step takes a random batch of the expected size.
    """
    torch.set_num_threads(1)
    dealt = read_dealt(folder)
    work = dealt.work
    sites = [dealt.site(index) for index in range(work.sites)]
    model = started_model(dealt)
    parameters = to_flat(model)
    clock = RoundTimes()
    clock.begin()
    for _ in range(1 + work.rounds):
        total = torch.zeros_like(parameters)
        for images in sites:
            load_flat(model, parameters)
            optimizer = torch.optim.SGD(model.parameters(), lr=work.learning_rate)
            for _ in range(work.local_steps):
                batch = images
                if work.batch < len(images):
                    batch = images[torch.randperm(len(images))[: work.batch]]
                optimizer.zero_grad()
                model(batch).mean().backward()
                optimizer.step()
            total += to_flat(model) - parameters
        parameters = parameters + total / work.sites
        clock.end_round()
    dealt.finish(name, parameters.numpy())
    return clock.samples
