"""Several processes that answer for one site share its budget."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tacit_client.ledger_file import read_ledger
from tacit_common.ledger_chain import Cap
from tacit_common.privacy.accounting import epsilon
from tacit_common.privacy.spend import Rule, Spend
from tacit_common.study import StudyFile

RACE = """
import os, sys
from pathlib import Path
import torch
from tacit_client.atoms import bind
from tacit_client.data import ArraySource
from tacit_client.ledger import Ledger
from tacit_client.outbox import Outbox
from tacit_client.policy import SitePolicy
from tacit_client.site import Site
from tacit_common.errors import SiteRefusal
from tacit_common.identity import Identity
from tacit_common.model import build_model
from tacit_common.plugins import PluginTable
from tacit_common.privacy.separability import Certificates
from tacit_common.privacy.noise import SecureRandom
from tacit_common.privacy.plan import calibrate
from tacit_common.study_file import parse_study
from tacit_common.training import flatten_parameters
from tacit_common.messages import RoundPlan, TrainRequest, parameters_sha256

torch.set_num_threads(1)
folder, cap = Path(sys.argv[1]), float(sys.argv[2])
study = parse_study(sys.stdin.read()).travelling()
start = flatten_parameters(build_model(study, PluginTable())[0])

noise = calibrate(study).noise_multiplier
images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))

def race(name):
    source, identity = ArraySource(images), Identity.load_or_create(folder / "identity.key")
    ledger = Ledger(folder / "ledger.db", site="site-0", identity=identity)
    site = Site(
        name="site-0", source=source, declared_units=20,
        policy=SitePolicy.rehearsal(
            unit="record", epsilon_cap=cap, delta=1e-5, allow_non_private=False
        ),
        ledger=ledger, atoms=bind(ledger, identity, source, lineage="race"),
        certificates=Certificates(folder / "certificates.json"), outbox=Outbox(folder / "outbox"),
        plugins=PluginTable(), random=SecureRandom(),
    )
    for number in range(1000):
        plan = RoundPlan(
            run=f"{name}-{number}", round=1, study=study, noise_multiplier=noise,
            parameters_sha256=parameters_sha256(start),
        )
        try:
            site.answer(TrainRequest(plan, start))
        except SiteRefusal as refusal:
            os._exit(0 if refusal.code == "budget" else 1)
    os._exit(1)

children = []
for name in "abcd":
    child = os.fork()
    if child == 0:
        race(name)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
"""


@pytest.mark.slow
def test_processes_that_race_for_one_budget_stop_below_the_cap(
    tmp_path: Path, study_file: Callable[..., StudyFile]
) -> None:
    cap = 2.0
    done = subprocess.run(
        [sys.executable, "-c", RACE, str(tmp_path), str(cap)],
        input=study_file("privacy.epsilon=0.5").to_toml(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "[0, 0, 0, 0]", done.stderr
    ledger = read_ledger(tmp_path / "ledger.db")
    assert len({charge.run[0] for charge in ledger.charges}) > 1  # they did race
    (atom,) = ledger.atoms
    account = Spend.of(ledger).of_atom(atom.atom, Cap(epsilon=cap, delta=1e-5))
    assert account.rule is Rule.FILTER
    assert account.held <= cap
    one = ledger.charges[0]
    again = one.model_copy(update={"run": "one more", "key": "one more"})
    assert not Spend.of(ledger).verdicts(again)[0].admitted  # nothing more fits
    assert epsilon([charge.event for charge in ledger.charges], 1e-5) <= cap  # with PLD as well
