"""Slack's documented rate limits: https://docs.slack.dev/apis/web-api/rate-limits.

A channel takes one post a second, with short bursts. Every other method has a limit for each minute, by its tier,
which all channels of the app share. Off unless a test or the demo turns them on.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable

POST_BURST = 8
"""Posts into one channel at once: "short bursts >1 allowed", without a number."""
_WINDOW_SECONDS = 60.0
_TIER_1, _TIER_2, _TIER_3, _TIER_4 = 5, 20, 50, 100  # calls a minute; of tier 1 "1+, a small amount of burst"
CALLS_PER_MINUTE = {
    "apps.connections.open": _TIER_1,
    "conversations.list": _TIER_2,
    "usergroups.users.list": _TIER_2,
    "chat.delete": _TIER_3,
    "chat.update": _TIER_3,
    "conversations.history": _TIER_3,
    "conversations.info": _TIER_3,
    "conversations.replies": _TIER_3,
    "chat.postEphemeral": _TIER_4,
    "files.completeUploadExternal": _TIER_4,
    "files.getUploadURLExternal": _TIER_4,
    "files.info": _TIER_4,
    "users.info": _TIER_4,
}
POST_METHODS = ("chat.postMessage", "incoming webhook")


class RateLimits:
    """Counts calls.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.enabled = False
        self._next_post_at: dict[str, float] = {}
        """When a channel has the tokens of a whole burst again."""
        self._calls: defaultdict[str, deque[float]] = defaultdict(deque)

    def count_call(self, method: str, channel: str | None) -> int | None:
        """Count a call; return the `Retry-After` of one that is over the limit, else None.

        Args:
            method: such as `chat.update`, or `incoming webhook`.
            channel: where it posts; None where that is unknown.
        """
        if not self.enabled:
            return None
        wait = self._count_post(channel or "") if method in POST_METHODS else self._count_in_window(method)
        return math.ceil(wait) if wait > 0 else None

    def _count_post(self, channel: str) -> float:
        now = self._clock()
        full_at = max(self._next_post_at.get(channel, now), now)
        if full_at - now > POST_BURST - 1:
            return full_at - now - (POST_BURST - 1)
        self._next_post_at[channel] = full_at + 1
        return 0.0

    def _count_in_window(self, method: str) -> float:
        limit, now, calls = CALLS_PER_MINUTE.get(method), self._clock(), self._calls[method]
        if limit is None:
            return 0.0
        while calls and calls[0] <= now - _WINDOW_SECONDS:
            calls.popleft()
        if len(calls) >= limit:
            return calls[0] + _WINDOW_SECONDS - now
        calls.append(now)
        return 0.0
