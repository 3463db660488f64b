"""docs/deploy.md, followed line by line: from empty folders to a verified report.

Where the machine allows it every person has a network of his or her own, in which a site
reaches the coordinator and nobody else. An audit hook writes down whom each process contacts.
"""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from tests.system.deployment.egress import Egress
from tests.system.deployment.federation import (
    EXECUTOR,
    GATEWAY,
    RUN,
    SUPERLINK,
    deal_digits,
    paid_in,
)
from tests.system.deployment.networks import COORDINATOR, Networks
from tests.system.deployment.page import PAGE, Reader, hand_over
from tests.system.deployment.processes import World, free_port, wait_for

from tacit_common.enrolment import read_site_card

pytestmark = pytest.mark.system

NAMES = ("clinic-a", "clinic-b", "clinic-c")
ONE_SCREEN = 40  # lines
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@dataclass
class Story:
    """What happened when the page was followed."""

    world: World
    coordinator: Reader
    sites: list[Reader]
    address: str
    ports: set[str]
    egress: Egress
    networks: Networks | None
    why_no_networks: str | None
    said: dict[str, str] = field(default_factory=dict)

    @property
    def hub(self) -> Path:
        return self.coordinator.machine.folder / "hub"

    def send(self, sender: Reader, instruction: str) -> None:
        """Do what a comment of the page asks a person to do."""
        if re.fullmatch(r"ask each site for \S+", instruction):
            self.each_site("8 site")
            return
        sent = re.fullmatch(r"send (\S+) to (each site|the coordinator)", instruction)
        assert sent is not None, instruction
        to_sites = sent[2] == "each site"
        for reader in self.sites if to_sites else [self.coordinator]:
            hand_over(sender.machine.folder / sent[1], reader.machine)

    def each_site(self, block: str) -> None:
        """Every operator follows a block."""
        with ThreadPoolExecutor(len(self.sites)) as pool:
            list(pool.map(lambda site: site.follow(block, partial(self.send, site)), self.sites))

    def coordinate(self, block: str) -> None:
        """The coordinator follows a block."""
        sender = self.coordinator
        self.said |= sender.follow(block, partial(self.send, sender))

    def enroll(self, folder: str) -> None:
        """Block 3, once for each site, with the fingerprint that its operator reads out."""
        for site in self.sites:
            (file,) = (site.machine.folder / folder).glob("*.site.json")
            card = read_site_card(file)
            example = {"clinic-a": card.site, "037d-4294-047a-1eba-9d35": card.fingerprint}
            Reader(self.coordinator.machine, example).follow("3 coordinator", lambda _: None)

    def await_study(self, folder: str) -> None:
        """Wait until a study waits at every site."""
        for site in self.sites:
            pending = site.machine.folder / folder / "pending"
            wait_for(lambda at=pending: any(at.glob("*.toml")), f"a study waits in {pending}")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Follow the whole page."""
    egress = Egress(tmp_path_factory.mktemp("egress"))
    with ExitStack() as stack:
        world = stack.enter_context(World.open(tmp_path_factory.mktemp("page"), egress.environment))
        networks = stack.enter_context(closing(Networks()))
        story = begin(world, egress, networks)
        follow_private_study(story)
        yield story


@pytest.fixture(scope="module")
def open_study(story: Story) -> Story:
    """Go on with the study without differential privacy."""
    follow_open_study(story)
    return story


def begin(world: World, egress: Egress, networks: Networks) -> Story:
    """Four machines, and on each what the page calls the reader's own."""
    why_not = networks.open()
    if why_not is None:
        address = f"{COORDINATOR}:9443"
        at_coordinator, superlink, health = networks.coordinator, "9092", "9444"
        options = ""
    else:  # one machine for all: other ports than the page's, which may be taken
        address, superlink, health = f"127.0.0.1:{free_port()}", str(free_port()), str(free_port())
        at_coordinator = ()
        options = f" --listen {address} --superlink-port {superlink} --health 127.0.0.1:{health}"
    ports = {address.rpartition(":")[2], superlink}  # health is asked by nobody here
    coordinator = Reader(
        world.machine("coordinator", at_coordinator),
        {"hub.example.org:9443": f"{address}{options}"},
    )
    sites = []
    for name in NAMES:
        machine = world.machine(name, networks.site() if why_not is None else ())
        data = machine.folder / "scans.npz"
        sites.append(Reader(machine, {"clinic-a": name, "/data/scans.npz": str(data)}))
    deal_digits([site.machine.folder / "scans.npz" for site in sites])
    world.logs += [machine.machine.folder for machine in (coordinator, *sites)]
    return Story(
        world,
        coordinator,
        sites,
        address,
        ports,
        egress,
        networks if why_not is None else None,
        why_not,
    )


