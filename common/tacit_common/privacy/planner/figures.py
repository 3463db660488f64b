"""What `tacit plan` is asked and what it answers, as typed values; the answer's JSON is these.

An infinite figure is null in JSON: ε without privacy, signal-to-noise without noise.
"""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tacit_common.errors import UsageError
from tacit_common.privacy.planner.signal_to_noise import Verdict

MOST_ROWS = 24
MOST_STEPS = 100_000
"""Of a site in one run, to be planned within seconds: the grid of the accountant gets finer
and longer with the number of steps. `tacit study check` calibrates longer runs, slowly."""
MOST = 10**12
"""Of anything that is counted, so that products of two counts are still floats."""


@dataclass(frozen=True)
class PlanRequest:
    """What a study would ask of one site. Every number is public: none is a private count.

    Guarantees: a request that exists is sound; `records` is the *declared* number of units.

    Raises:
        UsageError: a value is out of range, or two of them contradict each other.
    """

    records: int  # declared units of one site: records, or subjects where they are the unit
    epsilon: float
    rounds: tuple[int, ...]  # the first is the plan, the others are compared with it
    delta: float | None = None  # None: one is proposed
    local_steps: int = 1
    sampling_rates: tuple[float, ...] = ()  # neither these nor batches: a set is chosen
    batches: tuple[float, ...] = ()
    sites: int = 1
    unit: Literal["record", "subject"] = "record"
    records_per_subject: int | None = None
    probe_epsilons: tuple[float, ...] = ()  # one for each probe release
    parameters: int | None = None
    l2_clip_norm: float | None = None

    def __post_init__(self) -> None:
        for option, values, most in (
            ("--records", (self.records,), MOST),
            ("--rounds", self.rounds, MOST_STEPS),
            ("--local-steps", (self.local_steps,), MOST_STEPS),
            ("--sites", (self.sites,), MOST),
            ("--records-per-subject", (self.records_per_subject,), MOST),
            ("--parameters", (self.parameters,), MOST),
        ):
            for value in values:
                if value is not None and not 1 <= value <= most:
                    raise _out_of_range(option, value, f"between 1 and {most:,}")
        for option, numbers, below in (
            ("--epsilon", (self.epsilon,), math.inf),
            ("--delta", (self.delta,), 1.0),
            ("--probe-epsilon", self.probe_epsilons, math.inf),
            ("--clip", (self.l2_clip_norm,), math.inf),
            ("--batch", self.batches, math.inf),
        ):
            for number in numbers:
                if number is not None and not 0 < number < below:
                    limits = "positive and finite" if below == math.inf else "between 0 and 1"
                    raise _out_of_range(option, number, limits)
        for rate in self.sampling_rates:
            if not 0 < rate <= 1:
                raise _out_of_range("--sampling-rate", rate, "above 0 and at most 1")
        self._check_together()

    def _check_together(self) -> None:
        if not self.rounds:
            raise UsageError(
                "no number of rounds is given",
                why="the cost of a plan depends on it, so it has no default",
                fix="give --rounds, once or more",
            )
        if max(self.rounds) * self.local_steps > MOST_STEPS:
            raise UsageError(
                f"{max(self.rounds) * self.local_steps:,} steps are too many to be compared here",
                why=f"plans of up to {MOST_STEPS:,} noisy steps of a site are computed in seconds",
                fix="give fewer --rounds or --local-steps, or write the study and run "
                "`tacit study check`, which takes longer",
            )
        if self.sampling_rates and self.batches:
            raise UsageError(
                "--sampling-rate and --batch are both given",
                why="each of them fixes the other: batch = rate × records",
                fix="give one of them",
            )
        for batch in self.batches:
            if batch > self.records:
                raise UsageError(
                    f"a batch of {batch:g} cannot be sampled from {self.records:,} declared units",
                    why="a Poisson sample holds each unit at most once",
                    fix=f"give --batch at most {self.records}",
                )
        if (self.unit == "subject") != (self.records_per_subject is not None):
            raise UsageError(
                "--unit and --records-per-subject do not fit together",
                why="a subject needs a contribution cap, and a record is one record",
                fix="give --unit subject and --records-per-subject together, or neither",
            )
        if len(self.rounds) * max(len(self.rates), 1) > MOST_ROWS:
            raise UsageError(
                f"{len(self.rounds) * len(self.rates)} alternatives are too many for one table",
                why=f"{MOST_ROWS} at most can be read and computed at once",
                fix="give fewer --rounds, --sampling-rate or --batch",
            )

    @property
    def units(self) -> int:
        """Declared units of all sites together."""
        return self.records * self.sites

    @property
    def rates(self) -> tuple[float, ...]:
        """The sampling rates asked for; none if the planner is to choose."""
        return self.sampling_rates or tuple(batch / self.records for batch in self.batches)


