"""The study: one typed file that says what is trained, on what terms, and how it is judged.

A study file is TOML. Every field is documented here, unknown keys are refused with
the nearest valid name, and nothing that bears on privacy has a default.

`Study` is the part that travels to the sites; `StudyFile` adds what stays with the
person who wrote it (where simulated data comes from, which local code the plug-in
names mean).
"""

import hashlib
import json
import math
from typing import Annotated, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tacit_common.remembered import remembered

PluginName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
OptionValue = bool | int | float | str


class _Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PluginPlan(_Plan):
    """A plug-in of one's own. Only its name travels; each site maps it to code it installed."""

    kind: Literal["plugin"]
    name: PluginName = Field(description="Name under [plugins] of the local configuration.")
    options: dict[str, OptionValue] = Field(
        default_factory=dict, description="Keyword arguments for the plug-in's factory."
    )


# --- encoder ---------------------------------------------------------------------------


class ViTPlan(_Plan):
    """A vision transformer whose parameters all sit in layers that clip exactly."""

    kind: Literal["vit"]
    image_size: int = Field(ge=4, le=1024, description="Height and width in pixels.")
    channels: int = Field(ge=1, le=16, description="Channels of an image.")
    patch_size: int = Field(ge=1, description="Height and width of a patch in pixels.")
    width: int = Field(ge=8, le=8192, description="Features of a token; also the embedding's size.")
    depth: int = Field(ge=1, le=200, description="Number of transformer blocks.")
    heads: int = Field(ge=1, description="Attention heads; they divide the width.")
    mlp_ratio: float = Field(default=4.0, gt=0, le=64, description="MLP size over width.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} must divide {self.image_size}")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide width {self.width}")
        return self


EncoderPlan = Annotated[ViTPlan | PluginPlan, Field(discriminator="kind")]


# --- objective and views ---------------------------------------------------------------


class MaskedPlan(_Plan):
    """Masked-patch modelling: reconstruct what was hidden (MAE, SimMIM)."""

    kind: Literal["masked"]
    style: Literal["mae", "simmim"] = Field(
        default="mae",
        description="`mae` drops hidden patches and decodes them; `simmim` replaces them by a "
        "mask token and predicts pixels linearly.",
    )
    mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="Share of patches hidden.")
    normalize_targets: bool = Field(
        default=False, description="Standardise the pixels of each target patch (MAE only)."
    )
    decoder_width: int = Field(
        default=32, ge=8, le=8192, description="Size of a decoder token (MAE)."
    )
    decoder_depth: int = Field(default=1, ge=1, le=200, description="Decoder blocks (MAE).")


class BankContrastPlan(_Plan):
    """Contrast between two views of a record, with negatives from a public procedural bank."""

    kind: Literal["bank_contrast"]
    temperature: float = Field(default=0.2, gt=0, description="Softmax temperature.")
    bank_size: int = Field(default=256, ge=2, le=65536, description="Public images as negatives.")
    projection_dim: int = Field(
        default=64, ge=2, le=8192, description="Size of projected features."
    )


class SimCLRPlan(_Plan):
    """NT-Xent between all views of a batch. Couples records: see docs/privacy.md 3."""

    kind: Literal["simclr"]
    temperature: float = Field(default=0.2, gt=0, description="Softmax temperature.")
    projection_dim: int = Field(
        default=64, ge=2, le=8192, description="Size of projected features."
    )


class LogitDPPlan(_Plan):
    """InfoNCE whose similarities are clipped one by one (Logit-DP): legal for single records."""

    kind: Literal["logit_dp"]
    temperature: float = Field(
        default=1.0,
        ge=1,
        description="Softmax temperature. Below 1 the noise grows as exp(2/temperature), so it "
        "is refused.",
    )
    projection_dim: int = Field(
        default=64, ge=2, le=8192, description="Size of projected features."
    )


ObjectivePlan = Annotated[
    MaskedPlan | BankContrastPlan | SimCLRPlan | LogitDPPlan | PluginPlan,
    Field(discriminator="kind"),
]


