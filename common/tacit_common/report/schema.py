"""Everything that a run's report says, as one typed document.

`report.json` holds a `Report` and its signatures (signing.py); `report.html` and
`report.pdf` are drawn from it and hold nothing else. The document contradicts itself
nowhere: a figure that follows from others is checked against them when the document is
built or read.

No host name and no path of a machine belongs here: a report is made to be handed on.
"""

import hashlib
import json
from importlib.metadata import version
from platform import python_version
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from tacit_common import __version__
from tacit_common.report.claims import LocalPrivacy, NoPrivacy
from tacit_common.report.participation import Cohorts, RoundReport, SiteReport
from tacit_common.report.parts import (
    ROUNDING,
    Count,
    Digest,
    Epsilon,
    Moment,
    Part,
    Picture,
    Text,
)
from tacit_common.sources import sources_sha256

if TYPE_CHECKING:
    from tacit_common.probes.contract import Interval as ProbeInterval
    from tacit_common.study import Study

SCHEMA_VERSION: Literal[3] = 3

# --- the run ---------------------------------------------------------------------------


Engine = Literal["in-process", "ray", "deployed"]
"""Where the sites ran: in this process, on Ray, or on their own machines."""


class Run(Part):
    """What ran, when, and how far it came."""

    name: Text
    id: Text
    engine: Engine
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
            raise ValueError("rounds_done is below rounds_planned in a complete run")
        if self.finished < self.started:
            raise ValueError("the run finished before it started")
        return self


class StudyRecord(Part):
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


class Software(Part):
    """Versions of what the result depends on."""

    tacit: Text
    tacit_sha256: Digest = Field(description="Of Tacit's own Python files, names and contents.")
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
            tacit_sha256=sources_sha256(),
            torch=version("torch"),
            flwr=version("flwr"),
            opacus=version("opacus"),
            dp_accounting=version("dp-accounting"),
            python=python_version(),
        )


# --- the models ------------------------------------------------------------------------


class Models(Part):
    """Hashes of the parameters that the run began and ended with."""

    parameters: int = Field(ge=1, description="Number of trained parameters.")
    initial_sha256: Digest = Field(description="Before the first round, float32 in one vector.")
    final_sha256: Digest = Field(description="After the last round.")


# --- how good the encoder is -----------------------------------------------------------


class Interval(Part):
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


class ProbeReport(Part):
    """What the sites' labels say of the encoder. Private, and charged to their budgets."""

    name: Text
    when: Literal["before", "after"]
    epsilon_per_site: Epsilon | None = Field(description="None without differential privacy.")
    accuracy: Interval | None = Field(
        description="On public labelled records of the coordinator's; None if it has none."
    )


class EvaluationRow(Part):
    """One encoder, or none, under every measure of the table."""

    label: Text
    role: Literal["baseline", "result"]
    cells: tuple[Interval, ...]


class Evaluation(Part):
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


class Reconstruction(Part):
    """A public held-out image, what the encoder saw of it, and what it made of that."""

    original: Picture
    masked: Picture
    reconstructed: Picture


class Neighbour(Part):
    """A public image near a query in feature space."""

    picture: Picture
    label: Text


class NeighbourQuery(Part):
    """A public held-out image and its nearest neighbours, nearest first."""

    picture: Picture
    label: Text
    neighbours: tuple[Neighbour, ...] = Field(min_length=1)


class Pictures(Part):
    """Pictures of public evaluation records; a site's records are never shown."""

    source: Text
    reconstructions: tuple[Reconstruction, ...] = ()
    neighbour_queries: tuple[NeighbourQuery, ...] = ()


# --- the whole -------------------------------------------------------------------------


class Report(Part):
    """A run, what it could reveal, and how good its encoder is."""

    schema_version: Literal[3] = SCHEMA_VERSION
    run: Run
    study: StudyRecord
    software: Software
    privacy: Annotated[LocalPrivacy | NoPrivacy, Field(discriminator="mode")]
    sites: tuple[SiteReport, ...] = Field(min_length=1)
    cohorts: Cohorts
    models: Models
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
            totals = [e for site in self.sites for e in (site.epsilon_total, site.epsilon_run)]
            totals += charges
            curves = [site.epsilon_after_round for site in self.sites]
            if any(figure is not None for figure in [*totals, *curves]):
                raise ValueError("there is an ε, but the mode is 'none'")
            return self
        if any(r.training_loss is not None for r in self.rounds):
            raise ValueError("a training loss is private: it is shown under mode 'none' only")
        spent = [site.epsilon_known for site in self.sites if site.epsilon_known is not None]
        runs = [site.epsilon_run for site in self.sites]
        if len(spent) < len(self.sites) or None in runs or None in charges:
            raise ValueError("under mode 'local' every site and every probe has its ε")
        if max(spent) != self.privacy.epsilon_spent:
            raise ValueError(
                "epsilon_spent is not the largest epsilon_total, or epsilon_run without an account"
            )
        disclosed = [site for site in self.sites if site.is_disclosed]
        if any(len(s.epsilon_after_round or ()) != self.run.rounds_done for s in disclosed):
            raise ValueError("a site has one ε after each round")
        return self

    def canonical_json(self) -> str:
        """Sorted keys, no spaces, ASCII: equal reports give the same bytes."""
        return _canonical(self.model_dump(mode="json"))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


def _canonical(document: JsonValue) -> str:
    # The same rule as Study.canonical_json, so that the study's digest can be checked here.
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
