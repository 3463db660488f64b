"""The small types that every part of a report is made of."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field


def _to_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)  # a local time zone would tell where the machine stands


Moment = Annotated[AwareDatetime, AfterValidator(_to_utc)]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
SiteName = Annotated[str, Field(min_length=1, max_length=200)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, hexadecimal.")]
Picture = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/]+=*$")]
Count = Annotated[int, Field(ge=0)]
Epsilon = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

ROUNDING = 1e-9  # what a figure may be off by through floating point alone


class Part(BaseModel):
    """A part of a report: nothing unknown, nothing changed, nothing infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
