"""Working hours are those on the site's own clock, past midnight and where clocks change too."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tacit_client.policy.hours import Hours

# 2 March 2026 is a Monday.
MONDAY, TUESDAY, SATURDAY, SUNDAY = 2, 3, 7, 8


def hours(opens: str, closes: str, *days: str, timezone: str = "UTC") -> Hours:
    fields: dict[str, Any] = {"opens": opens, "closes": closes, "timezone": timezone}
    return Hours.model_validate(fields | ({"days": days} if days else {}))


def on(day: int, clock: str, zone: str = "UTC") -> datetime:
    moment = datetime.fromisoformat(f"2026-03-{day:02d}T{clock}:00")
    return moment.replace(tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize(
    ("clock", "open_"),
    [("08:59", False), ("09:00", True), ("16:59", True), ("17:00", False), ("00:00", False)],
)
def test_a_window_in_the_day(clock: str, open_: bool) -> None:
    assert hours("09:00", "17:00").include(on(MONDAY, clock)) is open_


@pytest.mark.parametrize(
    ("clock", "open_"),
    [
        ("19:59", False),
        ("20:00", True),
        ("23:59", True),
        ("00:00", True),
        ("05:59", True),
        ("06:00", False),
    ],
)
def test_a_window_that_goes_on_past_midnight(clock: str, open_: bool) -> None:
    assert hours("20:00", "06:00").include(on(TUESDAY, clock)) is open_


@pytest.mark.parametrize(
    ("day", "clock", "open_"),
    [
        (MONDAY, "05:59", False),  # Sunday's night is not a working one
        (MONDAY, "21:00", True),
        (TUESDAY, "05:59", True),  # Monday's night, though no Tuesday is listed
        (TUESDAY, "21:00", False),
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_began(day: int, clock: str, open_: bool) -> None:
    assert hours("20:00", "06:00", "monday").include(on(day, clock)) is open_


def test_a_window_that_ends_at_midnight_does_not_go_on() -> None:
    until_midnight = hours("20:00", "00:00", "monday")
    assert until_midnight.include(on(MONDAY, "23:59"))
    assert not until_midnight.include(on(TUESDAY, "00:00"))


def test_a_window_that_closes_when_it_opens_is_a_whole_day() -> None:
    whole = hours("06:00", "06:00", "saturday")
    assert not whole.include(on(SATURDAY, "05:59"))
    assert whole.include(on(SATURDAY, "06:00"))
    assert whole.include(on(SUNDAY, "05:59"))
    assert not whole.include(on(SUNDAY, "06:00"))


def test_no_day_is_never() -> None:
    never = Hours(days=(), opens="00:00", closes="00:00", timezone="UTC")
    assert not any(never.include(on(MONDAY, f"{hour:02d}:30")) for hour in range(24))


def test_the_clock_is_the_sites_and_not_the_servers() -> None:
    in_tokyo = hours("09:00", "17:00", timezone="Asia/Tokyo")  # nine hours ahead of UTC
    assert in_tokyo.include(on(MONDAY, "00:30", "UTC"))
    assert not in_tokyo.include(on(MONDAY, "12:00", "UTC"))
    assert in_tokyo.include(on(MONDAY, "12:00", "Asia/Tokyo"))


def test_the_day_is_the_sites_too() -> None:
    """At 20:00 UTC on Sunday it is Monday in Tokyo."""
    assert hours("00:00", "12:00", "monday", timezone="Asia/Tokyo").include(on(1, "20:00"))


def test_summer_time_moves_the_window_with_the_clock_on_the_wall() -> None:
    in_zurich = hours("09:00", "10:00", timezone="Europe/Zurich")
    before, after = on(28, "08:30"), on(29, "07:30")  # clocks go forward on the 29th
    assert in_zurich.include(before)
    assert in_zurich.include(after)
    assert not in_zurich.include(after + timedelta(hours=1))


@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
    st.times(),
    st.times(),
)
def test_a_window_and_its_complement_never_agree(moment: datetime, opens: Any, closes: Any) -> None:
    first, second = f"{opens:%H:%M}", f"{closes:%H:%M}"
    if first == second:  # both are the whole day
        return
    zone = "Australia/Lord_Howe"  # its summer time is half an hour
    window, rest = hours(first, second, timezone=zone), hours(second, first, timezone=zone)
    assert window.include(moment) is not rest.include(moment)


def test_a_moment_without_a_time_zone_is_a_fault_of_ours() -> None:
    with pytest.raises(TypeError, match="time zone"):
        hours("09:00", "17:00").include(datetime(2026, 3, 2, 12))


@pytest.mark.parametrize(
    "wrong",
    [
        {"opens": "24:00"},
        {"opens": "9:00"},
        {"closes": "06:60"},
        {"timezone": "Mars/Olympus"},
        {"timezone": ""},
        {"timezone": "../../etc/passwd"},
        {"days": ["Monday"]},
        {"holidays": []},
    ],
    ids=str,
)
def test_hours_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    sound = {"opens": "20:00", "closes": "06:00", "timezone": "Europe/Zurich"}
    Hours.model_validate(sound)
    with pytest.raises(ValidationError):
        Hours.model_validate(sound | wrong)


def test_hours_in_words() -> None:
    assert str(hours("20:00", "06:00")) == "20:00 to 06:00 UTC, every day"
    assert str(hours("20:00", "06:00", "monday", "friday")) == "20:00 to 06:00 UTC, monday, friday"
