"""Everything that a run's report says, as one typed document.

`report.json` is the canonical JSON of a `Report`; `report.html` is drawn from it and
holds nothing else. The document contradicts itself nowhere: a figure that follows from
others is checked against them when the document is built or read.

No host name and no path of a machine belongs here: a report is made to be handed on.
"""

import hashlib
import json
from datetime import UTC, datetime
from importlib.metadata import version
from platform import python_version
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from tacit_common import __version__
from tacit_common.errors import RefusalCode, UsageError

if TYPE_CHECKING:
    from tacit_common.probes.contract import Interval as ProbeInterval
    from tacit_common.study import Study

SCHEMA_VERSION: Literal[1] = 1

ROUNDING = 1e-9  # what an end of an interval may be off by through floating point alone


def _to_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)  # a local time zone would tell where the machine stands


Moment = Annotated[AwareDatetime, AfterValidator(_to_utc)]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
SiteName = Annotated[str, Field(min_length=1, max_length=200)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, hexadecimal.")]
Picture = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/]+=*$")]
Count = Annotated[int, Field(ge=0)]
Epsilon = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- the run ---------------------------------------------------------------------------


class Run(_Part):
    """What ran, when, and how far it came."""

    name: Text
    id: Text
    engine: Literal["in-process", "ray"]
    status: Literal["complete", "interrupted"]
    started: Moment
    finished: Moment
    rounds_planned: int = Field(ge=1)
    rounds_done: Count
    wall_s: float = Field(ge=0, description="Seconds of work, interruptions left out.")
    resumed: Count = Field(description="How often the run was taken up again from its folder.")

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.rounds_done > self.rounds_planned:
            raise ValueError("more rounds are done than were planned")
        if self.status == "complete" and self.rounds_done < self.rounds_planned:
            raise ValueError("a complete run has done every planned round")
        if self.finished < self.started:
            raise ValueError("the run finished before it started")
        return self


class StudyRecord(_Part):
    """The study as it travelled to the sites, and its digest."""

    document: dict[str, JsonValue]
    digest: Digest

    @model_validator(mode="after")
    def _is_what_travelled(self) -> Self:
        local = {"simulation", "plugins"} & self.document.keys()
        if local:
            raise ValueError(
                f"the study holds {', '.join(sorted(local))}, which may name local paths; "
                "record StudyFile.travelling()"
            )
        if hashlib.sha256(_canonical(self.document).encode()).hexdigest() != self.digest:
            raise ValueError("the digest is not that of the study's document")
        return self

    @classmethod
    def of(cls, study: "Study") -> Self:
        """The record of a travelling study."""
        return cls(document=study.model_dump(mode="json"), digest=study.digest())


class Software(_Part):
    """Versions of what the result depends on."""

    tacit: Text
    torch: Text
    flwr: Text
    opacus: Text
    dp_accounting: Text
    python: Text

    @classmethod
    def installed(cls) -> Self:
        """The versions in this environment."""
        return cls(
            tacit=__version__,
            torch=version("torch"),
            flwr=version("flwr"),
            opacus=version("opacus"),
            dp_accounting=version("dp-accounting"),
            python=python_version(),
        )


# --- privacy ---------------------------------------------------------------------------


class Assumption(_Part):
    """Something that the privacy statement rests on."""

    text: Text
    held: bool | None = Field(description="None where it cannot be checked.")
    why: Text


class AccountantFigure(_Part):
    """ε of the whole run by one method; the report's statement uses the first one."""

    method: Literal["PLD", "RDP", "PRV"]
    epsilon: Epsilon
    software: Text


class LocalPrivacy(_Part):
    """Every site made what it sent private before sending it."""

    mode: Literal["local"]
    plain_statement: Text
    formal_statement: Text
    unit: Literal["record"]
    adjacency: Literal["zero-out"]
    adversary: Text
    transcript: Text = Field(description="What of a site's messages the statement covers.")
    epsilon_target: float = Field(gt=0, description="Budget of the run at each site.")
    epsilon_spent: Epsilon = Field(description="The largest total over sites.")
    delta: float = Field(gt=0, lt=1)
    l2_clip_norm: float = Field(gt=0)
    sampling_rate: float = Field(gt=0, le=1)
    noise_multiplier: float = Field(gt=0)
    steps: Count = Field(description="Noisy steps that the whole plan takes at a site.")
    sampler: Text = Field(description="As implemented.")
    noise: Text = Field(description="As implemented.")
    accountants: tuple[AccountantFigure, ...] = Field(min_length=1)
    assumptions: tuple[Assumption, ...]
    not_covered: tuple[Text, ...] = Field(min_length=1)


