"""Two engines for one pair of apps: one process, or Flower's simulation on Ray.

The ServerApp and the ClientApp are those of a deployment. In one process they meet on a
`Grid` that calls the ClientApp directly; on Ray they meet through Flower.
"""

import copy
import importlib.util
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecordValues,
    Context,
    Error,
    Message,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from tacit_client.app import make_client_app
from tacit_client.site import Site
from tacit_common.errors import UsageError
from tacit_common.flower.apps import Run, begin_task, make_context
from tacit_server.app import make_server_app
from tacit_server.exchange import Exchange

ResultT = TypeVar("ResultT")

# Flower narrates every aggregation; the run's own log says it once.
logging.getLogger("flwr").setLevel(logging.ERROR)

_RUN, _SERVER_NODE = 1, 1
_CLIENT_FAILED = 1  # Flower's ErrorCode for a ClientApp that raised
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
    begin_task(run_id=_RUN, node_id=_SERVER_NODE)
    client_app = make_client_app(lambda context: open_site(_partition(context)))
    grid = InProcessGrid(client_app, sites)
    results: list[ResultT] = []
    server_app = make_server_app(lambda exchange: results.append(coordinate(exchange)))
    server_app(grid, make_context(run_id=_RUN, node_id=_SERVER_NODE, node_config={}))
    return results[0]


class InProcessGrid(Grid):
    """Delivers messages by calling the ClientApp, one a pull, so that replies stream.

    Both directions are copied: neither side can reach into the other's objects.
    """

    def __init__(self, client_app: ClientApp, sites: int) -> None:
        self._client_app = client_app
        self._contexts = {
            _SERVER_NODE + 1 + index: make_context(
                run_id=_RUN,
                node_id=_SERVER_NODE + 1 + index,
                node_config={"partition-id": index, "num-partitions": sites},
            )
            for index in range(sites)
        }
        self._waiting: deque[Message] = deque()
        self._sent = 0
        self._run = Run.create_empty(run_id=_RUN)

    def set_run(self, run: Run) -> None:
        """Flower's interface; a run is set from the start."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's interface."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All sites: in one process they are always connected."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; work begins with the first pull."""
        identifiers = []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = str(self._sent)
            identifiers.append(str(self._sent))
            self._waiting.append(message)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let the next site work and return its reply."""
        wanted = set(message_ids)
        while self._waiting:
            message = self._waiting.popleft()
            if message.metadata.message_id in wanted:
                return [self._deliver(message)]
        return []

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 - nothing travels, so nothing is late
    ) -> list[Message]:
        """All replies at once."""
        return [
            reply for name in self.push_messages(messages) for reply in self.pull_messages([name])
        ]

    def _deliver(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            return _copy(self._client_app(_copy(message), context))
        except Exception:  # what Flower does for a ClientApp that raises
            return Message(Error(_CLIENT_FAILED, "the ClientApp raised"), reply_to=message)


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
    """The same message in new containers; bytes and scalars are immutable and shared."""
    copied = RecordDict()
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            copied[name] = ArrayRecord(
                {
                    key: Array(array.dtype, tuple(array.shape), array.stype, array.data)
                    for key, array in record.items()
                }
            )
        else:
            copied[name] = copy.deepcopy(record)
    duplicate = copy.copy(message)
    duplicate.content = copied
    return duplicate
