"""A run that never was, with ledgers that are real: true reports to verify, and to tamper with."""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from tests.common.report.wording import local_wording, none_wording

from tacit_common import report as r
from tacit_common.errors import RefusalCode
from tacit_common.identity import Identity
from tacit_common.ledger_chain import (
    Atom,
    Cap,
    Charge,
    Commit,
    Entry,
    Genesis,
    LedgerExport,
    Payload,
    Void,
    head_of,
    next_entry,
    verify_rows,
)
from tacit_common.objectives.logit_dp import logit_dp_sensitivity
from tacit_common.privacy.events import PoissonGaussianSteps, PrivacyEvent
from tacit_common.privacy.noise import LatticeGaussian, SecureRandom
from tacit_common.privacy.plan import calibrate
from tacit_common.report import statements
from tacit_common.report.account import site_account
from tacit_common.report.assumptions import assumptions
from tacit_common.report.recompute import figures_of_site, grouped
from tacit_common.report.signing import SignedReport, sign_report
from tacit_common.study import LocalPrivacyPlan, LogitDPPlan, Study
from tacit_common.study_file import parse_study

RUN = "run-7"
ROUNDS = 3
STARTED = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
AT = "2026-03-02T09:31:00+00:00"

LOCAL = 'mode = "local"\nunit = "record"\nepsilon = 4.0\ndelta = 1e-5\nl2_clip_norm = 0.5'
NONE = dict.fromkeys(("none", "deployed none", "deployed none, withheld"), 'mode = "none"')
SUBJECT = LOCAL.replace('"record"', '"subject"\nrecords_per_subject = 3')
STUDY = """
name = "tiny"
seed = 3
[encoder]
kind = "vit"
image_size = 8
channels = 1
patch_size = 4
width = 16
depth = 1
heads = 2
[objective]
kind = "{objective}"
[federation]
rounds = 3
local_steps = 2
client_lr = 0.1
[[probes]]
kind = "ridge"
classes = 10
{probe}
[privacy]
{privacy}
sampling_rate = 0.25
"""


@dataclass(frozen=True)
class Case:
    """A signed report, whose key it is, and the ledgers behind it."""

    coordinator: Identity
    signed: SignedReport
    exports: tuple[LedgerExport, ...]

    def document(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.signed.canonical_json())
        return content


@cache
def case(variant: str = "plan") -> Case:
    """`plan`: one run a ledger. `filter`: one ledger has an earlier run too. Others: the same
    as `plan` with another unit, objective or mode; deployed; or deployed with a site that
    withheld its account, whose ledger has an earlier run too."""
    study = parse_study(
        STUDY.format(
            objective="logit_dp" if variant == "logit_dp" else "masked",
            probe="" if variant in NONE else "epsilon = 1.0",
            privacy={"subject": SUBJECT, **NONE}.get(variant, LOCAL),
        )
    ).travelling()
    schedule = calibrate(study)
    private = isinstance(study.privacy, LocalPrivacyPlan)
    cap = Cap(epsilon=6.0, delta=1e-5) if private else None

    unit = study.privacy.unit if isinstance(study.privacy, LocalPrivacyPlan) else None

    def charge(label: str, event: PrivacyEvent, run: str = RUN) -> Charge:
        return Charge(
            key=f"{run} {label}",
            run=run,
            study="tiny",
            study_digest=study.digest(),
            action="train" if label.startswith("round") else "probe",
            label=label,
            unit=unit,
            event=event,
            planned=schedule.planned,
            atoms=("a0",),
            cap=cap,
        )

    probe = schedule.probe_releases[0].event
    whole = [
        charge("probe 0 before", probe),
        *(charge(f"round {n}", schedule.round_event) for n in range(1, ROUNDS + 1)),
        charge("probe 0 after", probe),
    ]
    few_steps = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=4.0, steps=3)
    other = charge("round 1", few_steps, run="run-6").model_copy(
        update={"study_digest": "ab" * 32, "planned": (few_steps,)}
    )
    earlier = [other] if variant in {"filter", "deployed, withheld"} else []
    ledgers = {
        "site-0": ([*earlier, *whole], set()),
        "site-1": (whole, {"round 2"}),  # the answer failed, and was paid for
        "site-2": (whole[:3], set()),  # was not asked again
    }
    identities = {name: Identity.create() for name in ledgers}
    exports = tuple(
        _ledger(name, identities[name], charges, failed=failed)
        for name, (charges, failed) in ledgers.items()
    )
    coordinator = Identity.create()
    report = case_report(
        study,
        exports,
        engine="deployed" if variant.startswith("deployed") else "in-process",
        withheld={"site-0"} if variant.endswith("withheld") else set(),
    )
    return Case(coordinator, sign_report(report, coordinator), exports)


def _ledger(
    name: str, identity: Identity, charges: Sequence[Charge], *, failed: set[str]
) -> LedgerExport:
    payloads: list[Payload] = [
        Genesis(site=name, public_key=identity.public_key),
        Atom(atom="a0", lineage="scans", parents=(), tags_sha256="0" * 64),
    ]
    for charge in charges:
        payloads.append(charge)
        payloads.append(Void(key=charge.key) if charge.label in failed else Commit(key=charge.key))
    return LedgerExport(rows=chain(payloads, name, identity))


def chain(payloads: Sequence[Payload], name: str, identity: Identity) -> tuple[Entry, ...]:
    rows: list[Entry] = []
    for payload in payloads:
        previous = rows[-1] if rows else None
        rows.append(next_entry(previous, payload, at=AT, site=name, identity=identity))
    return tuple(rows)