def _out_of_range(option: str, value: float, limits: str) -> UsageError:
    return UsageError(
        f"{option} {value} is out of range",
        why=f"it has to be {limits}",
        fix=f"give {option} another value",
    )


# --- the answer ------------------------------------------------------------------------


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Alternative(_Figures):
    """One row of the table: a schedule under `local`, and what noise leaves of its signal."""

    rounds: int
    steps: int = Field(description="Noisy steps of a site in the whole run: rounds × local steps.")
    sampling_rate: float = Field(description="Poisson rate q of a unit in each step.")
    expected_batch: float = Field(description="q·N, N being the declared units of one site.")
    noise_multiplier: float | None = Field(description="σ; null where no noise is enough.")
    epsilon: float | None = Field(description="ε of the whole run, probes included, by PLD.")
    total_signal: float | None = Field(description="η = (q/σ)·√(T/2), a heuristic.")
    share_of_best: float | None = Field(description="η over the largest that this ε can buy.")
    effective_noise: float | None = Field(
        description="σ·C/(q·N): noise in a coordinate of the mean gradient; in units of C where "
        "no clip norm was given."
    )
    step_signal_to_noise: float | None = Field(description="In one step, averaged over all sites.")
    run_signal_to_noise: float | None = Field(description="ρ of the whole run, over all sites.")
    largest_model: int | None = Field(description="The most parameters for which ρ is at least 1.")
    recommended: bool
    problem: str | None = Field(description="Why there is no such plan; null where there is one.")


class CurvePoint(_Figures):
    """ε spent after so many rounds."""

    rounds: int
    epsilon: float


class ModeFigures(_Figures):
    """The recommended schedule under one mode of privacy."""

    mode: Literal["local", "distributed", "site", "none"]
    available: bool = Field(description="Whether this release can run it.")
    protects: str = Field(description="The unit, and from whom it is protected.")
    releases: int = Field(description="Noisy releases in the whole run.")
    sampling_rate: float
    expected_batch: float = Field(description="Units in one noisy sum.")
    noise_multiplier: float | None = Field(description="Null without privacy, or if none fits.")
    epsilon: float | None = Field(description="Null without privacy (ε is infinite).")
    run_signal_to_noise: float | None = Field(description="ρ; null without noise.")
    note: str


class Feasibility(_Figures):
    """Whether the recommended schedule can learn, by the heuristic, and what would help."""

    verdict: Verdict | Literal["impossible", "unknown"] = Field(
        description="`impossible`: no noise meets ε. `unknown`: --parameters was not given."
    )
    run_signal_to_noise: float | None
    least_records: int | None = Field(
        description="At this ε and sampling rate, the least declared units of a site with ρ ≥ 1; "
        "null where they are enough already, or would be above a trillion."
    )
    least_sites: int | None = Field(description="The same for the number of equal sites.")
    least_epsilon: float | None = Field(
        description="For these units and sites, an ε with ρ ≥ 1; where the verdict is "
        "`impossible`, one that some noise meets. Null where ε is enough, or none is."
    )


class Finding(_Figures):
    """One plain sentence about the plan."""

    kind: Literal["note", "warning", "problem"]
    text: str


class PlanFigures(_Figures):
    """Everything that `tacit plan` says."""

    format: Literal["tacit-plan-1"] = "tacit-plan-1"
    records: int = Field(description="Declared units of one site.")
    unit: Literal["record", "subject"]
    records_per_subject: int | None
    sites: int
    epsilon: float = Field(description="Budget of the whole run at each site.")
    delta: float
    delta_proposed: bool = Field(description="True if --delta was left out.")
    rounds: int
    local_steps: int
    probe_epsilons: list[float]
    probe_noise_multipliers: list[float]
    parameters: int | None
    l2_clip_norm: float | None
    alternatives: list[Alternative]
    curve: list[CurvePoint] = Field(
        description="Of the recommended row; probe releases count from the start."
    )
    modes: list[ModeFigures]
    feasibility: Feasibility
    findings: list[Finding]
    heuristic: str = Field(description="What signal-to-noise means here, with its source.")

    @property
    def recommended(self) -> Alternative | None:
        """The row that is recommended; None where no noise meets ε."""
        return next((row for row in self.alternatives if row.recommended), None)
