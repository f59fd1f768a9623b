"""How many messages a second a channel gets: a token bucket that all replicas share."""

from typing import Final

BURST_SECONDS: Final = 5.0
"""How much of its rate a channel may save up: Slack allows "short bursts", https://docs.slack.dev/apis/web-api/rate-limits"""
_MAX_AHEAD_SECONDS: Final = 10.0
"""How much more may be spent than was saved up: a message may take several requests, which is known after it."""


def count_available(next_token_at: float, now: float, limit: int, rate: float | None) -> tuple[int, float | None]:
    """How many messages may be sent now, and in how many seconds the next one, where it is fewer than `limit`.

    A token bucket that fills at `rate` a second and holds the tokens of 5 s, stored as one time: when an empty bucket
    has its next token, as in the Generic Cell Rate Algorithm.
    """
    if rate is None:
        return limit, None
    saved = max(1.0, rate * BURST_SECONDS)
    ahead = max(next_token_at - now, 0.0) * rate  # messages that were sent before their time
    if ahead > saved + 1 + _MAX_AHEAD_SECONDS * rate:
        ahead = 0.0  # more than was ever possible: the clock was set back
    available = max(int(saved - ahead + 1e-6), 0)
    if available >= limit:
        return limit, None
    return available, (1 - (saved - ahead - available)) / rate


def spend(next_token_at: float, now: float, count: int, rate: float) -> float:
    """The `next_token_at` after as many messages."""
    most = BURST_SECONDS + 2 / rate + _MAX_AHEAD_SECONDS
    start = next_token_at if next_token_at - now <= most else 0.0
    return min(max(start, now) + count / rate, now + most)
