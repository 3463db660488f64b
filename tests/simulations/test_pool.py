"""The pool: worker processes give what one process gives, and none of them is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit_client.ledger_file import read_ledger
from tacit_common.errors import RefusalCode, TacitError, WireError
from tacit_common.messages import DescribeRequest, Refusal, SiteDescription, message_type
from tacit_common.study import StudyFile
from tacit_common.study_file import parse_study
from tacit_common.study_reference import EXAMPLE_STUDY
from tacit_common.wire import decode_reply, encode
from tacit_simulations.pool import PoolGrid, Workplace
from tacit_simulations.shared_bytes import SharedBytes, apart, describe, restore, together
from tacit_simulations.simulate import new_folder, read_folder, simulate, workers_that_pay

MakeFile = Callable[..., StudyFile]

STUDY = parse_study(EXAMPLE_STUDY).travelling()
REQUEST = DescribeRequest(STUDY)

pytestmark = pytest.mark.usefixtures("flower_task")


# --- bytes ---------------------------------------------------------------------------------

VALUES = st.lists(st.binary(max_size=200), max_size=4)


@settings(max_examples=30)
@given(arrays=VALUES, text=st.text(max_size=20))
def test_records_come_back_as_they_went(arrays: list[bytes], text: str) -> None:
    content = RecordDict(
        {
            "texts": ConfigRecord({"a": text}),
            "arrays": ArrayRecord(
                {f"n{i}": Array("|u1", (len(b),), "raw", b) for i, b in enumerate(arrays)}
            ),
            "none": ArrayRecord(),
        }
    )
    memory = SharedBytes.create()
    memory.write([b"x" * 900])  # of a longer message before
    records = apart(content)
    back = restore(describe(records.values(), memory), memory)
    again = together(dict(zip(records, back, strict=True)))
    memory.close()
    assert again["texts"]["a"] == text
    assert [(a.dtype, a.shape, a.stype, a.data) for a in again["arrays"].values()] == [
        ("|u1", (len(b),), "raw", b) for b in arrays
    ]
    assert list(again) == ["texts", "arrays", "none"]


def test_memory_that_is_shorter_than_it_should_be_is_noticed() -> None:
    memory = SharedBytes.create()
    memory.write([b"four"])
    with pytest.raises(WireError):
        memory.read(0, 5)
    memory.close()


# --- the grid ------------------------------------------------------------------------------

STUB = """
import os, time
from pathlib import Path
from tacit_common.messages import SiteDescription

class Ledger:
    head = None

class Stub:
    ledger = Ledger()

    def __init__(self, index, folder):
        self.index, self.folder = index, Path(folder)

    def answer(self, request, witnessed):
        (self.folder / f"worker-{os.getpid()}").touch()
        if (self.folder / f"slow-{self.index}").exists():
            time.sleep(30)
        if (self.folder / f"die-{self.index}").exists():
            (self.folder / f"die-{self.index}").unlink()
            os._exit(9)
        if (self.folder / f"fail-{self.index}").exists():
            raise RuntimeError("it does not work")
        return SiteDescription(site=f"s{self.index}", declared_units=1, tacit_version="0")

class Stubs:
    def __init__(self, folder):
        self.folder = folder

    def open(self, index):
        return Stub(index, self.folder)

    def close(self):
        (Path(self.folder) / f"closed-{os.getpid()}").touch()
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """Sites that answer in a worker as the files in a folder say."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "stub_sites.py").write_text(STUB)
    monkeypatch.syspath_prepend(str(code))
    (tmp_path / "sites").mkdir()
    return Workplace("stub_sites:Stubs", {"folder": str(tmp_path / "sites")})


def messages(grid: PoolGrid, nodes: list[int] | None = None) -> list[Message]:
    return [
        Message(encode(REQUEST), dst_node_id=node, message_type=message_type(REQUEST))
        for node in nodes or grid.get_node_ids()
    ]


def awaited(grid: PoolGrid, names: list[str]) -> Message:
    """The next reply."""
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        for reply in grid.pull_messages(names):
            return reply


def asked(grid: PoolGrid, nodes: list[int] | None = None) -> list[str]:
    """What each site answers, in the order of asking: its name, a code, or 'error'."""
    names = grid.push_messages(messages(grid, nodes))
    heard = []
    for place, name in enumerate(names):
        reply = awaited(grid, names[place:])
        assert reply.metadata.reply_to_message_id == name
        if reply.has_error():
            heard.append("error")
            continue
        answer = decode_reply(reply.content)
        assert isinstance(answer, SiteDescription | Refusal)
        heard.append(answer.site if isinstance(answer, SiteDescription) else answer.code.value)
    return heard


def workers_of(folder: Path) -> set[int]:
    return {int(path.name.partition("-")[2]) for path in folder.glob("worker-*")}


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_sites_answer_in_the_order_of_asking_from_processes_of_their_own(
    workplace: Workplace, tmp_path: Path
) -> None:
    sites = tmp_path / "sites"
    everyone = [f"s{index}" for index in range(40)]  # more replies than there are slots
    with PoolGrid(workplace, 40, 2) as grid:
        assert asked(grid) == everyone
        assert asked(grid, [7, 3, 5]) == ["s5", "s1", "s3"]
        workers = workers_of(sites)
        assert len(workers) == 2
        assert os.getpid() not in workers

        (sites / "fail-1").touch()
        assert asked(grid, [2, 3, 4]) == ["s0", RefusalCode.INTERNAL.value, "s2"]
        (sites / "fail-1").unlink()

        grid.push_messages(messages(grid))  # and nobody asks for the replies
        assert asked(grid) == everyone
    assert all((sites / f"closed-{pid}").exists() for pid in workers)
    assert not any(is_alive(pid) for pid in workers)


def test_a_worker_that_dies_fails_its_sites_and_is_replaced(
    workplace: Workplace, tmp_path: Path
) -> None:
    with PoolGrid(workplace, 6, 2) as grid:
        (tmp_path / "sites" / "die-2").touch()
        assert asked(grid) == ["s0", "s1", "error", "s3", "error", "s5"]
        assert asked(grid) == [f"s{index}" for index in range(6)]
    assert len(workers_of(tmp_path / "sites")) == 3


def test_a_worker_that_does_not_start_is_an_error() -> None:
    with (
        PoolGrid(Workplace("stub_sites_of_nobody:Stubs", {}), 1, 1) as grid,
        pytest.raises(TacitError, match="does not start"),
    ):
        asked(grid)


def interrupted(grid: PoolGrid, folder: Path) -> None:
    """Asks a site that takes half a minute, and is interrupted meanwhile."""
    asked(grid)
    (folder / "slow-0").touch()
    grid.push_messages(messages(grid))
    raise KeyboardInterrupt


def test_an_interrupt_ends_workers_that_are_at_work(workplace: Workplace, tmp_path: Path) -> None:
    sites, grid = tmp_path / "sites", PoolGrid(workplace, 2, 2)
    with pytest.raises(KeyboardInterrupt), grid:
        interrupted(grid, sites)
    assert not any(is_alive(pid) for pid in workers_of(sites))
    assert not list(sites.glob("closed-*"))  # at once, in the middle of what they did


OWNER = """
import sys
from tacit_common.flower.apps import begin_task
from tacit_simulations.pool import PoolGrid, Workplace
from tacit_common.messages import DescribeRequest, message_type
from tacit_common.wire import encode
from tacit_common.study_file import parse_study
from tacit_common.study_reference import EXAMPLE_STUDY
from flwr.app import Message

