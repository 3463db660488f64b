"""A worker of the pool: a process that answers for its share of the sites.

    python -P -m tacit_simulations.worker PIPE REQUESTS REPLIES...

The numbers are open files that it inherits: the pipe to the pool, the memory in which requests
stand, and a slot of memory for each reply that may wait to be read. Through the pipe come

    {"sites", "factory", "arguments"}   first: how many sites there are and what opens them
    {"records", "asked"}                a request, and each site's own part of it
    {"forget": [names]}                 nobody waits for the replies to these any more
    {"free": slot}                      the reply in this slot was read
    {"end": true}                       close the sites and go

and through it go {"ready": true}, and one {"reply", "slot", "records"} a message; a reply
without "records" is an error. When the pool's end of the pipe is closed, in whatever way the
pool's process has ended, the worker is gone at once: like one that was killed.
"""

import json
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Protocol

from flwr.app import Context, Message

from tacit_client.app import make_client_app
from tacit_client.site import Site
from tacit_common.flower.apps import begin_task
from tacit_simulations.grid import RUN, SERVER_NODE, answer_of, index_of, named
from tacit_simulations.shared_bytes import (
    Record,
    SharedBytes,
    apart,
    describe,
    restore,
    size_of,
    together,
)

_WAITING_BYTES = 64 * 2**20
"""What the replies of one worker that wait to be read may hold, beyond two of them."""


class Sites(Protocol):
    """What a worker needs: it opens a site by its number, as often as asked."""

    def open(self, index: int) -> Site:
        """The site with this number."""
        ...

    def close(self) -> None:
        """Close every site that is open in this process."""
        ...


def open_sites(factory: str, arguments: Mapping[str, str]) -> Sites:
    """The sites that "module:function" makes of these arguments."""
    module, _, name = factory.partition(":")
    sites: Sites = getattr(import_module(module), name)(**arguments)
    return sites


@dataclass(frozen=True)
class _Job:
    """One site's request."""

    name: str
    node: int
    kind: str
    records: dict[str, Record]


class _Desk:
    """What waits to be done, and which slots are free: filled by one thread, read by another."""

    def __init__(self, slots: int) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._free = list(reversed(range(slots)))
        self._slots = slots
        self._ended = False

    def add(self, jobs: list[_Job]) -> None:
        with self._changed:
            self._jobs.extend(jobs)
            self._changed.notify()

    def forget(self, names: set[str]) -> None:
        with self._changed:
            self._jobs = deque(job for job in self._jobs if job.name not in names)

    def free(self, slot: int) -> None:
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def next_job(self) -> _Job | None:
        """The next one; None when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._ended)
            return None if self._ended else self._jobs.popleft()

    def slot_for(self, size: int) -> int | None:
        """A slot for a reply of this size, when few enough bytes wait in the others.

        None when it is over.
        """
        most = max(2, min(self._slots, _WAITING_BYTES // max(size, 1)))
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._slots - len(self._free) < most)
            return None if self._ended else self._free.pop()


def work(pipe: Connection, requests: SharedBytes, slots: list[SharedBytes]) -> None:
    """Answer until the pool says that it is over."""
    first = json.loads(pipe.recv_bytes())
    begin_task(run_id=RUN, node_id=SERVER_NODE)
    desk = _Desk(len(slots))
    threading.Thread(target=_listen, args=(pipe, requests, desk), daemon=True).start()
    sites = open_sites(first["factory"], first["arguments"])

    def site_of(context: Context) -> Site:
        return sites.open(index_of(context.node_id))

    client_app = make_client_app(site_of)
    _send(pipe, {"ready": True})
    while (job := desk.next_job()) is not None:
        content = together(job.records)
        message = Message(content, dst_node_id=job.node, message_type=job.kind)
        named(message, job.name)
        reply = answer_of(client_app, message, first["sites"])
        records = {} if reply.has_error() else apart(reply.content)
        slot = desk.slot_for(size_of(records.values()))
        if slot is None:
            break
        frame: dict[str, Any] = {"reply": job.name, "slot": slot}
        if not reply.has_error():
            described = describe(records.values(), slots[slot])
            frame["records"] = dict(zip(records, described, strict=True))
        _send(pipe, frame)
    sites.close()


def _listen(pipe: Connection, requests: SharedBytes, desk: _Desk) -> None:
    """Take what the pool says, until it says that it is over; whatever else ends it ends all."""
    try:
        while True:
            frame = json.loads(pipe.recv_bytes())
            if "asked" in frame:
                desk.add(_jobs_of(frame, requests))
            elif "forget" in frame:
                desk.forget(set(frame["forget"]))
            elif "free" in frame:
                desk.free(frame["free"])
            else:
                desk.end()
                return
    except (EOFError, OSError):
        os._exit(os.EX_OK)  # nobody is there any more: not a moment longer
    except BaseException:
        os._exit(os.EX_SOFTWARE)  # the pool sees a worker that died, and the run goes on


def _jobs_of(frame: dict[str, Any], requests: SharedBytes) -> list[_Job]:
    # Read here and now: the next request is written over this one. One that was given up and
    # is read half overwritten does not fit the hash in its own plan, so no site accepts it.
    records = restore(frame["records"], requests)
    return [
        _Job(name, node, kind, {key: records[number] for key, number in parts.items()})
        for name, node, kind, parts in frame["asked"]
    ]


def _send(pipe: Connection, frame: dict[str, Any]) -> None:
    try:
        pipe.send_bytes(json.dumps(frame).encode())
    except OSError:
        os._exit(os.EX_OK)


if __name__ == "__main__":
    pipe, requests, *slots = map(int, sys.argv[1:])
    work(Connection(pipe), SharedBytes(requests), [SharedBytes(slot) for slot in slots])
    os._exit(os.EX_OK)  # all is closed; taking the interpreter apart would take a while
