"""What the site's ledger costs: a request, opening it again, its ε, and binding a data set.

The ledger lies beside real runs, on the same disk, and is as durable as a real site's. A
request is a reserve, asked of the policy as a site asks it, and a commit.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tacit_client.atoms import bind
from tacit_client.data import ArraySource
from tacit_client.ledger import Ledger
from tacit_client.ledger_file import read_ledger
from tacit_client.policy import SitePolicy
from tacit_common.identity import Identity
from tacit_common.ledger_chain import Atom, Charge
from tacit_common.privacy.accounting import epsilon
from tacit_common.privacy.events import PoissonGaussianSteps, PrivacyEvent
from tacit_common.privacy.spend import Spend
from tacit_simulations.benchmarks.measure import Samples, Track, in_fresh_process, scratch_folder
from tacit_simulations.benchmarks.record import Figure, exact, summarise

REQUEST_TARGET_MS = 5.0
OPEN_TARGET_S = 3.0
EPSILON_TARGET_S = 1.0
BIND_TARGET_S = 1.0

_SITE = "site"
_POLICY = SitePolicy.rehearsal(unit="record", epsilon_cap=1e6, delta=1e-5, allow_non_private=False)
_STEPS = 4  # of a round


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    requests: int  # timed one by one, durably
    reserves: int  # in the ledger that is opened again
    opens: int
    groups: int  # of identical events
    records: int  # of the data set that is bound


FULL = Plan(requests=500, reserves=10_000, opens=5, groups=50, records=10_000)
QUICK = Plan(requests=100, reserves=1_000, opens=2, groups=10, records=1_000)


def measure(plan: Plan, track: Track) -> list[Figure]:
    """Requests, opening, ε and binding."""
    with track.measuring("requests"), scratch_folder() as folder:
        requests = in_fresh_process(
            "ledger:request_times", requests=plan.requests, folder=str(folder)
        )["request"]
    with track.measuring("opening"), scratch_folder() as folder:
        opening = in_fresh_process(
            "ledger:opening_times", reserves=plan.reserves, opens=plan.opens, folder=str(folder)
        )
    with track.measuring("ε"):
        costs = in_fresh_process("ledger:epsilon_times", events=plan.reserves, groups=plan.groups)
    with track.measuring("binding"), scratch_folder() as folder:
        binding = in_fresh_process("ledger:binding_times", records=plan.records, folder=str(folder))
    figures = summarise(
        "reserve and commit",
        [1e3 * seconds for seconds in requests],
        "ms",
        "one request, admitted by the policy, durable",
        target=REQUEST_TARGET_MS,
    )
    rows = f"{plan.reserves:,} reserves, each committed; every hash and signature checked"
    figures += summarise("open", opening["open"], "s", rows, target=OPEN_TARGET_S)
    figures += summarise("read without the key", opening["read"], "s", rows)
    events = f"{plan.reserves:,} events in {plan.groups} groups"
    for what in ("ε by PLD", "verdict on one more"):
        first, again = costs[what]
        figures += [
            exact(f"{what}, first time", first, "s", "one time", events),
            exact(f"{what}, from cache", again, "s", "one time", events, target=EPSILON_TARGET_S),
        ]
    data = f"{plan.records:,} records of 1×8×8"
    figures += [
        exact(f"bind, {what}", binding[what][0], "s", "one time", data, target=BIND_TARGET_S)
        for what in ("new", "known", "cut in two")
    ]
    return figures


def request_times(requests: int, folder: str) -> Samples:
    """Seconds of each reserve and commit, after the first has filled the caches."""
    ledger = _ledger(Path(folder), durable=True)
    seconds = [
        _timed(partial(_pay, ledger, one)) for one in itertools.islice(_charges(), requests + 1)
    ]
    ledger.close()
    return {"request": seconds[1:]}


def opening_times(reserves: int, opens: int, folder: str) -> Samples:
    """Seconds that it takes to open a ledger again, with its key and without."""
    identity = Identity.create()
    ledger = _ledger(Path(folder), durable=False, identity=identity)
    for one in itertools.islice(_charges(), reserves):
        _pay(ledger, one)
    ledger.close()
    samples: Samples = {"open": [], "read": []}
    for _ in range(opens):
        samples["open"].append(
            _timed(lambda: _ledger(Path(folder), durable=True, identity=identity).close())
        )
        samples["read"].append(_timed(lambda: read_ledger(_path(Path(folder)))))
    return samples


def epsilon_times(events: int, groups: int) -> Samples:
    """Seconds for ε of many events, and for whether one more may be added, twice each."""
    charges = list(itertools.islice(_charges(groups), events))
    listed = [one.event for one in charges]
    spend = Spend()
    spend.add_atom(_ATOM)
    for one in charges:
        spend.add(one)
    more = next(itertools.islice(_charges(groups), events, None))
    return {
        "ε by PLD": [_timed(partial(epsilon, listed, _POLICY.delta)) for _ in range(2)],
        "verdict on one more": [_timed(partial(_POLICY.check, spend, more)) for _ in range(2)],
    }


def binding_times(records: int, folder: str) -> Samples:
    """Seconds to bind a data set that is new, that is known, and of which a part is left."""
    identity = Identity.create()
    ledger = Ledger(_path(Path(folder)), site=_SITE, identity=identity)
    generator = torch.Generator().manual_seed(0)
    source = ArraySource(torch.rand(records, 1, 8, 8, generator=generator))
    part = source.take(range(records // 2))
    samples = {
        what: [_timed(partial(bind, ledger, identity, data, lineage="data"))]
        for what, data in (("new", source), ("known", source), ("cut in two", part))
    }
    ledger.close()
    return samples


_ATOM = Atom(atom="a0", lineage="data", parents=(), tags_sha256="0" * 64)


def _ledger(folder: Path, *, durable: bool, identity: Identity | None = None) -> Ledger:
    ledger = Ledger(
        _path(folder),
        site=_SITE,
        identity=identity or Identity.create(),
        survive_power_loss=durable,
    )
    ledger.add_atoms(lambda _, atoms: [] if atoms else [_ATOM])
    return ledger


def _path(folder: Path) -> Path:
    return folder / "ledger.db"


def _pay(ledger: Ledger, charge: Charge) -> None:
    ledger.reserve(charge, _POLICY.check)
    ledger.commit(charge.key)


def _charges(groups: int = 1) -> Iterator[Charge]:
    """Rounds of as many studies as there are groups, in turn, without end."""
    for number in itertools.count():
        group = number % groups
        noise = 1.0 + group / 100
        event = PoissonGaussianSteps(sampling_rate=0.01, noise_multiplier=noise, steps=_STEPS)
        plan: tuple[PrivacyEvent, ...] = (event.model_copy(update={"steps": 100_000}),)
        yield Charge(
            key=f"{number:064x}",
            run=f"run {group}",
            study="study",
            study_digest=f"{group:064x}",
            action="train",
            label=f"round {number}",
            unit="record",
            event=event,
            planned=plan,
            atoms=(_ATOM.atom,),
            cap=_POLICY.cap,
        )


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
