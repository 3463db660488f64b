"""Engines for one pair of apps: one process, or Flower's simulation on Ray; see also `pool`.

The ServerApp and the ClientApp are those of a deployment. In one process they meet on a
`Grid` that calls the ClientApp directly; on Ray they meet through Flower.
"""

import copy
import importlib.util
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    Context,
    Message,
    RecordDict,
)
from flwr.clientapp import ClientApp

from tacit_client.app import make_client_app
from tacit_client.site import Site
from tacit_common.errors import UsageError
from tacit_common.flower.apps import begin_task, make_context
from tacit_server.app import make_server_app
from tacit_server.exchange import Exchange
from tacit_simulations.grid import RUN, SERVER_NODE, LocalGrid, answer_of

ResultT = TypeVar("ResultT")

# Flower narrates every aggregation; the run's own log says it once.
logging.getLogger("flwr").setLevel(logging.ERROR)

_CONNECT_S, _CONNECT_POLL_S = 60.0, 0.05  # for Flower's simulation to register its nodes


@dataclass(frozen=True)
class RayOptions:
    """How Flower's simulation engine uses Ray."""

    address: str | None = None  # of a running cluster; None starts one on this machine
    cpus_per_site: int = 1
    gpus_per_site: float = 0.0


def run_in_process(
    coordinate: Callable[[Exchange], ResultT], open_site: Callable[[int], Site], sites: int
) -> ResultT:
    """Run the server and all sites in this process and return what `coordinate` returns."""
    begin_task(run_id=RUN, node_id=SERVER_NODE)
    client_app = make_client_app(lambda context: open_site(_partition(context)))
    grid = InProcessGrid(client_app, sites)
    results: list[ResultT] = []
    server_app = make_server_app(lambda exchange: results.append(coordinate(exchange)))
    server_app(grid, make_context(run_id=RUN, node_id=SERVER_NODE, node_config={}))
    return results[0]


class InProcessGrid(LocalGrid):
    """Delivers messages by calling the ClientApp, one a pull, so that replies stream.

    Both directions are copied: neither side can reach into the other's objects.
    """

    def __init__(self, client_app: ClientApp, sites: int) -> None:
        super().__init__(sites)
        self._client_app = client_app
        self._waiting: deque[tuple[str, Message]] = deque()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; work begins with the first pull."""
        queued = [(self._name(message), message) for message in messages]
        self._waiting.extend(queued)
        return [name for name, _ in queued]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let the next site work and return its reply."""
        wanted = message_ids if isinstance(message_ids, Sequence) else list(message_ids)
        while self._waiting:
            name, message = self._waiting.popleft()
            if name in wanted:
                reply = answer_of(self._client_app, _copy(message), self._sites)
                return [reply if reply.has_error() else _copy(reply)]
        return []


def run_on_ray(
    coordinate: Callable[[Exchange], ResultT],
    open_site: Callable[[int], Site],
    sites: int,
    options: RayOptions,
) -> ResultT:
    """Run the server in this process and the sites in Ray's, by Flower's simulation engine.

    Ray listens on every interface of the machine, and has no authentication of its own:
    use it behind a firewall. (It replaces 127.0.0.1 by the machine's address.)

    Raises:
        UsageError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "engine 'ray' is not installed",
            why="Ray is an optional dependency",
            fix="pip install 'tacit[ray]', or leave out --engine ray",
        )
    from flwr.simulation import run_simulation  # noqa: PLC0415 - half a second, for Ray alone

    results: list[ResultT] = []

    def coordinate_when_connected(exchange: Exchange) -> None:
        # Flower starts the server before it registers the nodes.
        deadline = time.monotonic() + _CONNECT_S
        while len(exchange.node_ids()) < sites and time.monotonic() < deadline:
            time.sleep(_CONNECT_POLL_S)
        results.append(coordinate(exchange))

    init_args: dict[str, ConfigRecordValues] = (
        {} if options.address is None else {"address": options.address}
    )
    run_simulation(
        server_app=make_server_app(coordinate_when_connected),
        client_app=make_client_app(lambda context: open_site(_partition(context))),
        num_supernodes=sites,
        backend_name="ray",
        backend_config={
            "init_args": init_args,
            "client_resources": {
                "num_cpus": options.cpus_per_site,
                "num_gpus": options.gpus_per_site,
            },
        },
    )
    return results[0]


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _copy(message: Message) -> Message:
    """The same message in new containers; bytes and texts are immutable and shared."""
    copied = RecordDict()
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            copied[name] = ArrayRecord(
                {
                    key: Array(array.dtype, tuple(array.shape), array.stype, array.data)
                    for key, array in record.items()
                }
            )
        elif isinstance(record, ConfigRecord) and all(type(v) is str for v in record.values()):
            copied[name] = ConfigRecord(dict(record))
        else:
            copied[name] = copy.deepcopy(record)
    duplicate = copy.copy(message)
    duplicate.content = copied
    return duplicate
