"""What the owner of the coordinator's machine can do to a site: nothing that it did not allow."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from tests.system.deployment.federation import DataSite, Federation
from tests.system.deployment.malice import (
    HARMLESS,
    MaliciousServer,
    Signer,
    card_of,
    malicious_server,
    start_run,
)
from tests.system.deployment.processes import wait_for

from tacit_common.errors import RefusalCode
from tacit_common.flower.control import Control
from tacit_common.identity import Identity
from tacit_common.messages import (
    AccountRequest,
    DescribeRequest,
    Refusal,
    Reply,
    RoundPlan,
    SiteDescription,
    TrainReply,
    TrainRequest,
    parameters_sha256,
)
from tacit_common.privacy.plan import calibrate
from tacit_common.study import LocalPrivacyPlan, Study, StudyFile
from tacit_common.wire import encode
from tacit_server.deployment.folder import ServerFolder

pytestmark = pytest.mark.system

StudyMaker = Callable[..., Study]


@pytest.fixture
def site(federation: Federation) -> DataSite:
    return federation.sites[0]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that appears if code of a run's bundle is run."""
    return tmp_path_factory.mktemp("pushed") / "it ran"


@pytest.fixture(scope="module")
def server(federation: Federation, traced: Path) -> Iterator[MaliciousServer]:
    with malicious_server(federation, leaving(traced)) as opened:
        yield opened
    assert not traced.exists()


def leaving(trace: Path) -> dict[str, str]:
    """Code that leaves a trace wherever it is imported."""
    return {**HARMLESS, "pushed/__init__.py": f"open({str(trace)!r}, 'w').close()\n"}


@pytest.fixture
def stranger() -> Signer:
    """Has no key but its own."""
    return Signer(Identity.create())


@pytest.fixture
def coordinator(federation: Federation) -> Signer:
    """Has the coordinator's own key."""
    return Signer(ServerFolder.open(federation.hub).identity())


@pytest.fixture
def train(start_of: Callable[[Study], np.ndarray]) -> Callable[..., TrainRequest]:
    """`train(study, noise_multiplier=…)`: the first round of a study, as it is planned or not."""

    def make(study: Study, **different: object) -> TrainRequest:
        parameters = start_of(study)
        private = isinstance(study.privacy, LocalPrivacyPlan)
        plan = {
            "run": "0" * 32,
            "round": 1,
            "study": study,
            "noise_multiplier": calibrate(study).noise_multiplier if private else None,
            "parameters_sha256": parameters_sha256(parameters),
        }
        return TrainRequest(RoundPlan.model_validate({**plan, **different}), parameters)

    return make


def refused(code: RefusalCode) -> Reply:
    return Refusal(code=code)


def require_still_at_work(
    server: MaliciousServer, coordinator: Signer, site: DataSite, study: Study
) -> None:
    """Fail unless the site answers the next good request."""
    reply = server.send(site, *coordinator.request(DescribeRequest(study), site))
    assert isinstance(reply, SiteDescription)


# --- without the coordinator's key ---------------------------------------------------------


def test_an_unsigned_request(
    server: MaliciousServer, site: DataSite, make_study: StudyMaker
) -> None:
    reply = server.send(site, encode(DescribeRequest(make_study())))
    assert reply in (refused(RefusalCode.SIGNATURE), refused(RefusalCode.MESSAGE))
    assert re.search(r"unknown: refused: (signature|message); \d+ bytes left\n$", site.log())


def test_a_request_that_another_key_signed(
    server: MaliciousServer, stranger: Signer, site: DataSite, make_study: StudyMaker
) -> None:
    reply = server.send(site, *stranger.request(DescribeRequest(make_study()), site))
    assert reply == refused(RefusalCode.SIGNATURE)


def test_a_request_that_was_signed_for_another_site(
    federation: Federation,
    server: MaliciousServer,
    coordinator: Signer,
    site: DataSite,
    make_study: StudyMaker,
) -> None:
    request = coordinator.request(DescribeRequest(make_study()), federation.sites[1])
    assert server.send(site, *request) == refused(RefusalCode.SIGNATURE)


