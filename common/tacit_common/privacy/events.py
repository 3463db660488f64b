"""What accounting needs to know of a release, and nothing else.

An event is a fact about what a site did. The meaning of an event never changes: a new
kind of release gets a new event. An unknown event is an error, never a zero.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PoissonGaussianSteps(_Event):
    """`steps` releases of a Poisson-subsampled sum, each with Gaussian noise (DP-SGD)."""

    kind: Literal["poisson_gaussian_steps"] = "poisson_gaussian_steps"
    sampling_rate: float = Field(gt=0, le=1)
    noise_multiplier: float = Field(gt=0, description="noise_stddev / L2 sensitivity")
    steps: int = Field(ge=1)


class GaussianRelease(_Event):
    """One release of a sum over all units, with Gaussian noise."""

    kind: Literal["gaussian_release"] = "gaussian_release"
    noise_multiplier: float = Field(gt=0, description="noise_stddev / L2 sensitivity")


class NonPrivateRelease(_Event):
    """A release without differential privacy: ε is infinite from here on."""

    kind: Literal["non_private_release"] = "non_private_release"


PrivacyEvent = Annotated[
    PoissonGaussianSteps | GaussianRelease | NonPrivateRelease, Field(discriminator="kind")
]

PRIVACY_EVENT: TypeAdapter[PrivacyEvent] = TypeAdapter(PrivacyEvent)
"""Reads and writes one event as JSON."""