begin_task(run_id=1, node_id=1)
with PoolGrid(Workplace("stub_sites:Stubs", {"folder": sys.argv[1]}), 2, 2) as grid:
    request = DescribeRequest(parse_study(EXAMPLE_STUDY).travelling())
    grid.push_messages(
        [Message(encode(request), dst_node_id=n, message_type=message_type(request))
         for n in grid.get_node_ids()]
    )
    while True:
        pass
"""


def test_no_worker_outlives_a_pool_that_was_killed(workplace: Workplace, tmp_path: Path) -> None:
    sites = tmp_path / "sites"
    (sites / "slow-0").touch()
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, workplace.arguments["folder"]],
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        wait_until(lambda: len(workers_of(sites)) == 2)
        workers = workers_of(sites)
        assert all(is_alive(pid) for pid in workers)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in workers))
    assert not list(sites.glob("closed-*"))  # at once, in the middle of what they did


# --- a whole simulation ----------------------------------------------------------------------


def run(folder: Path, study: StudyFile, workers: int) -> Path:
    folder = new_folder(study, folder)
    result = simulate(read_folder(folder), folder, workers=workers)
    assert all(not one.refused for one in result.report.rounds)
    return folder


def encoder_of(folder: Path) -> bytes:
    return (folder / "encoder" / "encoder.safetensors").read_bytes()


def test_workers_give_the_encoder_of_one_process(
    tmp_path: Path, study_file: MakeFile, no_privacy: str
) -> None:
    study = study_file(no_privacy, "simulation.sites=3")
    one, two = (run(tmp_path / str(workers), study, workers) for workers in (1, 2))
    assert encoder_of(one) == encoder_of(two)

    for path in sorted(two.glob("checkpoints/round-*"))[-1:]:
        path.unlink()
    simulate(read_folder(two), two, workers=1)  # goes on with another number of them
    assert encoder_of(one) == encoder_of(two)


def test_workers_keep_the_ledgers_of_one_process(tmp_path: Path, study_file: MakeFile) -> None:
    study = study_file("simulation.sites=3")
    said = []
    for workers in (1, 2):
        folder = run(tmp_path / str(workers), study, workers)
        ledgers = [read_ledger(path) for path in sorted(folder.glob("sites/*/ledger.db"))]
        said.append(
            [
                (
                    ledger.genesis.site,
                    ledger.head.seq,
                    len(ledger.atoms),
                    [(c.label, c.event, c.planned, c.cap, c.atoms) for c in ledger.charges],
                    len(ledger.committed),
                )
                for ledger in ledgers
            ]
        )
    assert said[0] == said[1]
    assert len(said[0]) == 3


def test_few_rounds_large_models_and_what_is_asked_for_are_not_shared_out(
    study_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def workers(*changes: str) -> int:
        study = study_file(*changes)
        assert study.simulation is not None
        return workers_that_pay(study, study.simulation)

    many = ("federation.rounds=100", "simulation.sites=6")
    assert workers(*many) == 6
    assert workers(*many, "simulation.threads=4") == 2
    assert workers("federation.rounds=2", "simulation.sites=6") == 1
    assert workers(*many, "encoder.width=4096", "encoder.depth=12") == 1