def test_a_request_that_was_changed_after_it_was_signed(
    server: MaliciousServer, coordinator: Signer, site: DataSite, make_study: StudyMaker
) -> None:
    signed, kind = coordinator.request(DescribeRequest(make_study()), site)
    other = encode(DescribeRequest(make_study("privacy.epsilon=80.0")))
    assert server.send(site, RecordDict({**signed, **other}), kind) == refused(
        RefusalCode.SIGNATURE
    )


def test_a_request_that_is_delivered_again(
    server: MaliciousServer, coordinator: Signer, site: DataSite, make_study: StudyMaker
) -> None:
    study = make_study()
    captured, kind = coordinator.request(DescribeRequest(study), site)
    assert isinstance(server.send(site, captured, kind), SiteDescription)
    assert server.send(site, captured, kind) == refused(RefusalCode.REPLAY)
    require_still_at_work(server, coordinator, site, study)


def test_code_in_the_bundle_of_a_run_is_not_run_at_a_site(
    server: MaliciousServer,
    coordinator: Signer,
    site: DataSite,
    make_study: StudyMaker,
    traced: Path,
) -> None:
    require_still_at_work(server, coordinator, site, make_study())
    assert not traced.exists()


def test_code_in_the_bundle_of_a_run_is_not_run_at_the_server(
    federation: Federation, site: DataSite, tmp_path: Path
) -> None:
    trace = tmp_path / "it ran"
    folder = ServerFolder.open(federation.hub)
    lines = site.log().count("\n")
    number = start_run(folder, leaving(trace))
    with Control(folder.config().superlink_address, folder.ca_certificate.read_bytes()) as control:
        wait_for(lambda: control.runs()[number].is_over, "the pushed run is over")
    assert "nobody submitted here" in (folder.logs / "runs.log").read_text()
    assert site.log().count("\n") == lines
    assert not trace.exists()


# --- with the coordinator's key ------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"tacit": ConfigRecord({"kind": "harvest", "body": "{}"})}),
        RecordDict({"tacit": ConfigRecord({"kind": "train", "body": "{"})}),
        RecordDict({"fit": ConfigRecord({"config": "lr=0.1"})}),
    ],
    ids=["empty", "of an unknown kind", "not JSON", "of another program"],
)
def test_a_message_that_the_site_does_not_understand(
    server: MaliciousServer,
    coordinator: Signer,
    site: DataSite,
    make_study: StudyMaker,
    content: RecordDict,
) -> None:
    try:
        sent = coordinator.signed(content, site)
    except Exception:  # what cannot be signed is sent as it is
        sent = content
    assert server.send(site, sent, "train") == refused(RefusalCode.MESSAGE)
    require_still_at_work(server, coordinator, site, make_study())


def test_a_request_under_a_name_that_no_app_has(
    server: MaliciousServer, coordinator: Signer, site: DataSite, make_study: StudyMaker
) -> None:
    study = make_study()
    signed, _ = coordinator.request(DescribeRequest(study), site)
    assert isinstance(server.send(site, signed, "query.harvest"), Refusal)
    require_still_at_work(server, coordinator, site, study)


def test_less_noise_than_the_study_is_calibrated_to(
    server: MaliciousServer,
    coordinator: Signer,
    site: DataSite,
    make_study: StudyMaker,
    train: Callable[..., TrainRequest],
) -> None:
    study = make_study()
    planned = train(study).plan.noise_multiplier
    assert planned is not None
    paid = len(site.paid())
    reply = server.send(
        site, *coordinator.request(train(study, noise_multiplier=planned / 2), site)
    )
    assert reply == refused(RefusalCode.POLICY)
    assert len(site.paid()) == paid