class ViewsPlan(_Plan):
    """Random views of a record: one affine warp, then brightness, contrast and noise."""

    max_shift: float = Field(default=0.0, ge=0, le=0.5, description="Shift, share of the size.")
    max_rotation_deg: float = Field(default=0.0, ge=0, le=180, description="Rotation in degrees.")
    max_zoom: float = Field(default=0.0, ge=0, lt=1, description="Zoom by 1 ± this.")
    flip: bool = Field(default=False, description="Mirror left to right half of the time.")
    max_brightness: float = Field(default=0.0, ge=0, le=1, description="Added to every pixel.")
    max_contrast: float = Field(default=0.0, ge=0, lt=1, description="Contrast times 1 ± this.")
    noise_stddev: float = Field(default=0.0, ge=0, description="Gaussian pixel noise.")


# --- privacy ---------------------------------------------------------------------------


class LocalPrivacyPlan(_Plan):
    """Every site adds its own noise: the server sees nothing that is not already private."""

    mode: Literal["local"]
    unit: Literal["record", "subject"] = Field(
        description="What one unit of privacy is: a record, or a subject (a person, a device) "
        "with all of its records."
    )
    records_per_subject: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Contribution cap m: records of a subject that one step may use. Required "
        "where the unit is the subject.",
    )
    epsilon: float = Field(gt=0, description="Budget of the whole run at each site, probes too.")
    delta: float = Field(ge=1e-12, lt=1, description="δ at which ε is stated.")
    l2_clip_norm: float = Field(gt=0, description="Bound C on a unit's gradient norm.")
    sampling_rate: float = Field(gt=0, le=1, description="Poisson rate q of a unit, each step.")

    @model_validator(mode="after")
    def _cap_fits_the_unit(self) -> Self:
        if self.unit == "subject" and self.records_per_subject is None:
            raise ValueError("unit 'subject' needs records_per_subject, the contribution cap")
        if self.unit == "record" and self.records_per_subject is not None:
            raise ValueError("records_per_subject is for unit 'subject'; a record is one record")
        return self

    def statement(self) -> str:
        """The plan's promise in a few words, as every artefact of a run carries it."""
        return f"local DP: ε ≤ {self.epsilon:g} at δ = {self.delta:g} for one {self.unit} of a site"


class NoPrivacyPlan(_Plan):
    """No differential privacy: written in full in every artefact of the run."""

    mode: Literal["none"]
    sampling_rate: float = Field(gt=0, le=1, description="Poisson rate q of a unit, each step.")

    def statement(self) -> str:
        """What every artefact of a run carries."""
        return "no differential privacy"


PrivacyPlan = Annotated[LocalPrivacyPlan | NoPrivacyPlan, Field(discriminator="mode")]


# --- federation ------------------------------------------------------------------------


class FedAvgPlan(_Plan):
    """The new parameters are the old plus the mean update (McMahan et al. 2017)."""

    kind: Literal["fedavg"]
    server_lr: float = Field(default=1.0, gt=0, description="Step along the mean update.")


class FedAvgMPlan(_Plan):
    """FedAvg with server momentum (Hsu et al. 2019)."""

    kind: Literal["fedavgm"]
    server_lr: float = Field(default=1.0, gt=0, description="Step along the averaged update.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Server momentum.")


class FedAdamPlan(_Plan):
    """Adam on the server (Reddi et al. 2021)."""

    kind: Literal["fedadam"]
    server_lr: float = Field(default=0.01, gt=0, description="Adam's step size η.")
    beta_1: float = Field(default=0.9, ge=0, lt=1, description="First moment.")
    beta_2: float = Field(default=0.99, ge=0, lt=1, description="Second moment.")
    tau: float = Field(default=1e-3, gt=0, description="Adaptivity τ.")


class FedProxPlan(_Plan):
    """FedAvg whose sites are pulled towards the round's start (Li et al. 2020)."""

    kind: Literal["fedprox"]
    proximal_mu: float = Field(gt=0, description="Weight μ of the proximal term.")


StrategyPlan = Annotated[
    FedAvgPlan | FedAvgMPlan | FedAdamPlan | FedProxPlan | PluginPlan,
    Field(discriminator="kind"),
]


