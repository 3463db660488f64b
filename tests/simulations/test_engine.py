"""Two engines, one pair of apps: messages are copied, runs repeat, and both give one encoder."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from tacit_client.app import make_client_app
from tacit_client.site import Site
from tacit_common.encoders import embed, load_encoder
from tacit_common.errors import QuorumError, RefusalCode
from tacit_common.ledger_chain import SignedHead
from tacit_common.messages import (
    DescribeRequest,
    Refusal,
    SiteDescription,
    TrainReply,
    TrainRequest,
)
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import calibrate
from tacit_common.study import Study, StudyFile
from tacit_common.study_file import parse_study
from tacit_common.study_reference import EXAMPLE_STUDY
from tacit_common.wire import decode_reply, decode_request, encode, with_head
from tacit_server.app import GridExchange
from tacit_server.checkpoint import RunState
from tacit_server.exchange import Answer, Exchange, Failure
from tacit_server.run import Coordinator, RunFolder
from tacit_server.run_log import ProbeFinished, RoundFinished, RunStarted
from tacit_simulations.engine import InProcessGrid, run_in_process
from tacit_simulations.sites import SimulatedSites

MakeFile = Callable[..., StudyFile]
MakeStudy = Callable[..., Study]
Ask = Callable[..., TrainRequest]
HeadsOf = Callable[..., list[SignedHead]]

STUDY = parse_study(EXAMPLE_STUDY).travelling()

pytestmark = pytest.mark.usefixtures("flower_task")


# --- messages ----------------------------------------------------------------------------


def app_of(answer: Callable[[Message, Context], Message]) -> ClientApp:
    app = ClientApp()
    app.train()(answer)
    app.query("describe")(answer)
    return app


def asked_all(
    app: ClientApp, sites: int, request: TrainRequest | DescribeRequest
) -> Sequence[Answer]:
    exchange = GridExchange(InProcessGrid(app, sites))
    return list(exchange.ask(exchange.node_ids(), request, 60.0))


def test_what_a_site_does_to_its_message_reaches_neither_the_server_nor_other_sites(
    make_study: MakeStudy, no_privacy: str, train_request: Ask, heads_of: HeadsOf
) -> None:
    request = train_request(make_study(no_privacy))
    original = request.parameters.copy()
    intact: list[bool] = []

    def vandal(message: Message, context: Context) -> Message:
        got = decode_request(message.content)
        assert isinstance(got, TrainRequest)
        intact.append(np.array_equal(got.parameters, original) and got.plan == request.plan)
        message.content.config_records["tacit"]["kind"] = "exec"
        arrays = message.content.array_records["arrays"]
        arrays["parameters"] = Array(np.full(3, 7.0, dtype=np.float32))
        message.content["more"] = ArrayRecord()
        reply = encode(TrainReply(np.zeros(3, dtype=np.float32)))
        return Message(with_head(reply, heads_of(str(context.node_id), 1)[0]), reply_to=message)

    answers = asked_all(app_of(vandal), 3, request)
    assert intact == [True, True, True]
    assert np.array_equal(request.parameters, original)
    assert all(isinstance(answer.reply, TrainReply) for answer in answers)


def test_what_a_site_does_to_its_reply_afterwards_does_not_reach_the_server(
    heads_of: HeadsOf,
) -> None:
    sent: list[RecordDict] = []

    def keeps(message: Message, context: Context) -> Message:
        for earlier in sent:
            earlier.array_records["arrays"].clear()
        reply = encode(TrainReply(np.full(3, float(len(sent)), dtype=np.float32)))
        sent.append(with_head(reply, heads_of(str(context.node_id), 1)[0]))
        return Message(sent[-1], reply_to=message)

    answers = asked_all(app_of(keeps), 3, DescribeRequest(STUDY))
    updates = [answer.reply for answer in answers]
    assert all(isinstance(update, TrainReply) for update in updates)
    assert [float(u.update[0]) for u in updates if isinstance(u, TrainReply)] == [0.0, 1.0, 2.0]


def test_a_client_app_that_raises_is_a_node_error_of_that_node_alone(heads_of: HeadsOf) -> None:
    def second_fails(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("patient-4711")
        name = f"site-{context.node_config['partition-id']}"
        reply = SiteDescription(site=name, declared_units=1, tacit_version="0")
        return Message(with_head(encode(reply), heads_of(name, 1)[0]), reply_to=message)

    answers = asked_all(app_of(second_fails), 3, DescribeRequest(STUDY))
    assert [type(answer.reply) for answer in answers] == [SiteDescription, Failure, SiteDescription]
    assert answers[1].reply is Failure.NODE_ERROR


def test_a_site_that_cannot_be_opened_answers_with_a_code() -> None:
    def unopened(context: Context) -> Site:
        raise OSError("no such folder")

    (answer,) = asked_all(make_client_app(unopened), 1, DescribeRequest(STUDY))
    assert answer.reply == Refusal(code=RefusalCode.INTERNAL)


def test_a_site_works_when_it_is_its_turn_so_that_answers_stream() -> None:
    worked: list[int] = []

    def works(message: Message, context: Context) -> Message:
        worked.append(int(context.node_config["partition-id"]))
        reply = SiteDescription(site="s", declared_units=1, tacit_version="0")
        return Message(encode(reply), reply_to=message)

    exchange = GridExchange(InProcessGrid(app_of(works), 3))
    for number, _ in enumerate(exchange.ask(exchange.node_ids(), DescribeRequest(STUDY), 60.0)):
        assert worked == list(range(number + 1))


def test_send_and_receive_gives_every_reply() -> None:
    def works(message: Message, context: Context) -> Message:
        reply = SiteDescription(
            site=f"{context.node_config['partition-id']}", declared_units=1, tacit_version="0"
        )
        return Message(encode(reply), reply_to=message)

    grid = InProcessGrid(app_of(works), 3)
    messages = [
        Message(encode(DescribeRequest(STUDY)), dst_node_id=node, message_type="query.describe")
        for node in grid.get_node_ids()
    ]
    replies = [decode_reply(reply.content) for reply in grid.send_and_receive(messages)]
    assert [r.site for r in replies if isinstance(r, SiteDescription)] == ["0", "1", "2"]


# --- whole runs --------------------------------------------------------------------------


def run(folder: Path, study: StudyFile, open_site: Callable[[int], Site] | None = None) -> RunState:
    """The rounds of a study in this process, without what follows them."""
    assert study.simulation is not None
    sites = SimulatedSites(study, study.simulation, folder)
    sites.prepare()
    coordinator = Coordinator(
        study.travelling(),
        calibrate(study.travelling()),
        RunFolder(folder),
        PluginTable(study.plugins),
    )

    def coordinate(exchange: Exchange) -> RunState:
        return coordinator.run(exchange)

    try:
        return run_in_process(coordinate, open_site or sites.open, study.simulation.sites)
    finally:
        sites.close()


def encoder_bytes(folder: Path) -> bytes:
    return (folder / "encoder" / "encoder.safetensors").read_bytes()


STROKES = 'simulation={ dataset = "strokes", sites = 3, declared_units = 300 }'
WARM = "warm_start={ steps = 3, batch_size = 8 }"


def test_without_privacy_one_seed_gives_one_encoder_bit_for_bit(
    tmp_path: Path, study_file: MakeFile, no_privacy: str
) -> None:
    study = study_file(no_privacy, STROKES, WARM)
    torch.manual_seed(0)
    first = run(tmp_path / "a", study)
    torch.manual_seed(1)
    second = run(tmp_path / "b", study)
    other = run(tmp_path / "c", study_file(no_privacy, STROKES, WARM, "seed=4"))
    assert first.run != second.run
    assert encoder_bytes(tmp_path / "a") == encoder_bytes(tmp_path / "b")
    assert np.array_equal(first.strategy.parameters, second.strategy.parameters)
    assert not np.array_equal(first.strategy.parameters, other.strategy.parameters)


def test_under_privacy_one_seed_gives_other_noise_each_time(
    tmp_path: Path, study_file: MakeFile
) -> None:
    study = study_file(STROKES)
    torch.manual_seed(0)
    first = run(tmp_path / "a", study)
    torch.manual_seed(0)
    second = run(tmp_path / "b", study)
    assert np.array_equal(first.initial, second.initial)
    assert (first.strategy.parameters != second.strategy.parameters).mean() > 0.9


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "fedprox"])
def test_every_strategy_runs_to_its_end(
    tmp_path: Path, study_file: MakeFile, no_privacy: str, strategy: str
) -> None:
    more = ", proximal_mu = 0.1" if strategy == "fedprox" else ""
    plan = f'federation.strategy={{ kind = "{strategy}"{more} }}'
    state = run(tmp_path, study_file(no_privacy, STROKES, plan, "federation.rounds=3"))
    assert state.round == 3
    assert [e.round for e in state.events if isinstance(e, RoundFinished)] == [1, 2, 3]
    assert np.isfinite(state.strategy.parameters).all()
    assert not np.array_equal(state.strategy.parameters, state.initial)


def test_fedprox_stays_nearer_to_the_start_than_fedavg(
    tmp_path: Path, study_file: MakeFile, no_privacy: str
) -> None:
    def moved(strategy: str) -> float:
        plan = f"federation.strategy={{ {strategy} }}"
        study = study_file(no_privacy, STROKES, plan, "federation.local_steps=8")
        state = run(tmp_path / str(len(list(tmp_path.iterdir()))), study)
        return float(np.linalg.norm(state.strategy.parameters - state.initial))

    free = moved('kind = "fedavg"')
    assert moved('kind = "fedprox", proximal_mu = 1e-9') == pytest.approx(free, rel=1e-3)
    assert moved('kind = "fedprox", proximal_mu = 5.0') < 0.7 * free


def test_a_finished_run_holds_every_event_once_and_a_loadable_encoder(
    tmp_path: Path, study_file: MakeFile, with_probe: str
) -> None:
    state = run(tmp_path, study_file(with_probe, WARM))
    assert [event.event for event in state.events] == [
        "run_started",
        "warm_started",
        "probe_finished",
        "round_finished",
        "round_finished",
        "probe_finished",
        "run_finished",
    ]
    features = embed(load_encoder(tmp_path / "encoder"), torch.rand(5, 1, 8, 8))
    assert features.shape == (5, 16)
    assert np.isfinite(features).all()


def refusing_from(question: int, study: StudyFile, folder: Path) -> Callable[[int], Site]:
    """Sites of which site-1 no longer agrees to the study from its question of this number on."""
    assert study.simulation is not None
    sites = SimulatedSites(study, study.simulation, folder)
    asked = 0

    def open_site(index: int) -> Site:
        nonlocal asked
        site = sites.open(index)
        asked += index == 1
        agrees = index != 1 or asked < question
        policy = site.policy.model_copy(update={"allow_non_private": agrees})
        object.__setattr__(site, "policy", policy)
        return site

    return open_site


def test_a_site_that_refuses_a_study_is_named_and_takes_no_part(
    tmp_path: Path, study_file: MakeFile, no_privacy: str
) -> None:
    study = study_file(no_privacy, STROKES)
    state = run(tmp_path, study, refusing_from(1, study, tmp_path))
    (started,) = (event for event in state.events if isinstance(event, RunStarted))
    assert started.refused == {"site-1": "policy"}
    assert list(started.sites) == ["site-0", "site-2"]
    rounds = [event for event in state.events if isinstance(event, RoundFinished)]
    assert [event.asked for event in rounds] == [["site-0", "site-2"]] * 2


def test_a_site_whose_policy_changes_in_a_run_is_named_and_the_others_go_on(
    tmp_path: Path, study_file: MakeFile, no_privacy: str
) -> None:
    study = study_file(no_privacy, STROKES)
    state = run(tmp_path, study, refusing_from(3, study, tmp_path))
    rounds = [event for event in state.events if isinstance(event, RoundFinished)]
    assert [event.failed for event in rounds] == [{}, {"site-1": "policy"}]
    assert [event.answered for event in rounds][1] == ["site-0", "site-2"]


def test_a_run_that_lost_its_quorum_goes_on_where_it_stood(
    tmp_path: Path, study_file: MakeFile, with_probe: str
) -> None:
    study = study_file(with_probe, "federation.rounds=3")
    assert study.simulation is not None
    sites = SimulatedSites(study, study.simulation, tmp_path)
    asked: list[int] = []

    def flaky(index: int) -> Site:
        asked.append(index)
        if len(asked) in range(13, 15):  # description, probe, rounds 1, 2 and then two of round 3
            raise OSError("the disk of the site is away")
        return sites.open(index)

    with pytest.raises(QuorumError, match="round 3 failed: 1 of 3"):
        run(tmp_path, study, flaky)
    state = run(tmp_path, study, flaky)
    assert [e.round for e in state.events if isinstance(e, RoundFinished)] == [1, 2, 3]
    assert [e.when for e in state.events if isinstance(e, ProbeFinished)] == ["before", "after"]
    for index in range(3):
        site = sites.open(index)
        labels = [charge.label for charge in site.ledger.charges]
        assert labels == ["probe 0 before", "round 1", "round 2", "round 3", "probe 0 after"]
    sites.close()


# --- Ray ---------------------------------------------------------------------------------

COMMAND = "from tacit_simulations.cli import main; main()"


@pytest.mark.slow
def test_the_ray_engine_gives_the_same_encoder_bit_for_bit_without_privacy(
    tmp_path: Path, study_file: MakeFile, no_privacy: str
) -> None:
    study = study_file(no_privacy, WARM, "simulation.sites=2")
    (tmp_path / "study.toml").write_text(study.to_toml())
    done = subprocess.run(
        [
            *(sys.executable, "-c", COMMAND, "simulate", str(tmp_path / "study.toml")),
            *("--engine", "ray", "--json", "--out", str(tmp_path / "ray")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    run(tmp_path / "here", study)
    assert encoder_bytes(tmp_path / "ray") == encoder_bytes(tmp_path / "here")