class NoPrivacy(_Part):
    """No differential privacy, said in full."""

    mode: Literal["none"]
    statement: Literal["no differential privacy"] = "no differential privacy"
    plain_statement: Text
    formal_statement: Text
    sampling_rate: float = Field(gt=0, le=1)
    steps: Count = Field(description="Steps that the whole plan takes at a site.")
    assumptions: tuple[Assumption, ...]
    not_covered: tuple[Text, ...] = Field(min_length=1)


# --- sites and rounds ------------------------------------------------------------------


class SiteReport(_Part):
    """One data site. The ε are None without differential privacy."""

    name: SiteName
    declared_records: int = Field(ge=1, description="Public; not the number that it holds.")
    rounds_answered: Count
    epsilon_after_round: tuple[Epsilon, ...] | None = Field(
        description="Total ε spent when round 1, 2, … was over, at the report's δ."
    )
    epsilon_total: Epsilon | None = Field(description="Rounds that failed and probes included.")
    ledger_head: Digest | None
    releases: Count = Field(description="Messages with content from records that left the site.")


class Refusal(_Part):
    """A site declined; the code is all that it says."""

    site: SiteName
    code: RefusalCode


class RoundReport(_Part):
    """One round, as the server saw it."""

    number: int = Field(ge=1)
    asked: tuple[SiteName, ...]
    answered: tuple[SiteName, ...]
    refused: tuple[Refusal, ...]
    seconds: float = Field(ge=0)
    mean_update_norm: float = Field(
        ge=0, description="L2 norm of the mean update that the strategy received."
    )
    validation_loss: float | None = Field(
        description="The objective on public procedural images: no record is involved."
    )
    training_loss: float | None = Field(
        default=None, description="Mean over sites; private, so without DP only."
    )

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        heard = [*self.answered, *(refusal.site for refusal in self.refused)]
        if len(set(heard)) < len(heard):
            raise ValueError("a site answers or refuses, once")
        if not set(heard) <= set(self.asked):
            raise ValueError("a site that was not asked answered or refused")
        return self

    @property
    def silent(self) -> tuple[str, ...]:
        """Sites that were asked and sent nothing before the deadline."""
        heard = {*self.answered, *(refusal.site for refusal in self.refused)}
        return tuple(site for site in self.asked if site not in heard)


# --- how good the encoder is -----------------------------------------------------------


class Interval(_Part):
    """A share in [0, 1] with a 95 % confidence interval, and what the interval covers."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=-ROUNDING, le=1)
    high: float = Field(ge=0, le=1 + ROUNDING)
    method: Text

    @model_validator(mode="after")
    def _holds_its_value(self) -> Self:
        if not self.low - ROUNDING <= self.value <= self.high + ROUNDING:
            raise ValueError("the value lies outside its interval")
        return self

    @classmethod
    def of(cls, interval: "ProbeInterval") -> Self:
        """The same interval, from a probe."""
        return cls(
            value=interval.value, low=interval.low, high=interval.high, method=interval.method
        )


class ProbeReport(_Part):
    """What the sites' labels say of the encoder. Private, and charged to their budgets."""

    name: Text
    when: Literal["before", "after"]
    epsilon_per_site: Epsilon | None = Field(description="None without differential privacy.")
    accuracy: Interval


class EvaluationRow(_Part):
    """One encoder, or none, under every measure of the table."""

    label: Text
    role: Literal["baseline", "result"]
    cells: tuple[Interval, ...]


class Evaluation(_Part):
    """Accuracy on public held-out records: simulations only, and not private."""

    dataset: Text
    classes: int = Field(ge=2)
    train_records: int = Field(ge=1)
    test_records: int = Field(ge=1)
    labels_per_class: int = Field(ge=1, description="Labels of the few-label probe.")
    partition: Text
    columns: tuple[Text, ...] = Field(min_length=1)
    rows: tuple[EvaluationRow, ...]

    @model_validator(mode="after")
    def _compares(self) -> Self:
        if any(len(row.cells) != len(self.columns) for row in self.rows):
            raise ValueError("a row has one cell for each column")
        roles = [row.role for row in self.rows]
        if roles.count("result") != 1 or "baseline" not in roles:
            raise ValueError("a result stands beside at least one baseline, and is one row")
        return self

    @property
    def result(self) -> EvaluationRow:
        """The row of this run's encoder."""
        return next(row for row in self.rows if row.role == "result")


