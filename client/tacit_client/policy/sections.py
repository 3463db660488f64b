"""The sections of a site's policy: what a study may be, may use and may be told."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tacit_common.study import ObjectivePlan, PluginName, PluginPlan, ProbePlan
from tacit_common.toml_file import did_you_mean

ANY = "any"
_PLUGIN = "plugin:"

Release = Literal["update", "train_loss", "probe", "account"]


def listed_as(plan: ObjectivePlan | ProbePlan) -> str:
    """How a policy lists an objective or a probe: its kind, or `plugin:` and its name."""
    return f"{_PLUGIN}{plan.name}" if isinstance(plan, PluginPlan) else plan.kind


def allows(names: tuple[str, ...], name: str) -> bool:
    """Whether a list of a policy holds `name`, or `any`."""
    return ANY in names or name in names


def _built_in(union: object) -> list[str]:
    """The kinds of a union of plans, plug-ins left out."""
    plans = get_args(get_args(union)[0]) or (get_args(union)[0],)
    kinds = (get_args(plan.model_fields["kind"].annotation)[0] for plan in plans)
    return [kind for kind in kinds if kind != "plugin"]


OBJECTIVES = _built_in(ObjectivePlan)
PROBES = _built_in(ProbePlan)


_PLUGIN_NAME: TypeAdapter[str] = TypeAdapter(PluginName)


def _is_plugin_name(name: str) -> bool:
    """Whether a study can name such a plug-in. `any` would read as all of them."""
    try:
        _PLUGIN_NAME.validate_python(name)
    except ValidationError:
        return False
    return name != ANY


def _listable(name: str, kinds: list[str]) -> str:
    plugin = name.removeprefix(_PLUGIN)
    if name == ANY or name in kinds or (plugin != name and _is_plugin_name(plugin)):
        return name
    raise ValueError(
        f"'{name}' is none of {', '.join(kinds)}, {ANY} or {_PLUGIN}NAME{did_you_mean(name, kinds)}"
    )


def _objective(name: str) -> str:
    return _listable(name, OBJECTIVES)


def _probe(name: str) -> str:
    return _listable(name, PROBES)


Objective = Annotated[str, Field(max_length=64), AfterValidator(_objective)]
Probe = Annotated[str, Field(max_length=64), AfterValidator(_probe)]
Encoder = Annotated[str, Field(pattern=r"^(any|[0-9a-f]{64})$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StudyLimits(_Section):
    """Bounds on any one study, however much of the data set's own cap is left."""

    epsilon_cap: float = Field(
        gt=0,
        description="Largest ε of one study, all its runs and probes together, at the site's own "
        "δ. It counts what was paid and what open runs may still ask, and rounds that were paid "
        "twice.",
    )
    smallest_noise_multiplier: float = Field(
        ge=0,
        description="Least noise of any release under differential privacy, as its standard "
        "deviation over the mechanism's sensitivity; 0 leaves it to the caps.",
    )
    largest_l2_clip_norm: float = Field(
        gt=0, description="Largest bound on the norm of one unit's gradient."
    )
    largest_sampling_rate: float = Field(
        gt=0, le=1, description="Largest Poisson rate of a unit in one step, in every mode."
    )
    largest_rounds: int = Field(default=10_000, ge=1, description="Most rounds of one study.")
    largest_local_steps: int = Field(
        default=10_000, ge=1, description="Most optimiser steps of one round."
    )


class Allowed(_Section):
    """What may be trained on the data, and what may leave. An empty list allows nothing."""

    modes: tuple[Literal["local", "none"], ...] = Field(
        description="Modes of privacy. `none` needs `allow_non_private` as well."
    )
    objectives: tuple[Objective, ...] = Field(
        description=f"Objectives: {', '.join(OBJECTIVES)}, `{_PLUGIN}NAME` for one that this site "
        f"installed, or `{ANY}`. One that couples records is refused under differential privacy "
        "all the same."
    )
    encoders: tuple[Encoder, ...] = Field(
        description=f"Architectures, by the SHA-256 that `tacit site pending` shows, or `{ANY}`."
    )
    probes: tuple[Probe, ...] = Field(
        description=f"Probes: {', '.join(PROBES)}, `{_PLUGIN}NAME`, or `{ANY}`."
    )
    releases: tuple[Release, ...] = Field(
        description="What may leave: `update`, what training gives; `train_loss`, the mean loss "
        "of a round, which leaves in mode `none` alone; `probe`, a probe's statistics; "
        "`account`, what was spent, for the coordinator's report: it tells the coordinator all "
        "that was ever spent of the data that its run touched, of other coordinators' studies "
        "too, by mechanism and without names."
    )


class Consent(_Section):
    """Whether a person has to look at a study before the site takes part in it."""

    approval: Literal["each study", "none"] = Field(
        default="each study",
        description="`each study` asks for `tacit site approve`, once for every run of a study "
        "and again for every change to it; `none` takes part in whatever this policy allows.",
    )


class Resources(_Section):
    """How much of the machine and of the network the site may use."""

    gpu_memory_share: float = Field(
        default=1.0, gt=0, le=1, description="Largest share of a GPU's memory."
    )
    cpu_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of training; as many as there are cores if left out.",
        examples=[4],
    )
    bandwidth_mbit_s: float | None = Field(
        default=None,
        gt=0,
        description="Megabits per second, each way; without a bound if left out.",
        examples=[100.0],
    )
    largest_message_mb: int = Field(
        default=1024, ge=1, description="Largest message taken or sent, in units of 2²⁰ bytes."
    )
    largest_model_mb: int = Field(
        default=4096,
        ge=1,
        description="Largest model, with its public bank if it has one, in units of 2²⁰ bytes. "
        "Training takes several times as much.",
    )

    @property
    def bytes_per_s(self) -> float | None:
        """The bandwidth in bytes; None without a bound."""
        return None if self.bandwidth_mbit_s is None else self.bandwidth_mbit_s * 1e6 / 8
