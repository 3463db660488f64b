"""The third engine: the sites are shared out to worker processes of this machine.

Each site is always the same worker's, which keeps its ledger, its data and the model at hand.
A request is written once, into memory that all workers see; each reply comes back through
memory too, and is read in the order in which the sites were asked, so that no more than a few
replies a worker are held at a time and their sum does not depend on who was faster.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from types import TracebackType
from typing import Any, Self, TypeVar

from flwr.app import Message

from tacit_common.errors import TacitError
from tacit_common.flower.apps import begin_task, make_context
from tacit_server.app import make_server_app
from tacit_server.exchange import Exchange
from tacit_simulations.grid import RUN, SERVER_NODE, LocalGrid, failed, index_of
from tacit_simulations.shared_bytes import Record, SharedBytes, apart, describe, restore, together

ResultT = TypeVar("ResultT")

_SLOTS = 16  # replies of one worker that may wait, if they are small
_LOOK_S = 5.0  # how long to wait for a reply before the caller may look at its clock
_TO_END_S = 10.0  # for a worker to close its sites


@dataclass(frozen=True)
class Workplace:
    """What opens the sites, in words that a new process understands.

    `factory` is "module:function"; called with `arguments`, it returns an object whose
    `open(index)` gives a `Site`, and whose `close()` closes them all.
    """

    factory: str
    arguments: Mapping[str, str]


def run_in_pool(
    coordinate: Callable[[Exchange], ResultT], workplace: Workplace, sites: int, *, workers: int
) -> ResultT:
    """Run the server in this process and the sites in `workers` others.

    Guarantees: the result of `coordinate` is that of `run_in_process`, bit for bit where no
    secret randomness is drawn; no process outlives this one, however it ends.

    Raises:
        TacitError: a worker does not start.
    """
    begin_task(run_id=RUN, node_id=SERVER_NODE)
    results: list[ResultT] = []
    server_app = make_server_app(lambda exchange: results.append(coordinate(exchange)))
    with PoolGrid(workplace, sites, workers) as grid:
        server_app(grid, make_context(run_id=RUN, node_id=SERVER_NODE, node_config={}))
    return results[0]


class PoolGrid(LocalGrid):
    """Delivers messages to workers; a context manager that ends them.

    A worker that dies fails the sites that it was asked for and has not answered; a new one
    takes its place when sites are asked again.
    """

    def __init__(self, workplace: Workplace, sites: int, workers: int) -> None:
        super().__init__(sites)
        self._workplace = workplace
        self._requests = SharedBytes.create()
        self._waiting: dict[str, Message] = {}  # in the order in which they were sent
        self._workers = [self._hired() for _ in range(min(workers, sites))]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.dismiss(in_peace=kind is None or issubclass(kind, Exception))
        for worker in self._workers:
            worker.wait()
        self._requests.close()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to the workers of their sites, which begin at once."""
        sent = list(messages)
        for number, worker in enumerate(self._workers):
            if worker.is_dead:
                worker.wait()
                self._workers[number] = self._hired()
        names = [self._name(message) for message in sent]
        self._waiting.update(zip(names, sent, strict=True))
        # What messages have in common is written once.
        numbers: dict[int, int] = {}
        records: list[Record] = []
        asked: dict[_Worker, list[Any]] = {worker: [] for worker in self._workers}
        for name, message in zip(names, sent, strict=True):
            parts = {}
            for key, record in apart(message.content).items():
                if id(record) not in numbers:
                    numbers[id(record)] = len(records)
                    records.append(record)
                parts[key] = numbers[id(record)]
            node = message.metadata.dst_node_id
            job = (name, node, message.metadata.message_type, parts)
            asked[self._worker_of(node)].append(job)
        described = describe(records, self._requests)
        for worker, jobs in asked.items():
            if jobs:
                worker.ask(described, jobs)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The reply to the earliest of these messages, if it comes within some seconds."""
        wanted = message_ids if isinstance(message_ids, Sequence) else list(message_ids)
        if len(self._waiting) > len(wanted):
            self._forget(self._waiting.keys() - set(wanted))
        name = next((name for name in self._waiting if name in wanted), None)
        if name is None:
            return []
        message = self._waiting[name]
        worker = self._worker_of(message.metadata.dst_node_id)
        try:
            reply = worker.reply_to(message, name)
        except EOFError:
            worker.require_it_began()
            reply = failed(message, "the worker of the site has died")
        if reply is None:
            return []
        del self._waiting[name]
        return [reply]

    def _forget(self, names: set[str]) -> None:
        for name in names:
            del self._waiting[name]
        for worker in self._workers:
            worker.tell({"forget": sorted(names)})

    def _worker_of(self, node: int) -> "_Worker":
        return self._workers[index_of(node) % len(self._workers)]

    def _hired(self) -> "_Worker":
        return _Worker(self._workplace, self._sites, self._requests)


class _Worker:
    """A worker as the pool sees it."""

    def __init__(self, workplace: Workplace, sites: int, requests: SharedBytes) -> None:
        self._slots = [SharedBytes.create() for _ in range(_SLOTS)]
        self._pipe, theirs = Pipe()
        inherited = [theirs.fileno(), requests.descriptor, *(s.descriptor for s in self._slots)]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", "tacit_simulations.worker", *map(str, inherited)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # of this process, whose own standard output is for its results
            pass_fds=inherited,
            # Plug-ins are found where this process finds them.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            process_group=0,  # Ctrl-C is for this process, which ends its workers
        )
        theirs.close()
        self._began = False
        self._is_cut_off = False
        self.tell(
            {"sites": sites, "factory": workplace.factory, "arguments": dict(workplace.arguments)}
        )

    @property
    def is_dead(self) -> bool:
        """Whether it will never answer again."""
        return self._is_cut_off or self._process.poll() is not None

    def ask(self, records: list[dict[str, Any]], jobs: list[Any]) -> None:
        """Hand over requests."""
        self.tell({"records": records, "asked": jobs})

    def tell(self, frame: dict[str, Any]) -> None:
        """Send a frame, if the worker lives."""
        try:
            self._pipe.send_bytes(json.dumps(frame).encode())
        except OSError:
            self._is_cut_off = True

    def reply_to(self, message: Message, name: str) -> Message | None:
        """The reply to a message; None if it takes longer.

        Raises:
            EOFError: the worker has died.
        """
        while True:
            try:
                if not self._pipe.poll(_LOOK_S):
                    return None
                frame = json.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                self._is_cut_off = True
                raise EOFError from None
            if "ready" in frame:
                self._began = True
                continue
            slot = frame["slot"]
            try:
                if frame["reply"] != name:  # it was given up
                    continue
                described = frame.get("records")
                if described is None:
                    return failed(message, "the ClientApp raised")
                records = restore(described.values(), self._slots[slot])
            finally:
                self.tell({"free": slot})
            content = together(dict(zip(described, records, strict=True)))
            return Message(content, reply_to=message)

    def require_it_began(self) -> None:
        """Raises TacitError if the worker, which is dead, has never been ready to work."""
        if self._began:
            return
        raise TacitError(
            "a worker of the simulation does not start",
            why=f"its process ended with exit code {self._process.wait()}; what it said is above",
            fix="mend that, or do without workers: --workers 1",
        )

    def dismiss(self, *, in_peace: bool) -> None:
        """Have the worker close its sites and go, or go at once."""
        if in_peace:
            self.tell({"end": True})
        else:
            self._pipe.close()

    def wait(self) -> None:
        """Until the process is gone."""
        try:
            self._process.wait(_TO_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe.close()
        for slot in self._slots:
            slot.close()
