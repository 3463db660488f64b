"""An example of a report, for every test that reads or draws one.

Its figures are consistent with one another, and come from closed forms instead of the
accountants: ε and the trade-off are those of one Gaussian release.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from statistics import NormalDist
from types import MappingProxyType
from typing import Literal

import numpy as np
import pytest
from tests.common.report.wording import local_wording, none_wording

from tacit_common import report as r
from tacit_common.errors import RefusalCode
from tacit_common.identity import Identity
from tacit_common.ledger_chain import Genesis, SignedHead, head_of, next_entry
from tacit_common.privacy.events import GaussianRelease, NonPrivateRelease, PoissonGaussianSteps
from tacit_common.report import statements
from tacit_common.report.assumptions import assumptions
from tacit_common.report.pictures import png_data_uri
from tacit_common.study_file import parse_study

SITES = tuple(f"site-{k}" for k in range(5))
HOSPITALS = ("clinic-aachen", "clinic-basel", "clinic-porto")
NOBODY: Mapping[str, Literal["withheld", "missing"]] = MappingProxyType({})
ROUNDS = 12
DELTA = 1e-5
STARTED = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
PLANNED = (
    PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=0.8123, steps=240),
    GaussianRelease(noise_multiplier=4.2217),
)
RATES = (0.0, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, *(k / 10 for k in range(1, 10)), 0.95, 1.0)

STUDY = """
name = "digits-local"
seed = 7
[encoder]
kind = "vit"
image_size = 8
channels = 1
patch_size = 2
width = 48
depth = 2
heads = 4
[objective]
kind = "masked"
[federation]
rounds = 12
local_steps = 20
client_lr = 0.2
[[probes]]
kind = "ridge"
classes = 10
"""
LOCAL = """epsilon = 1.0
[privacy]
mode = "local"
unit = "record"
epsilon = 8.0
delta = 1e-5
l2_clip_norm = 1.0
sampling_rate = 0.1
"""
SUBJECT = LOCAL.replace('"record"', '"subject"\nrecords_per_subject = 4')
NONE = """[privacy]
mode = "none"
sampling_rate = 0.1
"""


def interval(value: float, n: int = 360) -> r.Interval:
    half = 1.96 * (value * (1 - value) / n) ** 0.5
    return r.Interval(
        value=value, low=value - half, high=value + half, method="Wilson, 360 records"
    )


# --- closed forms of one Gaussian release ----------------------------------------------


def cdf(x: float) -> float:
    """Φ(x), exact in its lower tail too."""
    return math.erfc(-x / math.sqrt(2)) / 2


def gaussian_true_positives(mu: float, rate: float) -> float:
    """1 − f(α) of a Gaussian release (Dong, Roth and Su 2022, equation 6)."""
    return rate if rate in {0.0, 1.0} else cdf(NormalDist().inv_cdf(rate) + mu)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """δ(ε) of a Gaussian release with sensitivity over noise μ (Balle and Wang 2018)."""
    return cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)


def gaussian_epsilon(mu: float, delta: float) -> float:
    low, high = 0.0, 600.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return high


def gaussian_mu(epsilon: float) -> float:
    low, high = 1e-4, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(middle, DELTA) < epsilon else (low, middle)
    return high


# --- parts -----------------------------------------------------------------------------


@cache
def site_identity(name: str) -> Identity:
    return Identity.create()


@cache
def ledger_head(name: str) -> SignedHead:
    """The head of a ledger that has one row."""
    identity = site_identity(name)
    genesis = Genesis(site=name, public_key=identity.public_key)
    first = next_entry(None, genesis, at="2026-03-02T09:29:00Z", site=name, identity=identity)
    return head_of(first, genesis)


@cache
def local_privacy(
    spent: float,
    *,
    subject: bool,
    audited: bool,
    engine: r.Engine = "in-process",
    without_account: int = 0,
) -> r.LocalPrivacy:
    unit, cap = ("subject", 4) if subject else ("record", None)
    mu = gaussian_mu(spent)
    gaussian = {"l2_clip_norm": 1.0, "l2_sensitivity": 1.015625}
    trade_off = tuple(
        r.OperatingPoint(
            false_positive_rate=rate,
            largest_true_positive_rate=gaussian_true_positives(mu, rate),
        )
        for rate in RATES
    )
    return r.LocalPrivacy(
        mode="local",
        **local_wording(
            unit=unit,
            cap=cap,
            epsilon=spent,
            delta=DELTA,
            trade_off=trade_off,
            engine=engine,
            without_account=without_account,
        ),
        epsilon_target=8.0,
        epsilon_spent=spent,
        delta=DELTA,
        releases=(
            r.Release(
                name="training",
                mechanism=statements.training_mechanism(unit=unit, records_per_subject=cap),
                event=PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=0.8123, steps=240),
                noise_stddev=0.8123 * 1.015625,
                **gaussian,
            ),
            r.Release(
                name="probe 0 before",
                mechanism=statements.PROBE_MECHANISM,
                event=GaussianRelease(noise_multiplier=4.2217),
                l2_clip_norm=3**0.5,
                l2_sensitivity=1.7591,
                noise_stddev=7.4264,
            ),
        ),
        accountants=(
            r.AccountantFigure(
                method="PLD",
                epsilon=spent,
                software="dp-accounting 0.6.0",
                discretisation="losses on a grid of 1e-4, rounded up",
            ),
            r.AccountantFigure(
                method="RDP",
                epsilon=spent * 1.08,
                software="dp-accounting 0.6.0",
                discretisation="153 orders from 1.01 to 4096",
            ),
            r.AccountantFigure(
                method="PRV",
                epsilon=spent + 0.0104,
                software="Opacus 1.6.0",
                discretisation="error of at most 0.01, added",
            ),
        ),
        curve=tuple(
            r.CurvePoint(delta=10.0**n, epsilon=gaussian_epsilon(mu, 10.0**n))
            for n in range(-12, -2)
        ),
        trade_off=trade_off,
        groups=tuple(
            r.GroupFigure(units=k, epsilon=gaussian_epsilon(k * mu, DELTA)) for k in (1, 2, 4, 8)
        ),
        assumptions=assumptions(parse_study(STUDY + LOCAL), engine=engine)
        if engine == "deployed"
        else (
            r.Assumption(
                text="No record is held by two sites",
                held=True,
                why="The simulation dealt every record to exactly one site.",
            ),
            r.Assumption(
                text="Each site’s software is what it reviewed",
                held=None,
                why="Nobody but the site can check this.",
            ),
            r.Assumption(
                text="Each site holds at least its declared number of records",
                held=False,
                why="site-4 holds fewer, so its expected batch is smaller; the bound still holds.",
            ),
        ),
        audit=r.Audit(
            claimed_epsilon=1.0,
            epsilon_lower_bound=0.4231,
            confidence=0.95,
            canaries=1000,
            guesses=200,
            right_guesses=131,
            gradient_path="per-unit gradients of the masked objective",
        )
        if audited
        else None,
    )


def no_privacy(engine: r.Engine) -> r.NoPrivacy:
    return r.NoPrivacy(
        mode="none",
        **none_wording(engine),
        sampling_rate=0.1,
        steps=240,
        assumptions=assumptions(parse_study(STUDY + NONE), engine=engine),
    )


def evaluation(*, helped: bool) -> r.Evaluation:
    ours = (0.9472, 0.8139, 0.9306) if helped else (0.9222, 0.7694, 0.8972)
    accuracies = {
        "Raw pixels": (0.9611, 0.7833, 0.9194),
        "Random encoder": (0.8917, 0.7111, 0.8556),
        "Warm start only": (0.9250, 0.7722, 0.9028),
        "This encoder": ours,
    }
    return r.Evaluation(
        dataset="digits",
        classes=10,
        train_records=1437,
        test_records=360,
        labels_per_class=10,
        partition="Dirichlet(0.3) over 5 sites",
        columns=("kNN", "Few labels", "Linear"),
        rows=tuple(
            r.EvaluationRow(
                label=label,
                role="result" if label == "This encoder" else "baseline",
                cells=tuple(interval(value) for value in values),
            )
            for label, values in accuracies.items()
        ),
    )


@cache
def pictures() -> r.Pictures:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images / 16.0
    rng = np.random.default_rng(3)
    triples = []
    for image in images[1500:1508]:
        hidden = np.kron(rng.random((4, 4)) < 0.75, np.ones((2, 2))).astype(bool)
        soft = (image + np.roll(image, 1, 0) + np.roll(image, -1, 1)) / 3
        triples.append(
            r.Reconstruction(
                original=png_data_uri(image),
                masked=png_data_uri(np.where(hidden, 0.0, image)),
                reconstructed=png_data_uri(np.where(hidden, soft, image)),
            )
        )
    queries = []
    for index in (1501, 1510, 1573, 1658):
        distances = np.linalg.norm((images[:1400] - images[index]).reshape(1400, -1), axis=1)
        near = [*np.argsort(distances)[:4], 17 + index % 5, index % 7]
        queries.append(
            r.NeighbourQuery(
                picture=png_data_uri(images[index]),
                label=str(digits.target[index]),
                neighbours=tuple(
                    r.Neighbour(picture=png_data_uri(images[i]), label=str(digits.target[i]))
                    for i in near
                ),
            )
        )
    return r.Pictures(
        source="digits, held-out part",
        reconstructions=tuple(triples),
        neighbour_queries=tuple(queries),
    )


# --- the whole -------------------------------------------------------------------------


def example(
    *,
    private: bool = True,
    subject: bool = False,
    audited: bool = False,
    earlier: float = 0.0,
    rounds_done: int = ROUNDS,
    refusing: str | None = None,
    silent: str | None = "site-2",
    sites: tuple[str, ...] = SITES,
    helped: bool = True,
    engine: r.Engine = "in-process",
    without_account: Mapping[str, Literal["withheld", "missing"]] = NOBODY,
) -> r.Report:
    """A run; `refusing` has spent its budget from round 9 on, `silent` misses round 4.

    `earlier` is what other runs add to each site's ε.
    """
    rounds = []
    for number in range(1, rounds_done + 1):
        refused = tuple(
            r.Refusal(site=site, code=RefusalCode.BUDGET)
            for site in sites
            if site == refusing and number >= 9
        )
        absent = {refusal.site for refusal in refused} | ({silent} if number == 4 else set())
        rounds.append(
            r.RoundReport(
                number=number,
                asked=sites,
                answered=tuple(site for site in sites if site not in absent),
                refused=refused,
                seconds=14.2 + 0.3 * (number % 4),
                mean_update_norm=0.42 / number**0.5 + 0.11,
                validation_loss=0.031 + 0.058 * 0.78**number,
                training_loss=None if private else 0.028 + 0.071 * 0.75**number,
            )
        )
    site_reports = [
        _without_account(why, name, rounds, private=private)
        if (why := without_account.get(name))
        else _site_report(k, name, rounds, private=private, earlier=earlier)
        for k, name in enumerate(sites)
    ]
    spent = max(site.epsilon_known or 0.0 for site in site_reports)
    study = parse_study(STUDY + (NONE if not private else SUBJECT if subject else LOCAL))
    verdict = (
        "With ten labels a class, this encoder is 4.2 points better than the warm start alone; "
        "the intervals touch."
        if helped
        else "The private training did not help: with ten labels a class this encoder is not "
        "better than the warm start alone, and raw pixels beat both."
    )
    answers = [len(round_.answered) for round_ in rounds]
    return r.Report(
        run=r.Run(
            name="digits-local-eps8" if private else "digits-none",
            id="3f0c9a1e7b42",
            engine=engine,
            status="complete" if rounds_done == ROUNDS else "interrupted",
            started=STARTED,
            finished=STARTED + timedelta(seconds=207),
            rounds_planned=ROUNDS,
            rounds_done=rounds_done,
            wall_s=192.4,
            resumed=1,
        ),
        study=r.StudyRecord.of(study.travelling()),
        software=r.Software.installed(),
        privacy=local_privacy(
            spent,
            subject=subject,
            audited=audited,
            engine=engine,
            without_account=len(without_account),
        )
        if private
        else no_privacy(engine),
        sites=tuple(site_reports),
        cohorts=r.Cohorts(
            registered=len(sites),
            asked_per_round=len(sites),
            quorum=(len(sites) + 1) // 2,
            smallest_answered=min(answers, default=0),
            worst_dropout=1 - min(answers, default=len(sites)) / len(sites),
            threshold=None,
            collusion_bound=None,
        ),
        models=r.Models(
            parameters=61_268,
            initial_sha256=hashlib.sha256(b"initial").hexdigest(),
            final_sha256=hashlib.sha256(b"final").hexdigest(),
        ),
        initial_validation_loss=0.0893,
        rounds=tuple(rounds),
        verdicts=(
            verdict,
            "kNN on raw pixels, which needs no training, is the best of its column.",
        ),
        probes=tuple(
            r.ProbeReport(
                name="ridge",
                when=when,
                epsilon_per_site=1.0 if private else None,
                accuracy=interval(accuracy),
            )
            for when, accuracy in (("before", 0.7123), ("after", 0.7689))
        ),
        evaluation=evaluation(helped=helped),
        pictures=pictures(),
    )


def _site_report(
    k: int, name: str, rounds: list[r.RoundReport], *, private: bool, earlier: float
) -> r.SiteReport:
    answered = [name in round_.answered for round_ in rounds]
    curve = tuple(
        float(2.26 * (1 + sum(answered[: i + 1])) ** 0.485) + earlier for i in range(len(rounds))
    )
    total = (curve[-1] if curve else earlier) + (0.071 if len(rounds) == ROUNDS else 0.0)
    total = total or 1.0  # a probe before the first round
    return r.SiteReport(
        name=name,
        declared_units=(280, 240, 300, 260, 280)[k % 5],
        rounds_answered=sum(answered),
        account="disclosed",
        atoms=("a0", "a2") if k == 1 else ("a0",),
        spent=PLANNED if private else (NonPrivateRelease(),),
        epsilon_after_round=curve if private else None,
        epsilon_run=total - earlier if private else None,
        epsilon_total=total if private else None,
        composition=("filter" if earlier else "plan") if private else None,
        renyi_order=8.0 if private and earlier else None,
        epsilon_cap=(12.0 if earlier else 8.0) if private else None,
        reserves=len(rounds) + 2,
        never_committed=len(rounds) - sum(answered),
        releases=sum(answered) + 2,
        ledger=ledger_head(name),
    )


def _without_account(
    why: Literal["withheld", "missing"],
    name: str,
    rounds: list[r.RoundReport],
    *,
    private: bool,
) -> r.SiteReport:
    return r.SiteReport.without_account(
        why,
        name=name,
        declared_units=260,
        rounds_answered=sum(name in round_.answered for round_ in rounds),
        ledger=ledger_head(name),
        planned=PLANNED if private else (),
        epsilon_planned=7.9973 if private else None,
    )


def deployed_example(
    *,
    private: bool = True,
    sites: tuple[str, ...] = HOSPITALS,
    without_account: Mapping[str, Literal["withheld", "missing"]] = NOBODY,
) -> r.Report:
    """A deployed run, whose coordinator has no labelled records to score an encoder on."""
    report = example(
        private=private,
        sites=sites,
        engine="deployed",
        silent=None,
        without_account=without_account,
    )
    unscored = tuple(probe.model_copy(update={"accuracy": None}) for probe in report.probes)
    return report.model_copy(
        update={"evaluation": None, "pictures": None, "verdicts": (), "probes": unscored}
    )


VARIANTS: dict[str, Callable[[], r.Report]] = {
    "local": example,
    "subject": lambda: example(subject=True, audited=True, earlier=2.5),
    "none": lambda: example(private=False, helped=False),
    "interrupted": lambda: example(rounds_done=7),
    "not begun": lambda: example(rounds_done=0, silent=None),
    "refused": lambda: example(refusing="site-3"),
    "one site": lambda: example(sites=("alone",), silent=None),
    "many sites": lambda: example(sites=tuple(f"hospital-{k:02}" for k in range(40))),
    "deployed": deployed_example,
    "deployed, accounts lacking": lambda: deployed_example(
        without_account={"clinic-basel": "withheld", "clinic-porto": "missing"}
    ),
    "deployed, no accounts": lambda: deployed_example(
        without_account=dict.fromkeys(HOSPITALS, "withheld")
    ),
    "deployed, none": lambda: deployed_example(
        private=False, without_account={"clinic-basel": "withheld"}
    ),
    "bare": lambda: example().model_copy(
        update={"evaluation": None, "pictures": None, "probes": (), "verdicts": ()}
    ),
}


@pytest.fixture(scope="session")
def example_report() -> Callable[..., r.Report]:
    """`example_report(private=False, …)`: a report that differs from the default as named."""
    return example


@pytest.fixture(scope="session", params=VARIANTS)
def report_variant(request: pytest.FixtureRequest) -> r.Report:
    """Every kind of report, one after the other."""
    return VARIANTS[request.param]()
