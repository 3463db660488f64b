"""Working hours: when a site answers, by the clock on its own wall."""

from datetime import datetime, time, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Day = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_DAYS: tuple[Day, ...] = (
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
)

ClockTime = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"'{name}' is no time zone of this machine; write one like 'Europe/Zurich', or 'UTC', "
            "and install the package tzdata if no other is known"
        ) from None
    return name


class Hours(BaseModel):
    """When the site works. Leave the section out and it works at all times.

    A request that was taken up before the site closes is answered after it. Where clocks
    are turned back, an hour that comes twice counts twice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    days: tuple[Day, ...] = Field(
        default=_DAYS,
        description="Days on which the site opens. A window that goes on past midnight belongs "
        "to the day on which it opened.",
        examples=[["monday", "tuesday", "wednesday", "thursday", "friday"]],
    )
    opens: ClockTime = Field(description="When it opens, as HH:MM.", examples=["20:00"])
    closes: ClockTime = Field(
        description="When it closes, as HH:MM: on the same day if that is later than `opens`, "
        "otherwise on the next day.",
        examples=["06:00"],
    )
    timezone: Annotated[str, Field(max_length=64), AfterValidator(_known_zone)] = Field(
        description="Time zone of the times, by its name in the IANA database.",
        examples=["Europe/Zurich"],
    )

    def include(self, now: datetime) -> bool:
        """Whether the site works at the moment `now`, which has a time zone of its own.

        The moment at which it opens is included, that at which it closes is not.
        """
        if now.tzinfo is None:
            raise TypeError("a moment without a time zone is none")
        local = now.astimezone(ZoneInfo(self.timezone))
        opens, closes = time.fromisoformat(self.opens), time.fromisoformat(self.closes)
        today = self._opens_on(local)
        if opens < closes:
            return today and opens <= local.time() < closes
        since_yesterday = self._opens_on(local - timedelta(days=1)) and local.time() < closes
        return since_yesterday or (today and opens <= local.time())

    def __str__(self) -> str:
        days = "every day" if len(set(self.days)) == len(_DAYS) else ", ".join(self.days)
        return f"{self.opens} to {self.closes} {self.timezone}, {days or 'on no day'}"

    def _opens_on(self, day: datetime) -> bool:
        return _DAYS[day.weekday()] in self.days
