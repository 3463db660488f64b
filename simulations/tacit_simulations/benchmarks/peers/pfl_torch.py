"""Apple's pfl: `SimulatedBackend` and `FederatedAveraging` with its PyTorch model.

On several cores it is several processes that share the sites out and sum their statistics
by torch.distributed (gloo), which pfl starts by itself from PFL_WORKER_ADDRESSES.

Its differential privacy is another promise than DP-SGD's: the unit is the site. The update
of a site is clipped, and Gaussian noise is added to the sum; no gradient of a record is
formed. It clips to `l2_clip_norm` and takes the noise multiplier of the work.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tacit_simulations.benchmarks.peers.clock import RoundTimes, Samples


def rounds(folder: str, name: str, processes: int) -> Samples:
    """Rounds over all sites by `processes` of one thread; this one is the first."""
    if processes > 1:
        addresses = ",".join(f"127.0.0.1:{_free_port()}" for _ in range(processes))
        os.environ |= {"PFL_WORKER_ADDRESSES": addresses, "GLOO_SOCKET_IFNAME": "lo"}
    others = [_start_rank(rank, folder, f"{name}-rank-{rank}") for rank in range(1, processes)]
    try:
        samples = rounds_of_rank(folder, name, 0)
        for other in others:
            other.wait(60.0)
    finally:
        for other in others:
            if other.poll() is None:
                other.kill()
    return samples


def rounds_of_rank(folder: str, name: str, rank: int) -> Samples:
    """The share of one process."""
    os.environ["PFL_WORKER_RANK"] = str(rank)
    # Imported here: pfl connects its processes when it is imported.
    from tacit_simulations.benchmarks.peers.pfl_run import run  # noqa: PLC0415

    clock = RoundTimes()
    run(folder, name, clock)
    return clock.samples


def _start_rank(rank: int, folder: str, name: str) -> "subprocess.Popen[bytes]":
    arguments = json.dumps({"folder": folder, "name": name, "rank": rank})
    return subprocess.Popen(  # noqa: S603 - our own module
        [
            sys.executable,
            "-m",
            "tacit_simulations.benchmarks.child",
            "peers.pfl_torch:rounds_of_rank",
            arguments,
            str(Path(folder) / f"{name}.json"),
        ]
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
