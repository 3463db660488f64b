"""Taking up a run as its ServerApp, from a SuperLink in process isolation.

Flower's own executor would unpack and run the code in the run's bundle. This one only
learns which run it is.
"""

import signal
import threading
from types import TracebackType
from typing import Self

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import Grid
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
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
_BEAT_S = HEARTBEAT_DEFAULT_INTERVAL / 3
_LAST_BEAT_S = 5.0  # that one on its way has, when the task is given up
_ENDED = (401, 403, 404)  # what is said to the task of a run that is over


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
        # The grid waits for a SuperLink that is away for a while; heartbeat and good-bye do not.
        retries = make_simple_http_retry_invoker()
        self._patient = _task_client(address, ca_certificate, token, retries)
        self._client = _task_client(address, ca_certificate, token, None)
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.name = ""

    @property
    def grid(self) -> Grid:
        """The nodes that the run may speak to."""
        return self._grid

    def __enter__(self) -> Self:
        try:
            with link_errors(self._address):
                task = self._patient.PullTaskInput(PullTaskInputRequest())
        except BaseException:
            self._close()
            raise
        TaskIdentity.task_id = task.task_id
        TaskIdentity.run_id = task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        run = run_from_proto(task.run)
        self._grid = SuperLinkGrid(self._address, self._patient, self._client, run)
        self.name = str(run.override_config.get("run", ""))
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._grid.close()
        status = SubStatus.COMPLETED if error is None else SubStatus.FAILED
        # The type alone: the text of an error stays in the run's own log.
        details = "" if kind is None else kind.__name__
        try:
            with link_errors(self._address):
                self._client.PushTaskOutput(
                    PushTaskOutputRequest(sub_status=status, details=details)
                )
        except LinkError:
            pass  # the SuperLink knows already, or will notice by the missing heartbeat
        finally:
            self._heart.join(_LAST_BEAT_S)
            self._close()

    def _close(self) -> None:
        self._client.close()
        self._patient.close()

    def _beat(self) -> None:
        """Say now and then that the task lives, and interrupt the process once it must not."""
        while not self._closing.is_set():
            try:
                with link_errors(self._address):
                    lives = self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
            except LinkError as error:
                lives = error.status not in _ENDED
            if not lives and not self._closing.is_set():
                # To the main thread, so that it does not sleep on in whatever it waits for.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            self._closing.wait(_BEAT_S)


def _task_client(
    address: str, ca_certificate: bytes, token: str, retries: RetryInvoker | None
) -> RuntimeHttpClient:
    return make_client(
        RuntimeHttpClient,
        address,
        ca_certificate,
        component="flwr-serverapp",
        interceptors=[RuntimeTokenHttpInterceptor(token=token)],
        bounds=Bounds(answer=_LARGEST_ANSWER, piece=LARGEST_PIECE),
        retries=retries,
    )
