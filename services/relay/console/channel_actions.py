"""What people do with a channel: check it, which sends nothing, or send a test message. Each leaves a result."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from services.relay.channel_check import AcceptedMessage, find_advice, send_test_message
from services.relay.config import RelaySettings
from services.relay.monitors.channel_checks import ChannelChecker
from services.relay.outbox.channel_state.breaker import commit_allow_trial
from services.relay.outbox.channel_state.channel_checks import ChannelCheck, CheckKind, record_check
from services.relay.outbox.channel_state.send_test_limits import SendTestRefusal, claim_test
from services.relay.outbox.engine.store import Store
from shared.check import CheckOutcome, CheckResult

CHECK_INTERVAL: Final = 10.0
"""Seconds between two checks of a channel."""
_MAX_CONCURRENT: Final = 4
"""Checks and tests at the same time."""
_REFUSALS: Final[Mapping[SendTestRefusal, str]] = {
    SendTestRefusal.RECENT: "there was a test just now",
    SendTestRefusal.RETRY_AFTER: "its provider asked to wait",
    SendTestRefusal.RATE: "deliveries use up its rate",
}
_STEPS: Final = ("test message", "its resolve")


class ActionRefusedError(Exception):
    """Nothing was done; the message says why, and when to try again."""

    def __init__(self, cause: str, seconds: float) -> None:
        self.seconds = math.ceil(seconds)
        """Until it may be tried again."""
        super().__init__(f"{cause}; try again in {self.seconds} s")


class ChannelActions:
    """Checks and tests on request.

    Args:
        store: the outbox.
        settings: the configuration.
        checker: checks a channel.
        wake_channels: called with a channel that works again.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        store: Store,
        settings: RelaySettings,
        checker: ChannelChecker,
        wake_channels: Callable[[Iterable[str]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settings = settings
        self._checker = checker
        self._wake_channels = wake_channels
        self._clock = clock
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)

    async def check(self, channel: str, who: str) -> ChannelCheck:
        """Checks a channel. Raises ActionRefusedError or StoreUnavailableError."""
        self._refuse_if_busy()
        async with self._slots:
            found = await self._checker.check(channel, CHECK_INTERVAL, who)
        if found is None:
            raise ActionRefusedError("it is being checked, or was a moment ago", CHECK_INTERVAL)
        return found

    async def test(self, channel: str, who: str) -> ChannelCheck:
        """Sends a test message and its resolve. Raises ActionRefusedError or StoreUnavailableError.

        A channel behind its circuit breaker is tried again at once after a test that arrived.
        """
        self._refuse_if_busy()
        async with self._slots:
            rate = self._settings.channels[channel].rate_per_second if self._settings.pacing.enabled else None
            if refusal := await claim_test(self._store, channel, rate):
                raise ActionRefusedError(_REFUSALS[refusal[0]], refusal[1])
            began = self._clock()
            results = await self._send(channel)
            sent = ChannelCheck(CheckKind.TEST, self._clock() - began, who, results)
            await record_check(self._store, channel, sent)
            if sent.failure is None:
                await commit_allow_trial(self._store, [channel])
                self._wake_channels([channel])
        return sent

    async def _send(self, channel: str) -> list[CheckResult]:
        sent, error = await send_test_message(self._settings, channel)
        results = [
            CheckResult(name, CheckOutcome.PASSED, _describe(each)) for name, each in zip(_STEPS, sent, strict=False)
        ]
        if error is not None:
            advice = await find_advice(self._settings, channel, error)
            results.append(
                CheckResult(
                    _STEPS[len(sent)], CheckOutcome.FAILED, f"{error.reason.replace('_', ' ')}: {error}", advice
                )
            )
        return results

    def _refuse_if_busy(self) -> None:
        if self._slots.locked():
            raise ActionRefusedError("too many channels are being checked or tested", 5)


def _describe(sent: AcceptedMessage) -> str:
    """The provider's words, and what the receipt has beside them."""
    receipt = ", ".join(f"{name} {value}" for name, value in sent.receipt.items() if value and value not in sent.reply)
    return "; ".join(filter(None, [sent.reply, receipt]))