class FederationPlan(_Plan):
    """Rounds, cohorts and local work."""

    rounds: int = Field(ge=1, le=1_000_000, description="Rounds of federated averaging.")
    local_steps: int = Field(ge=1, le=100_000, description="Optimiser steps of a site in a round.")
    client_lr: float = Field(gt=0, le=1e6, description="Learning rate of a site.")
    client_optimizer: Literal["sgd", "adam"] = Field(
        default="sgd", description="The site's optimiser, started anew each round."
    )
    augmentations: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Views of a record averaged before clipping.",
    )
    cohort_size: int | None = Field(
        default=None, ge=1, description="Sites asked in a round; all of them if left out."
    )
    quorum: float = Field(
        default=0.5, gt=0, le=1, description="Share of the cohort that must answer."
    )
    deadline_s: float = Field(default=3600.0, gt=0, description="Seconds to wait for a round.")
    weighting: Literal["equal", "declared_units"] = Field(
        default="equal", description="Weights of the mean: public constants only."
    )
    update_dtype: Literal["float32", "float16"] = Field(
        default="float32",
        description="How updates travel. `float16` halves what a site sends; it rounds what is "
        "private already, so it costs no budget.",
    )
    strategy: StrategyPlan = Field(
        default=FedAvgPlan(kind="fedavg"), description="How the server uses the mean update."
    )

    def asked_of(self, registered: int) -> int:
        """How many of `registered` sites are asked in a round."""
        return min(self.cohort_size or registered, registered)

    def quorum_of(self, asked: int) -> int:
        """How many of `asked` sites must answer for a round to count."""
        return max(1, math.ceil(self.quorum * asked - 1e-9))


class WarmStartPlan(_Plan):
    """Pretraining on public procedural images before the first round: costs no privacy."""

    steps: int = Field(ge=1, description="Optimiser steps.")
    batch_size: int = Field(default=256, ge=1, description="Procedural images in a step.")
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate of AdamW.")


# --- probes ----------------------------------------------------------------------------


class RidgeProbePlan(_Plan):
    """A linear classifier in closed form from one noisy release of a site's statistics."""

    kind: Literal["ridge"]
    classes: int = Field(ge=2, le=10_000, description="Number of classes.")
    when: list[Literal["before", "after"]] = Field(
        default=["before", "after"], description="Before the first round, after the last, or both."
    )
    epsilon: float | None = Field(
        default=None,
        gt=0,
        description="Share of the run's ε that one release may cost (at the plan's δ); required "
        "under DP, refused without.",
    )
    project_dim: int = Field(
        default=24,
        ge=1,
        le=512,
        description="Public principal components of features kept.",
    )


class PluginProbePlan(PluginPlan):
    """A probe of one's own."""

    when: list[Literal["before", "after"]] = Field(
        default=["before", "after"], description="Before the first round, after the last, or both."
    )
    epsilon: float | None = Field(
        default=None, gt=0, description="Share of the run's ε that one release may cost."
    )
    project_dim: int = Field(
        default=24,
        ge=1,
        le=512,
        description="Public principal components of features kept.",
    )


ProbePlan = Annotated[RidgeProbePlan | PluginProbePlan, Field(discriminator="kind")]


# --- simulation ------------------------------------------------------------------------


class DirichletPartition(_Plan):
    """Class shares of the sites drawn from Dirichlet(α): the smaller α, the more skewed."""

    kind: Literal["dirichlet"]
    alpha: float = Field(gt=0, description="Concentration α.")


class IidPartition(_Plan):
    """Records dealt out evenly."""

    kind: Literal["iid"]


class ColumnSubjects(_Plan):
    """Records with the same value in a column of the table belong to one subject."""

    by: Literal["column"]
    column: str = Field(min_length=1, description="Name of the column.")


class FolderSubjects(_Plan):
    """Records under a folder of the same name at one level belong to one subject.

    At level 1 the folders are subjects, and not classes.
    """

    by: Literal["folder"]
    level: int = Field(
        ge=1, le=32, description="Which folder below the data set's, counted from 1, is a subject."
    )


class FunctionSubjects(_Plan):
    """A function of one's own, from a record's number to its subject."""

    by: Literal["function"]
    name: PluginName = Field(
        description="Name under [plugins]: called with a record's number, gives its subject."
    )


