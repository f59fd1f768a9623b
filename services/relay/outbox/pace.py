"""How many messages a channel's pace lets go now: a bucket that fills at its rate and holds what 5 s of it give.

It is kept as one moment, when the next message would go were none saved up, as the Generic Cell Rate Algorithm does.
"""

from typing import Final

_SAVED_SECONDS: Final = 5.0
"""What a channel's pace may save up: Slack allows "short bursts", https://docs.slack.dev/apis/web-api/rate-limits"""


def within_pace(next_slot: float, now: float, limit: int, rate: float | None) -> tuple[int, float | None]:
    """How many messages the pace lets go now, and in how many seconds the next one, where it is fewer than `limit`.

    Args:
        next_slot: when it lets the next message go, were none saved up.
        now: unix seconds.
        limit: how many there may be.
        rate: messages in a second; None where there is no pace.
    """
    if rate is None:
        return limit, None
    saved = max(1.0, rate * _SAVED_SECONDS)
    ahead = max(next_slot - now, 0.0) * rate  # messages that were sent before their time
    if ahead > saved + 1:
        ahead = 0.0  # more than was ever possible: the clock was set back
    room = int(saved - ahead + 1e-6)
    if room >= limit:
        return limit, None
    return room, (1 - (saved - ahead - room)) / rate


def slot_after(next_slot: float, now: float, number: int, rate: float) -> float:
    """The `next_slot` after as many messages."""
    start = next_slot if next_slot - now <= _SAVED_SECONDS + 2 / rate else 0.0
    return max(start, now) + number / rate
