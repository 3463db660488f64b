"""A coordinator and three sites, made and run by the commands that people type."""

import json
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from tests.system.deployment.processes import Machine, Running, World, free_port, wait_for

from tacit_client.ledger_file import read_ledger
from tacit_common.enrolment import read_site_card
from tacit_common.ledger_chain import Charge
from tacit_common.study import StudyFile

SITES = ("clinic-a", "clinic-b", "clinic-c")
RECORDS = 500
_RUN_S = 360.0  # a run of a test, whose sites wait once for a whole deadline

SUPERLINK, EXECUTOR = "flower-superlink", "tacit_server.deployment.executor"
GATEWAY, RUN = "tacit_server.deployment.gateway", "tacit_server.deployment.run_task"
"""What the command lines of a server's processes have in them."""


def deal_digits(files: list[Path]) -> None:
    """Deal scikit-learn's handwritten digits into .npz files, 500 to each."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for number, file in enumerate(files):
        dealt = order[number * RECORDS : (number + 1) * RECORDS]
        images = (digits.images[dealt] / 16 * 255).astype(np.uint8)
        np.savez(file, images=images, labels=digits.target[dealt].astype(np.int64))


def paid_in(ledger: Path) -> dict[str, Counter[str]]:
    """Of each run in a ledger, how often each of its requests was paid for."""
    paid: dict[str, Counter[str]] = {}
    for charge in read_ledger(ledger).charges:
        paid.setdefault(charge.run, Counter())[charge.label] += 1
    return paid


@dataclass
class DataSite:
    """A site: its machine, its folder, and its agent while that runs."""

    name: str
    machine: Machine
    agent: Running | None = None

    @property
    def folder(self) -> Path:
        """The site's folder."""
        return self.machine.folder / "site"

    @property
    def card(self) -> Path:
        """The card that the coordinator and the witness are sent."""
        return self.folder / f"{self.name}.site.json"

    def start(self) -> None:
        """Start the agent, and wait until it is connected."""
        self.agent = self.machine.start("site", "run", self.folder)
        self.await_words("connected\n")

    def await_words(self, words: str) -> None:
        """Wait until the agent has said so."""
        agent = self.running
        wait_for(lambda: words in agent.said, f"{self.name} says {words!r}")

    @property
    def running(self) -> Running:
        """The agent, which runs."""
        assert self.agent is not None
        return self.agent

    def paid(self) -> list[Charge]:
        """Everything that the ledger was ever charged."""
        return read_ledger(self.folder / "ledger.db").charges

    def paid_of(self, run: str) -> Counter[str]:
        """How often each request of a run was paid for."""
        return paid_in(self.folder / "ledger.db")[run]

    def log(self) -> str:
        """`tacit site log`."""
        return self.machine.run("site", "log", self.folder)

    def export(self) -> Path:
        """The signed rows of the ledger, as the site gives them to whoever verifies a report."""
        file = self.machine.folder / "ledger.json"
        self.machine.run("site", "budget", self.folder, "--export", file)
        return file


@dataclass
class Run:
    """A submitted run, as its folder and the coordinator's commands show it."""

    federation: "Federation"
    name: str

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.federation.hub / "runs" / self.name

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What was logged, or the events of one kind."""
        log = self.folder / "events.jsonl"
        lines = log.read_text().split("\n")[:-1] if log.is_file() else []
        events = [json.loads(line) for line in lines]
        return [event for event in events if kind in (None, event["event"])]

    def status(self) -> dict[str, Any]:
        """The file that the run's process keeps."""
        found: dict[str, Any] = json.loads((self.folder / "status.json").read_bytes())
        return found

    @property
    def number(self) -> str:
        """What sites know the run by."""
        found: str = self.events("run_started")[0]["run"]
        return found

    def await_rounds(self, count: int) -> None:
        """Wait until so many rounds are done."""
        what = f"{count} rounds of {self.name}"
        wait_for(lambda: len(self.events("round_finished")) >= count, what, within_s=_RUN_S)

    def await_stage(self, *stages: str, within_s: float = _RUN_S) -> None:
        """Wait until the run stands there."""
        what = f"{self.name} is {' or '.join(stages)}"
        wait_for(lambda: self.status()["stage"] in stages, what, within_s=within_s)
        assert self.status()["stage"] in stages, self.status()

    def await_end(self) -> None:
        """Wait until the run has finished as planned, and say why if it has not."""
        self.await_stage("finished", "failed", "stopped")
        assert self.status()["stage"] == "finished", self.status()

    def shown(self) -> str:
        """`tacit server status` of the run."""
        return self.federation.coordinator.run("server", "status", self.federation.hub, self.name)