class Reconstruction(_Part):
    """A public held-out image, what the encoder saw of it, and what it made of that."""

    original: Picture
    masked: Picture
    reconstructed: Picture


class Neighbour(_Part):
    """A public image near a query in feature space."""

    picture: Picture
    label: Text


class NeighbourQuery(_Part):
    """A public held-out image and its nearest neighbours, nearest first."""

    picture: Picture
    label: Text
    neighbours: tuple[Neighbour, ...] = Field(min_length=1)


class Pictures(_Part):
    """Pictures of public evaluation records; a site's records are never shown."""

    source: Text
    reconstructions: tuple[Reconstruction, ...] = ()
    neighbour_queries: tuple[NeighbourQuery, ...] = ()


# --- the whole -------------------------------------------------------------------------


class Report(_Part):
    """A run, what it could reveal, and how good its encoder is."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: Run
    study: StudyRecord
    software: Software
    privacy: Annotated[LocalPrivacy | NoPrivacy, Field(discriminator="mode")]
    sites: tuple[SiteReport, ...] = Field(min_length=1)
    initial_validation_loss: float | None = Field(
        default=None, description="Before the first round, on the images of validation_loss."
    )
    rounds: tuple[RoundReport, ...]
    verdicts: tuple[Text, ...] = Field(
        default=(), description="What the figures say about the encoder; the most important first."
    )
    probes: tuple[ProbeReport, ...] = ()
    evaluation: Evaluation | None = None
    pictures: Pictures | None = None

    @model_validator(mode="after")
    def _rounds_add_up(self) -> Self:
        if [r.number for r in self.rounds] != list(range(1, self.run.rounds_done + 1)):
            raise ValueError("the rounds are not 1, 2, … up to rounds_done")
        names = [site.name for site in self.sites]
        if len(set(names)) < len(names):
            raise ValueError("two sites have one name")
        if not {site for r in self.rounds for site in r.asked} <= set(names):
            raise ValueError("a round asked a site that the report does not list")
        for site in self.sites:
            if site.rounds_answered != sum(site.name in r.answered for r in self.rounds):
                raise ValueError("a site's rounds_answered disagrees with the rounds")
        return self

    @model_validator(mode="after")
    def _privacy_adds_up(self) -> Self:
        charges = [probe.epsilon_per_site for probe in self.probes]
        if isinstance(self.privacy, NoPrivacy):
            totals = [site.epsilon_total for site in self.sites] + charges
            curves = [site.epsilon_after_round for site in self.sites]
            if any(figure is not None for figure in [*totals, *curves]):
                raise ValueError("there is an ε, but the mode is 'none'")
            return self
        if any(r.training_loss is not None for r in self.rounds):
            raise ValueError("a training loss is private: it is shown under mode 'none' only")
        spent = [site.epsilon_total for site in self.sites if site.epsilon_total is not None]
        if len(spent) < len(self.sites) or None in charges:
            raise ValueError("under mode 'local' every site and every probe has its ε")
        if max(spent) != self.privacy.epsilon_spent:
            raise ValueError("epsilon_spent is not the largest epsilon_total")
        if any(len(s.epsilon_after_round or ()) != self.run.rounds_done for s in self.sites):
            raise ValueError("a site has one ε after each round")
        return self

    def canonical_json(self) -> str:
        """Sorted keys, no spaces, ASCII: equal reports give the same bytes."""
        return _canonical(self.model_dump(mode="json"))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


def parse_report(text: str, *, source: str = "report.json") -> Report:
    """Read what `Report.canonical_json` wrote.

    Raises:
        UsageError: it is not a report of this version, or it contradicts itself.
    """
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise UsageError(
            f"{source} is not a report of schema version {SCHEMA_VERSION}",
            why=f"{place}: {first['msg'].removeprefix('Value error, ')}",
            fix="read it with the Tacit version that wrote it, or write the report anew",
        ) from None


def _canonical(document: JsonValue) -> str:
    # The same rule as Study.canonical_json, so that the study's digest can be checked here.
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
