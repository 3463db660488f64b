"""Taking up a run as its ServerApp, from a SuperLink in process isolation.

Flower's own executor would unpack and run the code in the run's bundle. This one only
learns which run it is.
"""

from types import TracebackType
from typing import Self

import httpx
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.serverapp import Grid
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from tacit_common.errors import LinkError
from tacit_common.flower.http import link_errors, make_client

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
            largest_answer=_LARGEST_ANSWER,
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
        self._http_grid = HttpGrid(
            address, insecure=False, root_certificates=ca_certificate, token=token
        )
        self._heart = HeartbeatSender(make_task_heartbeat_fn_http(self._http_grid._runtime_client))
        self.name = ""

    @property
    def grid(self) -> Grid:
        """The nodes that the run may speak to."""
        return self._http_grid

    def __enter__(self) -> Self:
        self._heart.start()
        with link_errors(self._address):
            task = self._http_grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = task.task_id
        TaskIdentity.run_id = task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        run = run_from_proto(task.run)
        self._http_grid.set_run(run)
        self._context = context_from_proto(task.context)
        self.name = str(run.override_config.get("run", ""))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http_grid._retry_invoker.max_tries = 1
        status = SubStatus.COMPLETED if error is None else SubStatus.FAILED
        try:
            with link_errors(self._address):
                self._http_grid._runtime_client.PushTaskOutput(
                    # The type alone: the text of an error stays in the run's own log.
                    PushTaskOutputRequest(
                        sub_status=status, details="" if kind is None else kind.__name__
                    )
                )
        except (LinkError, httpx.HTTPError):
            pass  # the SuperLink will notice by the missing heartbeat
        if self._heart.is_running:
            self._heart.stop()
        self._http_grid.close()