@dataclass
class Federation:
    """A coordinator and its sites."""

    world: World
    coordinator: Machine
    sites: list[DataSite]
    address: str
    server: Running | None = None

    @property
    def hub(self) -> Path:
        """The coordinator's folder."""
        return self.coordinator.folder / "hub"

    def start_server(self) -> None:
        """Start the server, and wait until all of it works."""
        self.server = server = self.coordinator.start("server", "run", self.hub)
        wait_for(lambda: "the server is ready" in server.said, "the server is ready")

    def kill(self, part: str) -> None:
        """kill -9 one of the server's processes."""
        os.kill(self.world.only(part), signal.SIGKILL)

    def submit(self, study: StudyFile, *options: object) -> Run:
        """`tacit server submit`."""
        file = self.coordinator.folder / f"{study.name}.toml"
        file.write_text(study.to_toml())
        said = self.coordinator.run("server", "submit", self.hub, file, *options)
        return Run(self, said.splitlines()[-1])

    def require_verified(self, run: Run) -> None:
        """Fail unless the run's report holds, with the ledgers of all sites."""
        ledgers = [option for site in self.sites for option in ("--ledger", site.export())]
        said = self.coordinator.run("report", "verify", run.folder, *ledgers)
        assert "Everything that was checked holds." in said


def make_coordinator(world: World) -> Federation:
    """Make a coordinator. It has no sites, and nothing runs yet."""
    port, superlink_port = free_port(), free_port()
    address = f"127.0.0.1:{port}"
    federation = Federation(world, world.machine("coordinator"), [], address)
    federation.coordinator.run(
        *("server", "init", federation.hub, "--name", "hub"),
        *("--address", address, "--listen", address, "--superlink-port", superlink_port),
        *("--health", f"127.0.0.1:{free_port()}"),
    )
    world.logs.append(federation.hub)
    return federation


def make_sites(
    federation: Federation, names: tuple[str, ...], *, witness: Path | None = None
) -> list[DataSite]:
    """Make sites, and enrol them. None runs yet.

    Their policies take part in whatever they allow: most tests are not about consent.
    """
    world, hub = federation.world, federation.hub
    sites = [DataSite(name, world.machine(name)) for name in names]
    deal_digits([site.machine.folder / "records.npz" for site in sites])
    with ThreadPoolExecutor(len(sites)) as pool:
        list(pool.map(lambda site: make_site(site, hub / "invitation.json", witness), sites))
    for site in sites:
        read_out = read_site_card(site.card).fingerprint
        federation.coordinator.run("server", "enroll", hub, site.card, "--fingerprint", read_out)
    world.logs += [site.folder for site in sites]
    federation.sites += sites
    return sites


def make_site(site: DataSite, invitation: Path, witness: Path | None = None) -> None:
    """Make a site whose budget lasts for many studies, and that asks nobody for consent."""
    site.machine.run(
        *("site", "init", site.folder, "--name", site.name, "--data", "records.npz"),
        *("--coordinator", invitation, "--unit", "record", "--epsilon-cap", 500),
        *("--delta", 1e-5, "--declared-units", RECORDS),
        *(() if witness is None else ("--witness", witness)),
    )
    policy = site.folder / "policy.toml"
    asked = policy.read_text()
    policy.write_text(asked.replace('approval = "each study"', 'approval = "none"'))
    assert policy.read_text() != asked


def start_all(federation: Federation) -> None:
    """Start the server, then all sites at once."""
    federation.start_server()
    with ThreadPoolExecutor(len(federation.sites)) as pool:
        list(pool.map(lambda site: site.start(), federation.sites))
