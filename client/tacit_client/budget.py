"""What a site's ledger says of its budget: for the site, and for whoever it shows it to.

Everything is computed from the ledger alone: no data is read, and no private key either.
All ε are at the cap's δ; `null` in the JSON stands for an ε without a bound.
"""

import math
from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tacit_client.ledger import Ledger
from tacit_client.ledger_file import read_export, read_ledger
from tacit_common.errors import UsageError
from tacit_common.files import write_atomically
from tacit_common.identity import Identity
from tacit_common.ledger_chain import Atom, Cap, Charge, LedgerExport, VerifiedLedger, verify_rows
from tacit_common.privacy.accounting import REPORT_INTERVAL, epsilon
from tacit_common.privacy.events import NonPrivateRelease, PrivacyEvent
from tacit_common.privacy.filter import events_of, releases_of, renyi_cost
from tacit_common.privacy.plan import calibrate
from tacit_common.privacy.spend import AtomSpend, Rule, Spend, Verdict
from tacit_common.study import LocalPrivacyPlan, Study

LEDGER_NAME = "ledger.db"
IDENTITY_NAME = "identity.key"
_NEW_RUN = "a new run"


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class AtomBudget(_Figures):
    """One atom of the site's data: units that every study used together or not at all."""

    atom: str
    lineage: str = Field(description="What the operator calls the data.")
    rule: Rule | None = Field(description="By what its spend is bounded; null: never used.")
    spent: float = Field(description="ε of all that was reserved.")
    held: float = Field(description="ε of that and of what started studies may still release.")
    remaining: float = Field(description="ε that further studies may cost.")
    releases: int = Field(description="Reserved requests.")


class RunBudget(_Figures):
    """What one run of a study has reserved."""

    run: str
    study: str
    state: Literal["open", "closed"]
    releases: int
    failed: int = Field(description="Reserved, and no answer but a code ever left.")
    unfinished: int = Field(description="Reserved, and neither answered nor failed so far.")
    alone: float = Field(description="ε of this run's releases alone, by PLD.")
    share: float | None = Field(
        description="Its part of the Rényi cost of all releases, where that is largest."
    )


class Proposal(_Figures):
    """What the next round of a study would do to one atom, if the study touched it."""

    atom: str
    label: str = Field(description="The round that would come next.")
    admitted: bool
    why: str | None = Field(description="Why it would be refused.")
    spent: float = Field(description="ε of all reserves after that round.")
    held: float = Field(description="ε of all reserves once the whole study is done.")
    of_study: float = Field(description="ε of all runs of the study then, by PLD.")


class Budget(_Figures):
    """The state of a site's budget at one signed head of its ledger."""

    site: str
    public_key: str
    head_seq: int
    head_hash: str
    cap: Cap
    atoms: list[AtomBudget]
    runs: list[RunBudget]
    study: str | None = Field(description="The study that was asked about.")
    proposals: list[Proposal]


def load(folder: Path) -> tuple[VerifiedLedger, LedgerExport]:
    """The verified ledger in a site's folder (or at that path), and its rows to pass on.

    Raises:
        LedgerError: there is none, or it cannot be trusted.
    """
    export = read_export(folder / LEDGER_NAME if folder.is_dir() else folder)
    return verify_rows(export.rows), export


def close_run_at(folder: Path, run: str) -> str:
    """Give up the rest of a run's plan in the ledger of a site's folder; returns what was done.

    Raises:
        UsageError: the ledger knows no such run.
        LedgerError: the ledger or the site's key cannot be used.
    """
    found = read_ledger(folder / LEDGER_NAME)
    known = {charge.run for charge in found.charges}
    if run not in known:
        raise UsageError(
            f"the ledger knows no run '{run}'",
            why="nothing was ever reserved for it",
            fix="name one of: " + (", ".join(sorted(known)) or "none, nothing was reserved yet"),
        )
    identity = Identity.load_or_create(folder / IDENTITY_NAME)
    ledger = Ledger(folder / LEDGER_NAME, site=found.genesis.site, identity=identity)
    try:
        ledger.close_run(run)
    finally:
        ledger.close()
    return f"run {run} is closed: what it reserved stays spent, the rest is free for others"


def present_cap(
    ledger: VerifiedLedger, epsilon_cap: float | None = None, delta: float | None = None
) -> Cap:
    """The cap of the newest charge, or the one given instead.

    Raises:
        UsageError: a part is missing, or out of range.
    """
    newest = next((charge.cap for charge in reversed(ledger.charges) if charge.cap), None)
    if epsilon_cap is None and newest is not None:
        epsilon_cap = newest.epsilon
    if delta is None and newest is not None:
        delta = newest.delta
    if epsilon_cap is None or delta is None:
        raise UsageError(
            "the site's cap is not known",
            why="nothing was ever charged under one, so the ledger does not name it",
            fix="give --epsilon-cap and --delta as the site's policy has them",
        )
    if not (epsilon_cap > 0 and 0 < delta < 1):
        raise UsageError(
            f"ε = {epsilon_cap:g} at δ = {delta:g} is no cap",
            why="ε has to be positive, and δ strictly between 0 and 1",
            fix="give --epsilon-cap and --delta as the site's policy has them",
        )
    return Cap(epsilon=epsilon_cap, delta=delta)


