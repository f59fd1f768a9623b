"""Formats times and durations for pages. Pure; `ages.js` formats ages the same."""

from datetime import UTC, datetime
from typing import Final

_MAX_TIMESTAMP: Final = datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp()


def format_rough_duration(seconds: float) -> str:
    """In its largest unit: `12 s`, `5 min`, `3 h`, `9 days`."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= (2 if unit == "days" else 1) * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0, seconds) // 1:.0f} s"


def format_age(at: float, now: float) -> str:
    """How far away, before or after now; less than a second after is now."""
    return f"in {format_rough_duration(at - now)}" if at - now >= 1 else f"{format_rough_duration(now - at)} ago"


def format_utc_time(at: float) -> str:
    return _to_datetime(at).strftime("%Y-%m-%d %H:%M:%S UTC")


def format_utc_minute(at: float) -> str:
    """The same for a narrow place: day and minute."""
    return _to_datetime(at).strftime("%-d %b %H:%M UTC")


def format_day(at: float) -> str:
    return _to_datetime(at).strftime("%-d %b")


def format_clock(at: float) -> str:
    return _to_datetime(at).strftime("%H:%M UTC")


def format_moment(at: float) -> str:
    """Day, and time of day to a tenth of a second, UTC."""
    moment = _to_datetime(at)
    return f"{moment:%-d %b %H:%M:%S}.{moment.microsecond // 100_000}"


def format_rfc3339(at: float) -> str:
    return _to_datetime(at).strftime("%Y-%m-%dT%H:%M:%SZ")


def _to_datetime(at: float) -> datetime:
    """A time that a backend made up may lie behind the last year that a date can have."""
    return datetime.fromtimestamp(min(at, _MAX_TIMESTAMP), UTC)


def format_scale(seconds: float) -> str:
    """A round number of seconds for a scale: `0.5 ms`, `20 ms`, `1 s`; of many about how long, such as `16 min`."""
    if seconds >= 200:
        return format_rough_duration(seconds)
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def format_step_duration(seconds: float) -> str:
    """How long a step took: `0.38 s`, `12.3 s`, `1 min 2.2 s`, `12 min 5 s`; negative where two clocks differ."""
    sign, length = ("-" if seconds <= -0.005 else ""), abs(seconds)
    if length < 59.95:
        return f"{sign}{length:.2f} s" if length < 9.995 else f"{sign}{length:.1f} s"
    if length < 99.95:
        return f"{sign}1 min {max(0.0, length - 60):.1f} s"
    minutes, rest = divmod(round(length), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{sign}{hours} h {minutes} min" if hours else f"{sign}{minutes} min {rest} s"


def format_latency(seconds: float | None) -> str:
    """A duration of a call: `4.2 ms`, `1.25 s`; a hyphen if there is none."""
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
