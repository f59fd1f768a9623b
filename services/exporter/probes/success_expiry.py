"""A success of a probe expires after `success_max_age`: from then on the key no longer counts as usable.

While the calls of other keys hang, they can take all of `probe.concurrency`, and a key is not probed for a long time.
Its last success must not be reported as if it were new.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

_CHECK_INTERVAL: Final = 1.0
"""Seconds between two checks, or a quarter of `success_max_age` if that is shorter."""


def compute_success_max_age(interval: float, timeout: float) -> float:
    """Seconds after which a round trip no longer counts as a success: two intervals.

    Longer where a punctual round trip may take longer: the interval with its jitter, and two calls.
    """
    return max(2 * interval, 1.1 * interval + 2 * timeout)


class SuccessExpiry:
    """Knows when the last round trip of each target ended, and expires old successes.

    Args:
        targets: service and name of each.
        success_max_age: seconds.
        expire: called with the service and name of a target whose last round trip is older; called again at each check
            until a round trip ends.
    """

    def __init__(
        self, targets: Iterable[tuple[str, str]], success_max_age: float, expire: Callable[[str, str], None]
    ) -> None:
        started_at = asyncio.get_running_loop().time()
        self._ended_at = dict.fromkeys(targets, started_at)
        self._max_age = success_max_age
        self._expire = expire

    def record_round_trip(self, service: str, target: str) -> None:
        """A round trip has just ended, whatever its result."""
        self._ended_at[service, target] = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Checks until it is cancelled."""
        while True:
            await asyncio.sleep(min(_CHECK_INTERVAL, self._max_age / 4))
            oldest = asyncio.get_running_loop().time() - self._max_age
            for (service, target), ended_at in self._ended_at.items():
                if ended_at < oldest:
                    self._expire(service, target)
