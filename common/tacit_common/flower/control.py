"""The coordinator's commands to its SuperLink: nodes and runs.

Flower's Control API has no authentication of its own. It listens on loopback alone; the
gateway lets nothing of it through.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from tacit_common.errors import IdentityError, LinkError, UsageError
from tacit_common.flower.http import link_errors, make_client
from tacit_common.flower.transport import Bounds

_LARGEST_ANSWER = 64 * 1024 * 1024

# A run of Flower needs a bundle. Ours holds this description and no code: the executor and
# the sites run what is installed, and look at nothing in here but the run's name.
_BUNDLE = b"""\
[project]
name = "tacit"
version = "1.0.0"
description = "Names a run. Holds no code: Tacit runs what is installed."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "tacit"
fab-include = ["/pyproject.toml"]

[tool.flwr.app.components]
serverapp = "tacit_server.deployment.run_task:app"
clientapp = "tacit_client.deployment.agent:app"

[tool.flwr.app.config]
run = ""
"""


@dataclass(frozen=True)
class NodeState:
    """A node as the SuperLink sees it."""

    node_id: int
    public_key: bytes
    online: bool
    alive_until: float | None
    """Seconds since 1970 until which its last heartbeat counts it as alive; None if never seen."""
    connected_at: str | None = None
    """When it last connected, as the SuperLink writes it: another text each time."""

    @property
    def last_heartbeat(self) -> float | None:
        """Seconds since 1970, near enough for a person."""
        promise = HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL
        return None if self.alive_until is None else self.alive_until - promise


@dataclass(frozen=True)
class FlowerRun:
    """A run as the SuperLink sees it."""

    flower_run: int
    status: str
    details: str

    @property
    def is_over(self) -> bool:
        """Whether it will not go on by itself."""
        return self.status.startswith("finished")


def node_public_key(openssh_key: str) -> bytes:
    """A node's public key as Flower writes it in a request's header.

    Raises:
        IdentityError: it is no elliptic curve key in OpenSSH's format.
    """
    try:
        key = load_ssh_public_key(openssh_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey):
        raise IdentityError(
            "a node key cannot be used",
            why="it is not an elliptic curve key in OpenSSH's format",
            fix="ask the site for the card that `tacit site init` made",
        )
    return public_key_to_bytes(key)


class Control:
    """Commands to the SuperLink at a loopback address. Use it as a context manager."""

    def __init__(self, address: str, ca_certificate: bytes) -> None:
        self._address = address
        self._client = make_client(
            ControlHttpClient,
            address,
            ca_certificate,
            component="Tacit",
            bounds=Bounds(answer=_LARGEST_ANSWER),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def register_node(self, public_key: bytes, name: str) -> None:
        """Let a node in by its public key (see `node_public_key`).

        Raises:
            IdentityError: the SuperLink does not take the key, or has it already.
            LinkError: the SuperLink does not answer.
        """
        try:
            with link_errors(self._address):
                self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))
        except LinkError as error:
            if error.status is None or error.status >= httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            raise IdentityError(
                f"the node key of '{name}' is not accepted",
                why="it is no key that Flower takes, or it is registered already",
                fix="ask the site for the card that `tacit site init` made",
            ) from None

    def unregister_node(self, node_id: int) -> None:
        """Shut a node out.

        Raises:
            LinkError: the SuperLink does not answer, or does not know it.
        """
        with link_errors(self._address):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[NodeState]:
        """All nodes that were let in, and not shut out since.

        Raises:
            LinkError: the SuperLink does not answer.
        """
        with link_errors(self._address):
            answer = self._client.ListNodes(ListNodesRequest())
        return [
            NodeState(
                node.node_id,
                node.public_key,
                online=node.status == "online",
                alive_until=node.online_until or None,
                connected_at=node.last_activated_at or None,
            )
            for node in answer.nodes_info
            if node.status != NodeStatus.UNREGISTERED  # Flower lists these for ever
        ]

    def start_run(self, name: str) -> int:
        """Start a run whose only content is `name`; returns its number.

        Raises:
            LinkError: the SuperLink does not answer.
        """
        content, _ = build_fab_from_files({"pyproject.toml": _BUNDLE})
        request = StartRunRequest(
            fab=fab_to_proto(Fab("", content, {})),
            override_config=user_config_to_proto({"run": name}),
        )
        with link_errors(self._address):
            answer = self._client.StartRun(request)
        if not answer.HasField("run_id"):
            raise UsageError(
                "the run cannot be started",
                why="the SuperLink does not accept it",
                fix="look at logs/superlink.log in the coordinator's folder",
            )
        return int(answer.run_id)

    def stop_run(self, flower_run: int) -> None:
        """End a run.

        Raises:
            LinkError: the SuperLink does not answer, or the run is over.
        """
        with link_errors(self._address):
            self._client.StopRun(StopRunRequest(run_id=flower_run))

    def runs(self) -> dict[int, FlowerRun]:
        """All runs that the SuperLink knows, by number.

        Raises:
            LinkError: the SuperLink does not answer.
        """
        with link_errors(self._address):
            answer = self._client.ListRuns(ListRunsRequest())
        return {
            number: FlowerRun(
                number,
                f"{run.status.status}:{run.status.sub_status}".rstrip(":"),
                run.status.details,
            )
            for number, run in answer.run_dict.items()
        }