def test_a_study_of_which_the_noise_is_below_the_policy(
    server: MaliciousServer, coordinator: Signer, site: DataSite, make_study: StudyMaker
) -> None:
    loose = make_study("privacy.epsilon=400.0")
    assert calibrate(loose).noise_multiplier < 0.5
    reply = server.send(site, *coordinator.request(DescribeRequest(loose), site))
    assert reply == refused(RefusalCode.POLICY)


def test_a_round_without_privacy(
    server: MaliciousServer,
    coordinator: Signer,
    site: DataSite,
    make_study: StudyMaker,
    no_privacy: str,
    train: Callable[..., TrainRequest],
) -> None:
    paid = len(site.paid())
    study = make_study(no_privacy)
    assert server.send(site, *coordinator.request(train(study), site)) == refused(
        RefusalCode.POLICY
    )
    assert len(site.paid()) == paid
    assert re.search(r"round 1 of tiny \(\w+\) in run 0+: refused: policy", site.log())


def test_a_study_that_was_changed_after_a_person_had_approved_it(
    server: MaliciousServer, coordinator: Signer, site: DataSite, make_study: StudyMaker
) -> None:
    approved = make_study("name='cohort-7'")
    changed = make_study("name='cohort-7'", "federation.rounds=3")
    with consent_asked_for(site):
        request = DescribeRequest(approved)
        reply = server.send(site, *coordinator.request(request, site))
        assert reply == refused(RefusalCode.APPROVAL)
        digest = approved.digest()[:32]
        assert digest in site.machine.run("site", "pending", site.folder)
        site.machine.run("site", "approve", site.folder, digest, "--yes")
        reply = server.send(site, *coordinator.request(request, site))
        assert isinstance(reply, SiteDescription)
        reply = server.send(site, *coordinator.request(DescribeRequest(changed), site))
        assert reply == refused(RefusalCode.APPROVAL)
        assert "describe of cohort-7" in site.log()
        assert site.log().splitlines()[-1].split("; ")[0].endswith("refused: approval")


def test_a_round_that_was_paid_for_is_given_once_and_not_noised_anew(
    server: MaliciousServer,
    coordinator: Signer,
    site: DataSite,
    make_study: StudyMaker,
    train: Callable[..., TrainRequest],
) -> None:
    request = train(make_study(), run="1" * 32)
    first = server.send(site, *coordinator.request(request, site))
    assert isinstance(first, TrainReply)
    paid = len(site.paid())
    again = server.send(site, *coordinator.request(request, site))
    assert isinstance(again, TrainReply)
    assert np.array_equal(first.update, again.update)
    assert len(site.paid()) == paid


def test_an_account_tells_nothing_of_a_run_that_the_site_does_not_know(
    server: MaliciousServer, coordinator: Signer, site: DataSite, make_study: StudyMaker
) -> None:
    request = AccountRequest(run="f" * 32, study=make_study())
    paid = len(site.paid())
    server.send(site, *coordinator.request(request, site))
    assert len(site.paid()) == paid


@contextmanager
def consent_asked_for(site: DataSite) -> Iterator[None]:
    """A policy under which a person agrees to each study."""
    policy = site.folder / "policy.toml"
    before = policy.read_text()
    policy.write_text(before.replace('approval = "none"', 'approval = "each study"'))
    try:
        yield
    finally:
        policy.write_text(before)


# --- what people see -----------------------------------------------------------------------


def test_people_on_both_sides_read_which_site_refused_and_why(
    federation: Federation, study_file: Callable[..., StudyFile], no_privacy: str
) -> None:
    run = federation.submit(study_file("name='harvest'", no_privacy))
    wait_for(lambda: len(run.status()["refused"]) == len(federation.sites), "all refuse")
    shown = " ".join(run.shown().split())
    for site in federation.sites:
        assert f"site {site.name} refused (policy): its policy does not allow" in shown
        assert "describe of harvest" in site.log()
        assert site.log().splitlines()[-1].split("; ")[0].endswith("refused: policy")
        assert card_of(site).site == site.name
    federation.coordinator.run("server", "stop", federation.hub, run.name)
    run.await_stage("stopped")