def follow_private_study(story: Story) -> None:
    """Blocks 1 to 8."""
    story.coordinate("1 coordinator")
    story.each_site("2 site")
    story.enroll("a")
    wait_for(lambda: "the server is ready" in story.world.running[0].said, "the server is ready")
    story.each_site("4 site")
    story.coordinate("5 coordinator")
    story.await_study("a")
    story.each_site("6 site")
    story.coordinate("7 coordinator")


def follow_open_study(story: Story) -> None:
    """The blocks without differential privacy, and of those above what it takes."""
    private = story.sites
    story.sites = [as_open(site) for site in private]
    deal_digits([site.machine.folder / "open.npz" for site in story.sites])
    story.each_site("open site")
    for site in story.sites:
        (card,) = (site.machine.folder / "open").glob("*.site.json")
        hand_over(card, story.coordinator.machine)
    story.enroll("open")
    story.each_site("4 site")
    story.coordinate("open coordinator")
    for site in story.sites:
        hand_over(story.coordinator.machine.folder / "open.toml", site.machine)
    story.await_study("open")
    story.each_site("6 site")
    watch = story.coordinator.machine
    story.said["open status"] = watch.shell("tacit server status hub --watch", within_s=300)
    story.said["open models"] = watch.shell("tacit server models hub")
    story.said["open verify"] = watch.shell("tacit report verify hub/runs/digits-none-*")
    story.sites = private


def as_open(site: Reader) -> Reader:
    """The same person with a second folder, for data that need no protection."""
    name = site.replaced["clinic-a"].replace("clinic", "open")
    data = str(site.machine.folder / "open.npz")
    folders = {f"site {verb} a": f"site {verb} open" for verb in ("doctor", "run", "pending")}
    approve = {"site approve a study.toml": "site approve open open.toml"}
    return Reader(
        site.machine,
        {"open-a": name, "clinic-a": name, "/data/open.npz": data, **folders, **approve},
    )


def section(title: str) -> list[str]:
    """The lines of a section of the page."""
    text = PAGE.read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip().splitlines()


@pytest.mark.parametrize("title", ["A coordinator in five minutes", "A data site in ten minutes"])
def test_each_audience_s_page_fits_on_one_screen(title: str) -> None:
    assert 10 < len(section(title)) <= ONE_SCREEN


def test_the_page_ends_with_a_report_that_holds_with_all_three_ledgers(story: Story) -> None:
    (verify,) = (text for line, text in story.said.items() if line.startswith("tacit report v"))
    assert "Everything that was checked holds." in verify
    shown = story.said["tacit server status hub --watch"]
    assert "3 of 3 rounds" in shown
    assert "finished" in shown


def test_every_site_has_paid_once_for_what_the_page_s_study_asked(story: Story) -> None:
    asked = ["probe 0 before", "round 1", "round 2", "round 3", "probe 0 after"]
    for site in story.sites:
        (paid,) = paid_in(site.machine.folder / "a/ledger.db").values()
        assert paid == Counter(asked)


def test_nothing_is_contacted_that_the_configuration_does_not_name(story: Story) -> None:
    watched = " ".join(story.egress.programs())
    for part in (SUPERLINK, EXECUTOR, GATEWAY, RUN, "site run", "server run", "site approve"):
        assert part in watched
    hosts = LOOPBACK | {story.address.rpartition(":")[0]}
    elsewhere = {
        (host, port)
        for host, port in story.egress.contacted()
        if host not in hosts or port not in story.ports
    }
    assert not elsewhere
    assert {port for _, port in story.egress.contacted()} == story.ports


def test_no_machine_looks_for_a_way_out_of_its_network(story: Story) -> None:
    if story.networks is None:
        pytest.skip(f"no networks of one's own: {story.why_no_networks}")
    assert story.networks.ways_out_looked_for() == [0, 0, 0, 0]


@pytest.mark.long_system
def test_the_page_s_study_without_privacy_runs_at_the_sites_that_allow_it(
    open_study: Story,
) -> None:
    story = open_study
    shown = " ".join(story.said["open status"].split())
    assert "2 of 2 rounds" in shown
    assert "no differential privacy" in story.said["open models"]
    assert "Everything that was checked holds." in story.said["open verify"]
    for site in story.sites:
        assert len(paid_in(site.machine.folder / "a/ledger.db")) == 1  # the private run alone
        log = site.machine.run("site", "log", "a")
        assert re.search(r"describe of digits-none \(\w+\): refused: policy;", log)