def case_report(
    study: Study,
    exports: Sequence[LedgerExport],
    *,
    engine: r.Engine = "in-process",
    withheld: Collection[str] = (),
) -> r.Report:
    names = ("site-0", "site-1", "site-2")
    answered = (names, ("site-0", "site-2"), ("site-0", "site-1"))
    rounds = tuple(
        r.RoundReport(
            number=number,
            asked=names,
            answered=who,
            refused=(r.Refusal(site="site-1", code=RefusalCode.DIVERGED),) if number == 2 else (),
            seconds=1.5,
            mean_update_norm=0.2,
            validation_loss=0.05,
            training_loss=None if isinstance(study.privacy, LocalPrivacyPlan) else 0.06,
        )
        for number, who in enumerate(answered, start=1)
    )
    sites = tuple(_site(study, export, rounds, withheld) for export in exports)
    return r.Report(
        run=r.Run(
            name="tiny",
            id=RUN,
            engine=engine,
            status="complete",
            started=STARTED,
            finished=STARTED + timedelta(seconds=9),
            rounds_planned=ROUNDS,
            rounds_done=ROUNDS,
            wall_s=8.0,
            resumed=0,
        ),
        study=r.StudyRecord.of(study),
        software=r.Software.installed(),
        privacy=_privacy(study, sites, engine),
        sites=sites,
        cohorts=r.Cohorts(
            registered=3,
            asked_per_round=3,
            quorum=2,
            smallest_answered=2,
            worst_dropout=1 / 3,
            threshold=None,
            collusion_bound=None,
        ),
        models=r.Models(parameters=5000, initial_sha256="1" * 64, final_sha256="2" * 64),
        rounds=rounds,
        probes=tuple(
            r.ProbeReport(
                name="ridge",
                when=when,
                epsilon_per_site=study.probes[0].epsilon,
                accuracy=None
                if engine == "deployed"
                else r.Interval(value=0.5, low=0.4, high=0.6, method="Wilson"),
            )
            for when in ("before", "after")
        ),
    )


def _site(
    study: Study,
    export: LedgerExport,
    rounds: Sequence[r.RoundReport],
    withheld: Collection[str],
) -> r.SiteReport:
    ledger = verify_rows(export.rows)
    privacy, name = study.privacy, ledger.genesis.site
    answered = sum(name in seen.answered for seen in rounds)
    if name in withheld:
        private = isinstance(privacy, LocalPrivacyPlan)
        schedule = calibrate(study)
        return r.SiteReport.without_account(
            "withheld",
            name=name,
            declared_units=200,
            rounds_answered=answered,
            # The coordinator saw no later one: the last answer was lost on its way.
            ledger=head_of(export.rows[-3], ledger.genesis),
            planned=grouped(schedule.planned) if private else (),
            epsilon_planned=schedule.planned_epsilon if private else None,
        )
    account = site_account(
        ledger,
        run=RUN,
        rounds_done=ROUNDS,
        delta=privacy.delta if isinstance(privacy, LocalPrivacyPlan) else None,
    )
    return r.SiteReport.of_account(account, name=name, declared_units=200, rounds_answered=answered)


def _privacy(
    study: Study, sites: Sequence[r.SiteReport], engine: r.Engine
) -> r.LocalPrivacy | r.NoPrivacy:
    privacy = study.privacy
    if not isinstance(privacy, LocalPrivacyPlan):
        return r.NoPrivacy(
            mode="none",
            **none_wording(engine),
            sampling_rate=0.25,
            steps=6,
            assumptions=assumptions(study, engine=engine),
        )
    unit, cap, delta = privacy.unit, privacy.records_per_subject, privacy.delta
    worst = max(sites, key=lambda site: site.epsilon_known or 0.0)
    figures = figures_of_site(worst, delta)
    return r.LocalPrivacy(
        mode="local",
        **local_wording(
            unit=unit,
            cap=cap,
            epsilon=figures.epsilon,
            delta=delta,
            trade_off=figures.trade_off,
            engine=engine,
            without_account=sum(not site.is_disclosed for site in sites),
        ),
        epsilon_target=privacy.epsilon,
        epsilon_spent=figures.epsilon,
        delta=delta,
        releases=_releases(study, privacy),
        accountants=figures.accountants,
        curve=figures.curve,
        trade_off=figures.trade_off,
        groups=figures.groups,
        assumptions=assumptions(study, engine=engine),
        audit=r.Audit(
            claimed_epsilon=1.0,
            epsilon_lower_bound=0.81997291217,  # computed by the code of `tacit audit`
            confidence=0.95,
            canaries=1000,
            guesses=200,
            right_guesses=150,
            gradient_path="per-unit gradients",
        ),
    )


def _releases(study: Study, privacy: LocalPrivacyPlan) -> Iterator[r.Release]:
    schedule = calibrate(study)
    training = statements.training_mechanism(
        unit=privacy.unit, records_per_subject=privacy.records_per_subject
    )
    probes = [(f"probe {p.probe} {p.when}", p.event) for p in schedule.probe_releases]
    for name, event in [("training", schedule.planned[0]), *probes]:
        clip_norm = contribution = privacy.l2_clip_norm if name == "training" else math.sqrt(3)
        if name == "training" and isinstance(study.objective, LogitDPPlan):
            contribution = logit_dp_sensitivity(
                l2_clip_norm=clip_norm, temperature=study.objective.temperature, records=None
            )
        lattice = LatticeGaussian(
            l2_clip_norm=contribution,
            dimension=5000,
            noise_multiplier=event.noise_multiplier,
            source=SecureRandom(),
        )
        yield r.Release(
            name=name,
            mechanism=training if name == "training" else statements.PROBE_MECHANISM,
            event=event,
            l2_clip_norm=clip_norm,
            l2_sensitivity=lattice.l2_sensitivity,
            noise_stddev=lattice.noise_stddev,
        )
