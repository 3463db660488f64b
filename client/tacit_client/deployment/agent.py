"""The site's one process: connected to the coordinator, it answers requests as they come.

    open the folder → connect → receive → answer (`signed_app`) → send → receive → …

It stays warm between requests: data, model and ledger are open. It runs the code that is
installed and asks for no other. A connection that is lost is made again, for ever; a
request that was interrupted is asked anew by the coordinator, and is not paid twice.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tacit_client.deployment.correspondence import Correspondence
from tacit_client.deployment.journal import Journal
from tacit_client.deployment.open_site import OpenSite, open_site
from tacit_client.deployment.signed_app import SignedApp
from tacit_client.deployment.site_folder import SiteFolder
from tacit_client.ledger_file import read_head
from tacit_common.errors import LinkError
from tacit_common.files import locked_folder, write_atomically
from tacit_common.flower.fleet import FleetLink
from tacit_common.health import HealthServer

_MEBIBYTE = 1024 * 1024
_LONGEST_POLL_S = 3.0  # while nothing has been asked for long
_ACTIVE_S = 300.0  # after a request the next one is expected soon
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 15.0  # Flower takes a node that vanished back after a while
_ALIVE_S = 60.0  # since the last heartbeat that was answered

Notify = Callable[[str], None]


class SiteAgent:
    """The agent of the site in one folder."""

    def __init__(self, folder: SiteFolder, *, notify: Notify) -> None:
        self._folder = folder
        self._config = folder.config
        self._notify = notify
        self._link: FleetLink | None = None
        self._policy_as_of = _changed(folder.policy_toml)  # first: a change in between is seen
        self._policy = folder.read_policy()
        self._site: OpenSite | None = None

    def run(self) -> None:
        """Answer until SIGTERM or SIGINT.

        Raises:
            TacitError: the folder cannot be used; nothing was answered.
        """
        with (
            locked_folder(self._folder.path, "this site's agent"),
            _terminable(),
            open_site(self._folder, self._policy) as site,
            self._health(),
        ):
            self._site = site
            self._keep_to_resources()
            app = self._signed_app()
            address = self._config.coordinator.address
            self._notify(f"site '{self._config.site}' is open; connecting to {address}")
            wait_s, said = _FIRST_WAIT_S, ""
            while True:
                try:
                    with self._connected() as link:
                        self._notify("connected")
                        wait_s, said = _FIRST_WAIT_S, ""
                        self._answer(link, app)
                except LinkError as error:
                    if str(error) != said:
                        said = str(error)
                        self._notify(f"{error.what}: {error.why}; {error.fix}")
                    time.sleep(wait_s)
                    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    @contextmanager
    def _connected(self) -> Iterator[FleetLink]:
        resources = self._policy.resources
        with FleetLink(
            self._config.coordinator.address,
            self._folder.read_coordinator_ca(),
            self._folder.read_node_key(),
            largest_message=resources.largest_message_mb * _MEBIBYTE,
            bytes_per_s=resources.bytes_per_s,
            last_node_id=_read_number(self._folder.node_id),
        ) as link:
            write_atomically(self._folder.node_id, str(link.node_id).encode())
            self._link = link
            try:
                yield link
            finally:
                self._link = None

    def _answer(self, link: FleetLink, app: SignedApp) -> None:
        shortest = self._config.poll_s
        poll_s, last = shortest, time.monotonic()
        while True:
            delivery = link.receive()
            if delivery is None:
                if time.monotonic() - last > _ACTIVE_S:
                    poll_s = min(poll_s * 1.2, max(_LONGEST_POLL_S, shortest))
                time.sleep(poll_s)
                continue
            try:
                link.send(app.answer(delivery))
            except LinkError as error:
                if error.status is None:
                    raise
                self._notify(f"an answer could not be delivered: {error.why}")
            poll_s, last = shortest, time.monotonic()

    def _signed_app(self) -> SignedApp:
        folder = self._folder
        return SignedApp(
            self._current_site,
            coordinator=self._config.coordinator.public_key,
            correspondence=Correspondence(folder.sessions),
            journal=Journal(folder.journal, folder.read_identity()),
            witness=folder.open_witness(),
        )

    def _current_site(self) -> OpenSite:
        """The site, under the policy as its operator has it now.

        Raises:
            UsageError: it cannot be read. The one before is not in force any more.
        """
        site = self._require_open()
        changed = _changed(self._folder.policy_toml)
        if changed != self._policy_as_of:
            self._policy = self._folder.read_policy()
            self._policy_as_of = changed
            site.use_policy(self._policy)
            self._keep_to_resources()
            self._notify("policy.toml has changed, and is in force")
        return site

    def _require_open(self) -> OpenSite:
        if self._site is None:
            raise RuntimeError("the site is opened before it is asked")
        return self._site

    def _keep_to_resources(self) -> None:
        resources = self._policy.resources
        if resources.cpu_threads is not None:
            torch.set_num_threads(resources.cpu_threads)
        if self._require_open().device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(resources.gpu_memory_share)

    @contextmanager
    def _health(self) -> Iterator[None]:
        address = self._config.health_address
        if address is None:
            yield
            return
        with HealthServer(address, {"live": lambda: True, "ready": self._is_ready}):
            yield

    def _is_ready(self) -> bool:
        """Whether a request that came now would be heard: connected, and the ledger sound.

        Asked in a thread of the health server's, so it reads the ledger's file for itself.
        """
        link = self._link
        if link is None:
            return False
        read_head(self._folder.ledger)  # raises if the ledger cannot be trusted
        return time.monotonic() - link.last_heard < _ALIVE_S


def run_agent(folder: SiteFolder, *, notify: Notify) -> None:
    """Run the agent of a site until SIGTERM or SIGINT.

    Raises:
        TacitError: the folder cannot be used.
    """
    _keep_log(folder.errors_log)
    SiteAgent(folder, notify=notify).run()


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return None


def _changed(path: Path) -> tuple[int, int, int] | None:
    """What differs after a file was written, replaced or removed."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM end the work as an exception does: locks and the connection are given up."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _keep_log(path: Path) -> None:
    """Let what goes wrong, with its traceback, go to a file of the site's own."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("tacit_client")
    logger.addHandler(handler)
    logger.propagate = False
