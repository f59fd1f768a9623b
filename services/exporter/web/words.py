"""Times and durations as a person reads them. Pure; `board.js` keeps what `ago` says up to date in its own words."""

from datetime import UTC, datetime
from typing import Final

_LAST: Final = datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp()


def span(seconds: float) -> str:
    """How long: `12 s`, `5 min`, `3 h`, `9 days`."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= (2 if unit == "days" else 1) * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0, seconds) // 1:.0f} s"


def ago(at: float, now: float) -> str:
    """How far away, before or after now."""
    return f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"


def moment(at: float) -> str:
    """Date and time, UTC."""
    return _date(at).strftime("%Y-%m-%d %H:%M:%S UTC")


def short(at: float) -> str:
    """The same for a narrow place: day and minute."""
    return _date(at).strftime("%-d %b %H:%M UTC")


def iso(at: float) -> str:
    """For a machine (RFC 3339)."""
    return _date(at).strftime("%Y-%m-%dT%H:%M:%SZ")


def _date(at: float) -> datetime:
    """A time that a backend made up may lie behind the last year that a date can have."""
    return datetime.fromtimestamp(min(at, _LAST), UTC)


def rounded(seconds: float) -> str:
    """A round number of seconds for a scale: `0.5 ms`, `20 ms`, `1 s`."""
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def took(seconds: float | None) -> str:
    """A duration of a call: `4.2 ms`, `1.25 s`; a hyphen where there is none."""
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
