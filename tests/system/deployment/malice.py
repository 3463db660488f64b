"""Whoever owns the coordinator's machine and means harm.

This owner has the SuperLink, its database and the executor's secret, and may do with messages
what Flower can do with them. Some have the coordinator's signing key too.
"""

import os
import signal
import ssl
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager

from flwr.app import Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from tests.system.deployment.federation import EXECUTOR, DataSite, Federation
from tests.system.deployment.processes import PATIENCE_S, wait_for

from tacit_common.enrolment import SiteCard, read_site_card
from tacit_common.envelope import RequestSeal
from tacit_common.flower.control import Control, node_public_key
from tacit_common.flower.tasks import RunTask, TaskQueue
from tacit_common.identity import Identity
from tacit_common.messages import Reply, Request, message_type
from tacit_common.wire import content_sha256, decode_reply, encode, with_envelope
from tacit_server.deployment.folder import ServerFolder

_DESCRIPTION = """\
[project]
name = "pushed"
version = "1.0.0"
description = "Pushed."
license = "Apache-2.0"
[tool.flwr.app]
publisher = "tacit"
fab-include = ["/pyproject.toml", "/pushed/*.py"]
[tool.flwr.app.components]
serverapp = "pushed.code:app"
clientapp = "pushed.code:app"
[tool.flwr.app.config]
run = ""
"""


HARMLESS = {
    "pushed/__init__.py": "",
    "pushed/code.py": "from flwr.serverapp import ServerApp\napp = ServerApp()\n",
}


class MaliciousServer:
    """Sends any site any message, through the SuperLink's own API."""

    def __init__(self, folder: ServerFolder, task: RunTask) -> None:
        self._folder = folder
        self._grid = task.grid

    def node_of(self, site: DataSite) -> int:
        """The site's node."""
        key = node_public_key(card_of(site).node_key)
        with Control(
            self._folder.config().superlink_address, self._folder.ca_certificate.read_bytes()
        ) as control:
            (node,) = (node.node_id for node in control.nodes() if node.public_key == key)
        return node

    def send(self, site: DataSite, content: RecordDict, kind: str = "query.describe") -> Reply:
        """Send a site these records, and return what it answers."""
        message = Message(
            content, dst_node_id=self.node_of(site), message_type=kind, ttl=PATIENCE_S
        )
        (sent,) = self._grid.push_messages([message])
        answers: list[Message] = []
        wait_for(lambda: answers.extend(self._grid.pull_messages([sent])) or answers, "an answer")
        assert not answers[0].has_error(), answers[0].error
        return decode_reply(answers[0].content)


def card_of(site: DataSite) -> SiteCard:
    """The card that the site sent."""
    return read_site_card(site.card)


class Signer:
    """Signs with the coordinator's own key, or with another."""

    def __init__(self, identity: Identity) -> None:
        self._seal = RequestSeal(identity)

    def signed(self, content: RecordDict, site: DataSite) -> RecordDict:
        """The records in an envelope for a site."""
        seal = self._seal.seal(content_sha256(content), recipient=card_of(site).public_key)
        return with_envelope(content, seal)

    def request(self, request: Request, site: DataSite) -> tuple[RecordDict, str]:
        """A signed request, and its type: what `MaliciousServer.send` takes."""
        return self.signed(encode(request), site), message_type(request)


@contextmanager
def without_executor(federation: Federation) -> Iterator[None]:
    """Nobody else takes up a run meanwhile. Be quick: it is missed after a minute."""
    executor = federation.world.only(EXECUTOR)
    os.kill(executor, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(executor, signal.SIGCONT)


@contextmanager
def malicious_server(
    federation: Federation, code: dict[str, str] = HARMLESS
) -> Iterator[MaliciousServer]:
    """Start a run that nobody submitted, with this code in its bundle, and lead it."""
    folder = ServerFolder.open(federation.hub)
    address, ca = folder.config().superlink_address, folder.ca_certificate.read_bytes()
    with without_executor(federation):
        start_run(folder, code)
        with closing(TaskQueue(address, ca, folder.superexec_secret.read_bytes())) as queue:
            token = queue.acquire()
    assert token is not None
    with RunTask(address, ca, token) as task:
        yield MaliciousServer(folder, task)


def start_run(folder: ServerFolder, code: dict[str, str] = HARMLESS) -> int:
    """Start a run directly at the Control API, with code in its bundle."""
    files = {"pyproject.toml": _DESCRIPTION, **code}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a library that Flower uses
        content, _ = build_fab_from_files({file: text.encode() for file, text in files.items()})
    with control_client(folder) as client:
        answer = client.StartRun(
            StartRunRequest(
                fab=fab_to_proto(Fab("", content, {})),
                override_config=user_config_to_proto({"run": "pushed"}),
            )
        )
    assert answer.run_id
    return int(answer.run_id)


@contextmanager
def control_client(folder: ServerFolder) -> Iterator[ControlHttpClient]:
    """Flower's own client of the Control API, as a person on the coordinator's machine has it."""
    context = ssl.create_default_context(cafile=folder.ca_certificate)
    client = ControlHttpClient(f"https://{folder.config().superlink_address}", verify=context)
    try:
        yield client
    finally:
        client.close()
