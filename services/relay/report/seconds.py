"""How long something took, for a person."""

from datetime import timedelta

from services.relay.text.times import format_duration


def format_seconds(seconds: float | None) -> str:
    """Such as `640 ms`, `4.2 s`, `40 s` or `6 min 40 s`; a hyphen for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    return format_duration(timedelta(seconds=seconds))
