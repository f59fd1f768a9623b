"""Times and durations for readers: in UTC, and in the zone that `messages.timezone` names."""

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

from services.relay.model import Alert, Status

_ROUND_FROM = timedelta(minutes=10)
"""From here on a duration has no seconds."""


def format_time(moment: datetime, zone: tzinfo = UTC) -> str:
    """Such as `2026-11-24 22:46:10 UTC`, or `2026-11-24 23:46:10 CET (22:46:10 UTC)`."""
    return _format_utc_time(moment.astimezone(UTC), zone, "%H:%M:%S")


def format_short_time(moment: datetime, zone: tzinfo = UTC) -> str:
    """To the minute, for tables: `2026-11-24 22:46 UTC`, or `2026-11-24 23:46 CET (22:46 UTC)`."""
    return _format_utc_time(moment.astimezone(UTC), zone, "%H:%M")


@lru_cache(maxsize=256)  # the messages of a storm name the same other incidents
def _format_utc_time(moment: datetime, zone: tzinfo, pattern: str) -> str:
    try:
        there = moment.astimezone(zone)
    except OverflowError:  # at the edge of the calendar
        there = moment
    time = f"{moment:{pattern}} UTC"
    if there.utcoffset() == timedelta():
        return f"{_format_day(moment)} {time}"
    in_utc = time if there.date() == moment.date() else f"{_format_day(moment)} {time}"
    return f"{_format_day(there)} {there:{pattern}} {_name_zone(there)} ({in_utc})"


def format_duration(span: timedelta) -> str:
    """In its two largest units: `8 s`, `2 min 5 s`, `12 min`, `2 h 3 min`, `1 d 4 h`."""
    seconds = max(0, round(span.total_seconds()))
    if seconds >= _ROUND_FROM.total_seconds():
        seconds = round(seconds / 60) * 60
    days, seconds = divmod(seconds, 86_400)
    hours, seconds = divmod(seconds, 3_600)
    minutes, seconds = divmod(seconds, 60)
    units = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    first = next((index for index, (number, _) in enumerate(units) if number), 3)
    return " ".join(f"{number} {unit}" for number, unit in units[first : first + 2] if number) or "0 s"


def format_seconds(seconds: float | None) -> str:
    """Exact, such as `640 ms`, `4.2 s`, `40 s` or `6 min 40 s`; a hyphen for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    return format_duration(timedelta(seconds=seconds))


def format_period(alert: Alert, zone: tzinfo = UTC) -> str:
    """Since when it fires, or from when to when it fired."""
    start = format_time(alert.starts_at, zone)
    if alert.status is Status.FIRING:
        return f"firing since {start}"
    if alert.ends_at is None:
        return f"resolved; fired from {start}"
    end, duration = format_time(alert.ends_at, zone), format_duration(alert.ends_at - alert.starts_at)
    return f"resolved; fired from {start} to {end} ({duration})"


def format_short_period(alert: Alert, zone: tzinfo = UTC) -> str:
    """The same for a table: `firing since 2026-11-24 22:46 UTC`, or `resolved after 12 min`."""
    if alert.status is Status.FIRING:
        return f"firing since {format_short_time(alert.starts_at, zone)}"
    return f"resolved after {format_duration(alert.ends_at - alert.starts_at)}" if alert.ends_at else "resolved"


def _format_day(moment: datetime) -> str:
    return moment.date().isoformat()  # strftime writes year 1 without its zeros


def _name_zone(moment: datetime) -> str:
    """`CET`; `UTC+03` where the zone has no letters."""
    name = moment.tzname() or "UTC"
    return f"UTC{name}" if name[0] in "+-" else name