class BlockSubjects(_Plan):
    """Pretended subjects, for rehearsal: so many records in a row belong to one."""

    by: Literal["blocks"]
    size: int = Field(ge=1, description="Records of a subject.")


SubjectsPlan = Annotated[
    ColumnSubjects | FolderSubjects | FunctionSubjects | BlockSubjects,
    Field(discriminator="by"),
]


class SimulationPlan(_Plan):
    """What a simulation needs beyond the study; a deployment has real sites instead."""

    dataset: str = Field(
        description="`digits`, `strokes`, a plug-in's name, or a path to a data set on disk."
    )
    sites: int = Field(ge=1, description="Number of simulated sites.")
    partition: Annotated[DirichletPartition | IidPartition, Field(discriminator="kind")] = Field(
        default=IidPartition(kind="iid"), description="How records are dealt to sites."
    )
    declared_units: int = Field(
        ge=1,
        description="Number of units (records, or subjects where they are the unit) that each "
        "site declares, whatever it really holds.",
    )
    subjects: SubjectsPlan | None = Field(
        default=None, description="Which records belong to one subject; each to itself if left out."
    )
    epsilon_cap: float | None = Field(
        default=None,
        gt=0,
        description="Cap of every site over all studies, at the study's δ; the study's own ε if "
        "left out.",
    )
    sites_dir: str | None = Field(
        default=None,
        description="Folder where the sites keep keys and ledgers from run to run, so that studies "
        "on the same records add up; inside the run's folder if left out.",
    )
    labels_per_class: int = Field(
        default=10, ge=1, description="Labels per class of the few-label probe."
    )
    physical_batch: int = Field(
        default=64, ge=1, le=65536, description="Records whose gradients a site forms at once."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the sites train; `auto` takes a GPU if there is one."
    )
    threads: int = Field(
        default=1,
        ge=1,
        description="CPU threads of torch. Fixed by the study, not by the machine, because sums "
        "of floats depend on it: without privacy, one study gives one encoder everywhere.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Processes that the sites are shared out to. The result does not depend on "
        "it. If it is left out: one for each core (and its threads) where that pays, and 1 where "
        "the rounds are few, the model is large, or a GPU does the work.",
    )


# --- the whole -------------------------------------------------------------------------


class Study(_Plan):
    """The part of a study that travels to every site."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60, description="Short name.")
    seed: int = Field(ge=0, lt=2**31, description="Seed of all that is not secret.")
    encoder: EncoderPlan
    objective: ObjectivePlan
    views: ViewsPlan = ViewsPlan()
    privacy: PrivacyPlan
    federation: FederationPlan
    warm_start: WarmStartPlan | None = None
    probes: list[ProbePlan] = []

    @model_validator(mode="after")
    def _probes_fit_the_mode(self) -> Self:
        for probe in self.probes:
            if isinstance(self.privacy, LocalPrivacyPlan) and probe.epsilon is None:
                raise ValueError(f"probe '{probe.kind}' needs epsilon: a release costs budget")
            if isinstance(self.privacy, NoPrivacyPlan) and probe.epsilon is not None:
                raise ValueError(f"probe '{probe.kind}' has an epsilon, but the mode is 'none'")
        return self

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of what travels; two equal studies have one digest."""
        return _digest(self)

    def canonical_json(self) -> str:
        """Sorted keys, no spaces: the same study always gives the same bytes."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


@remembered(kept=4)
def _digest(study: Study) -> str:
    return hashlib.sha256(study.canonical_json().encode()).hexdigest()


class StudyFile(Study):
    """A study with what stays local to the person who runs it."""

    simulation: SimulationPlan | None = None
    plugins: dict[PluginName, str] = Field(
        default_factory=dict,
        description="What plug-in names mean here: 'module:attribute'. Never leaves this machine.",
    )

    def travelling(self) -> Study:
        """The study as a site sees it: without data paths, without code."""
        return Study.model_validate(
            self.model_dump(mode="json", exclude={"simulation", "plugins"}),
        )

    def to_toml(self) -> str:
        """The study as a TOML file that `study_file.load_study` reads back to an equal one."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
