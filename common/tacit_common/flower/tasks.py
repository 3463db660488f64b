"""Taking up a run as its ServerApp, from a SuperLink in process isolation.

Flower's own executor would unpack and run the code in the run's bundle. This one only
learns which run it is.
"""

from types import TracebackType
from typing import Self

from flwr.common.constant import SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.serverapp import Grid
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from tacit_common.errors import LinkError
from tacit_common.flower.grid import SuperLinkGrid
from tacit_common.flower.http import link_errors, make_client
from tacit_common.flower.pieces import LARGEST_PIECE
from tacit_common.flower.transport import Bounds

_SERVER_APP = "flwr-serverapp"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_LARGEST_ANSWER = 64 * 1024 * 1024


class TaskQueue:
    """Runs that wait for a ServerApp. Needs the secret that the SuperLink was started with."""

    def __init__(self, address: str, ca_certificate: bytes, secret: bytes) -> None:
        self._address = address
        self._client = make_client(
            RuntimeHttpClient,
            address,
            ca_certificate,
            component="SuperExec",
            interceptors=[
                SuperExecAuthHttpInterceptor(
                    master_secret=secret, protected_methods=frozenset({_ACQUIRE})
                )
            ],
            bounds=Bounds(answer=_LARGEST_ANSWER),
        )

    def acquire(self) -> str | None:
        """The token of the next run; None if none waits.

        Raises:
            LinkError: the SuperLink does not answer, or does not accept the secret.
        """
        with link_errors(self._address):
            answer = self._client.AcquireTask(
                AcquireTaskRequest(supported_task_types=[_SERVER_APP])
            )
        return answer.token or None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class RunTask:
    """One run, taken up by its token. Use it as a context manager.

    While it is open heartbeats are sent. If the run is stopped, SIGINT is raised in this
    process. It ends as completed if the block does, and as failed otherwise.
    """

    def __init__(self, address: str, ca_certificate: bytes, token: str) -> None:
        self._address = address
        self._retries = make_simple_http_retry_invoker()
        self._client = make_client(
            RuntimeHttpClient,
            address,
            ca_certificate,
            component="flwr-serverapp",
            interceptors=[RuntimeTokenHttpInterceptor(token=token)],
            bounds=Bounds(answer=_LARGEST_ANSWER, piece=LARGEST_PIECE),
            retries=self._retries,
        )
        self._heart = HeartbeatSender(make_task_heartbeat_fn_http(self._client))
        self.name = ""

    @property
    def grid(self) -> Grid:
        """The nodes that the run may speak to."""
        return self._grid

    def __enter__(self) -> Self:
        self._heart.start()
        with link_errors(self._address):
            task = self._client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = task.task_id
        TaskIdentity.run_id = task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        run = run_from_proto(task.run)
        self._grid = SuperLinkGrid(self._address, self._client, run)
        self.name = str(run.override_config.get("run", ""))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._retries.max_tries = 1
        status = SubStatus.COMPLETED if error is None else SubStatus.FAILED
        try:
            with link_errors(self._address):
                self._client.PushTaskOutput(
                    # The type alone: the text of an error stays in the run's own log.
                    PushTaskOutputRequest(
                        sub_status=status, details="" if kind is None else kind.__name__
                    )
                )
        except (LinkError, RunNotRunningException):
            pass  # the SuperLink knows already, or will notice by the missing heartbeat
        if self._heart.is_running:
            self._heart.stop()
        self._client.close()