def budget_of(
    ledger: VerifiedLedger, cap: Cap, study: Study | None = None, *, in_new_run: bool = False
) -> Budget:
    """All figures, and those of `study`'s next round if one is given."""
    spend = Spend.of(ledger)
    lineage = {atom.atom: atom.lineage for atom in ledger.atoms}
    spends = {atom: spend.of_atom(atom, cap) for atom in spend.atoms}
    return Budget(
        site=ledger.genesis.site,
        public_key=ledger.genesis.public_key,
        head_seq=ledger.head.seq,
        head_hash=ledger.head.hash,
        cap=cap,
        atoms=[
            AtomBudget(
                atom=one.atom,
                lineage=lineage[one.atom],
                rule=one.rule,
                spent=one.spent,
                held=one.held,
                remaining=one.remaining,
                releases=one.releases,
            )
            for one in spends.values()
        ],
        runs=_runs(ledger, cap, spend, spends),
        study=None if study is None else study.name,
        proposals=[] if study is None else _proposals(ledger, spend, cap, study, in_new_run),
    )


def write_export(path: Path, export: LedgerExport) -> None:
    """Write the signed rows of a ledger to a file.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        write_atomically(path, export.model_dump_json().encode(), b"\n")
    except OSError as error:
        raise UsageError(
            f"the export cannot be written to '{path.name}'",
            why=error.strerror or type(error).__name__,
            fix="name a file in a folder that you may write to",
        ) from None


# --- runs ------------------------------------------------------------------------------


def _runs(
    ledger: VerifiedLedger, cap: Cap, spend: Spend, spends: dict[str, AtomSpend]
) -> list[RunBudget]:
    of_run: dict[tuple[str, str], list[Charge]] = {}
    for charge in ledger.charges:
        of_run.setdefault((charge.run, charge.study), []).append(charge)
    shares = _shares(ledger, spend, spends)
    settled = ledger.voided | ledger.committed
    return [
        RunBudget(
            run=run,
            study=study,
            state="closed" if run in ledger.closed_runs else "open",
            releases=len(charges),
            failed=sum(charge.key in ledger.voided for charge in charges),
            unfinished=sum(charge.key not in settled for charge in charges),
            alone=epsilon([charge.event for charge in charges], cap.delta),
            share=shares.get((run, study)),
        )
        for (run, study), charges in of_run.items()
    ]


def _shares(
    ledger: VerifiedLedger, spend: Spend, spends: dict[str, AtomSpend]
) -> dict[tuple[str, str], float]:
    """Rényi costs add up, so a run's share does not depend on which run came first."""
    reserved: dict[str, dict[tuple[str, str], Counter[tuple[float, float]]]] = {}
    for charge in ledger.charges:
        if isinstance(charge.event, NonPrivateRelease):
            continue
        for atom in spend.touched(charge):
            runs = reserved.setdefault(atom, {})
            runs.setdefault((charge.run, charge.study), Counter()).update(
                releases_of([charge.event])
            )
    shares: dict[tuple[str, str], float] = {}
    for atom, runs in reserved.items():
        order = spends[atom].order
        if order is None:
            continue
        costs = {run: renyi_cost(releases, order) for run, releases in runs.items()}
        for run, cost in costs.items():
            shares[run] = max(shares.get(run, 0.0), cost / sum(costs.values()))
    return shares


# --- a study ---------------------------------------------------------------------------


def _proposals(
    ledger: VerifiedLedger, before: Spend, cap: Cap, study: Study, in_new_run: bool
) -> list[Proposal]:
    charge = _next_round(ledger, before.atoms, cap, study, in_new_run)
    after = Spend.of(ledger)
    if not before.atoms:  # a site without a history: any data of it is new
        new = Atom(atom=charge.atoms[0], lineage="", parents=(), tags_sha256="0" * 64)
        before.add_atom(new)
        after.add_atom(new)
    after.add(charge)
    found = []
    held = [] if charge.cap is None else [events_of(held) for held in before.of_study(charge)]
    for verdict, of_study in zip_longest(before.verdicts(charge), held):
        then = after.of_atom(verdict.atom, cap)
        found.append(
            Proposal(
                atom=verdict.atom,
                label=charge.label,
                admitted=verdict.admitted,
                why=None if verdict.admitted else _why(verdict, charge),
                spent=then.spent,
                held=then.held,
                of_study=math.inf if of_study is None else _of_study(of_study, cap),
            )
        )
    return found


def _of_study(events: Iterable[PrivacyEvent], cap: Cap) -> float:
    return epsilon(events, cap.delta, interval=REPORT_INTERVAL)


def _why(verdict: Verdict, charge: Charge) -> str:
    if charge.cap is None:
        return "it has no differential privacy; only a policy that allows that would admit it"
    return verdict.why


def _next_round(
    ledger: VerifiedLedger, atoms: tuple[str, ...], cap: Cap, study: Study, in_new_run: bool
) -> Charge:
    """The charge of the study's next round: in its newest open run, or in a new one."""
    digest = study.digest()
    blocks = [
        charge.run
        for charge in ledger.charges
        if charge.study_digest == digest
        and charge.action != "audit"
        and charge.run not in ledger.closed_runs
        and not in_new_run
    ]
    run, number = blocks[-1] if blocks else _NEW_RUN, 1
    done = {charge.label for charge in ledger.charges if charge.block == (run, digest)}
    while f"round {number}" in done:
        number += 1
    if number > study.federation.rounds:  # that run is over: what would another cost?
        run, number = _NEW_RUN, 1
    schedule, privacy = calibrate(study), study.privacy
    return Charge(
        key="proposed",
        run=run,
        study=study.name,
        study_digest=digest,
        action="train",
        label=f"round {number}",
        unit=privacy.unit if isinstance(privacy, LocalPrivacyPlan) else None,
        event=schedule.round_event,
        planned=schedule.planned,
        atoms=atoms or ("a0",),
        cap=cap if isinstance(privacy, LocalPrivacyPlan) else None,
    )
