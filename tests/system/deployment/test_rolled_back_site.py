"""A site whose folder is yesterday's: somebody remembers what it has spent since."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.system.deployment.federation import (
    RECORDS,
    DataSite,
    Federation,
    Run,
    make_coordinator,
    make_sites,
)
from tests.system.deployment.processes import World, free_port, wait_for

from tacit_common.enrolment import read_site_card
from tacit_common.study import StudyFile

pytestmark = [pytest.mark.system, pytest.mark.long_system]

StudyMaker = Callable[..., StudyFile]


@contextmanager
def back_to(yesterday: Path, site: DataSite) -> Iterator[None]:
    """Let the site work with an old copy of its folder; then give it the newest one again."""
    site.running.end()
    newest = site.folder.with_name("newest")
    site.folder.rename(newest)
    shutil.copytree(yesterday, site.folder)
    site.start()
    try:
        yield
    finally:
        site.running.end()
        shutil.rmtree(site.folder)
        newest.rename(site.folder)


def copy_of(site: DataSite) -> Path:
    """Copy the folder of a site that is not running, as a backup does."""
    copy = site.folder.with_name("yesterday")
    shutil.copytree(site.folder, copy)
    return copy


def test_the_coordinator_s_memory_refuses_it_in_the_same_run_and_in_the_next(
    federation: Federation, study_file: StudyMaker
) -> None:
    *others, site = federation.sites
    site.running.end()
    yesterday = copy_of(site)
    site.start()
    long = study_file("federation.rounds=20", "federation.local_steps=6")
    run = federation.submit(long, "--patience", 5)
    run.await_rounds(1)
    federation.coordinator.run("server", "stop", federation.hub, run.name)
    run.await_stage("stopped")
    paid = len(site.paid())
    with back_to(yesterday, site):
        federation.coordinator.run("server", "resume", federation.hub, run.name)
        run.await_end()
        require_shown(run, site, "gave nothing usable (untrusted_ledger)")
        last = run.events("round_finished")[-1]
        assert last["answered"] == [other.name for other in others]
        again = federation.submit(study_file("federation.rounds=2"), "--patience", 5)
        again.await_end()
        require_shown(again, site, "gave nothing usable (untrusted_ledger)")
        assert len(site.paid()) < paid
        assert site.log().splitlines()[-1].split("; ")[0].endswith("refused: ledger")
    assert len(site.paid()) == paid
    site.start()


def test_the_witness_refuses_it_where_the_coordinator_is_new(
    world: World, study_file: StudyMaker
) -> None:
    machine = world.machine("witness")
    folder, address = machine.folder / "w", f"127.0.0.1:{free_port()}"
    options = ("--address", address, "--listen", address, "--health", f"127.0.0.1:{free_port()}")
    machine.run("witness", "init", folder, *options)
    witness = machine.start("witness", "run", folder)
    federation = make_coordinator(world)
    (site,) = make_sites(federation, ("clinic-a",), witness=folder / "witness.json")
    fingerprint = read_site_card(site.card).fingerprint
    machine.run("witness", "admit", folder, site.card, "--fingerprint", fingerprint)
    wait_for(lambda: "listens on port" in witness.said, "the witness listens")
    yesterday = copy_of(site)
    federation.start_server()
    site.start()
    study = study_file("federation.rounds=2")
    federation.submit(study).await_end()
    assert len(site.paid()) == 2
    assert f"{RECORDS}" not in machine.run("witness", "log", folder)

    assert federation.server is not None
    federation.server.end()
    for forgotten in (federation.hub / "runs").iterdir():
        shutil.rmtree(forgotten)
    forget_heads(federation)
    federation.start_server()
    with back_to(yesterday, site):
        again = federation.submit(study)
        require_shown(again, site, "refused (ledger)", "gave nothing usable (untrusted_ledger)")
        assert not site.paid()
        doctor = site.machine.run("site", "doctor", site.folder, expect=1)
        assert "and the one here ends at row" in doctor
    site.start()
    again.await_end()

    witness.kill()
    refused = federation.submit(study_file("name='unwitnessed'"))
    require_shown(refused, site, "refused (witness)")
    assert len(site.paid()) == 4


def forget_heads(federation: Federation) -> None:
    """Make the coordinator one that has never heard of a ledger."""
    for kept in federation.hub.glob("*heads*"):
        kept.unlink()


def require_shown(run: Run, site: DataSite, *did: str) -> None:
    """Fail unless the coordinator shows that the site did one of these things."""

    def shown() -> bool:
        said = run.shown()
        return any(f"site {site.name} {what}" in said for what in did)

    wait_for(shown, f"{site.name} {' or '.join(did)}")
