"""Checks channels without sending: at the start, when their settings change, then daily; one replica each.

The providers' limits set the pace. One channel is checked after the other; one on which deliveries use up the rate, or
whose provider asked for a pause, is left alone meanwhile: its deliveries show how it is. One that failed is checked
each hour, so that the page does not stay red for a day after somebody has fixed it.
"""

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final

import structlog

from services.relay.outbox.channel_state.channel_checks import (
    ChannelCheck,
    CheckKind,
    CheckState,
    claim_check,
    read_check_state,
    record_check,
)
from services.relay.outbox.engine.store import Store
from shared.check import CheckResult

RunCheck = Callable[[str], Awaitable[Sequence[CheckResult]]]
"""Checks the channel of that name; no results if there is nothing to check."""

_START_DELAY: Final = 15.0
"""Seconds after a start in which deliveries have the providers for themselves."""
_START_MIN_AGE: Final = 600.0
"""Seconds: a relay that is restarted again and again, or in many replicas, checks no more often than that."""
_CHANGED_MIN_AGE: Final = 10.0
"""The same after a change of the channel's settings."""
_INTERVAL: Final = 86400.0
_FAILED_INTERVAL: Final = 3600.0
_PAUSE: Final = 5.0
"""Seconds between two checks."""
_POLL_INTERVAL: Final = 60.0
"""Seconds until it is determined again what is due."""

log = structlog.get_logger(__name__)


class ChannelChecker:
    """Checks a channel, and records what it finds.

    Args:
        store: the outbox.
        run_check: checks it.
        clock: seconds, monotonic.
    """

    def __init__(self, store: Store, run_check: RunCheck, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self._run_check = run_check
        self._clock = clock

    async def check(self, channel: str, min_age: float, requested_by: str | None = None) -> ChannelCheck | None:
        """What the check found; None if one began within `min_age` seconds. Raises StoreUnavailableError.

        Args:
            channel: its name.
            min_age: seconds since the last check began, of whichever replica.
            requested_by: the name of the caller; None for the relay itself.
        """
        if not await claim_check(self.store, channel, min_age):
            return None
        began = self._clock()
        results = await self._run_check(channel)
        found = ChannelCheck(CheckKind.CHECK, self._clock() - began, requested_by, results)
        if results:
            await record_check(self.store, channel, found)
        if (failure := found.failure) is not None:
            log.warning("channel check failed", channel=channel, error=failure.detail, hint=failure.hint)
        return found


class ChannelCheckMonitor:
    """Checks the channels that are due.

    Args:
        checker: checks one.
        channels: the names of all.
        changed: those whose settings are new since a reload; None after a start, when all are checked.
    """

    def __init__(self, checker: ChannelChecker, channels: Collection[str], changed: Collection[str] | None) -> None:
        self._checker = checker
        self._channels = channels
        self._min_ages = (
            dict.fromkeys(channels, _START_MIN_AGE) if changed is None else dict.fromkeys(changed, _CHANGED_MIN_AGE)
        )
        """Of those that were not checked since the start, or the reload."""
        self._has_started = False

    async def check_next(self) -> float:
        """Checks one channel, if one is due; the seconds until the next call. Raises StoreUnavailableError."""
        if not self._has_started:
            self._has_started = True
            return _START_DELAY
        store = self._checker.store
        for channel in self._channels:
            state = await store.read(partial(read_check_state, channel=channel, now=store.clock()))
            min_age = self._min_ages.get(channel, _FAILED_INTERVAL if state.is_failed else _INTERVAL)
            if state.is_busy or not _is_due(state, min_age):
                continue
            self._min_ages.pop(channel, None)
            if await self._checker.check(channel, min_age) is not None:
                return _PAUSE
        return _POLL_INTERVAL


def _is_due(state: CheckState, min_age: float) -> bool:
    return state.age is None or state.age >= min_age
