"""One channel without the outbox: check it, send a test message and its resolve, or advise what to do.

Nothing is stored, and nothing is tried again.

What people do with a channel: check it, which sends nothing, or send a test message. Each leaves a result.

Checks channels without sending: at the start, when their settings change, then daily; one replica each.

The providers' limits set the pace. One channel is checked after the other; one on which deliveries use up the rate, or
whose provider asked for a pause, is left alone meanwhile: its deliveries show how it is. One that failed is checked
each hour, so that the page does not stay red for a day after somebody has fixed it.

When a channel may be sent a test message: not twice within half a minute, and within its rate. For all replicas.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple
from uuid import uuid4

import structlog

from services.relay.channel_health.store import (
    ChannelCheck,
    CheckKind,
    CheckState,
    claim_check,
    read_check_state,
    record_check,
)
from services.relay.channels.port import Channel, Receipt, SendError, SendReason, SendScope
from services.relay.channels.requests import find_hint
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import close_channel
from services.relay.delivery.message import LinkRules, build_links
from services.relay.model import Alert, DeliveryTask, Event, Message, Status
from services.relay.outbox.channels import (
    NO_TOKEN_SECONDS,
    commit_allow_trial,
    compute_pauses,
    count_available,
    lock_or_insert,
    spend,
    update_channel,
)
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import CLOCK_TOLERANCE
from shared.check import Check, CheckOutcome, CheckResult
from shared.http.json_api import RefusedError
from shared.process.doctor import NO_ANSWER_HINT, list_file_checks, run_checks_concurrently

_NO_ANSWER: Final = {SendReason.TIMEOUT, SendReason.CONNECTION, SendReason.RATE_LIMITED, SendReason.SERVER_ERROR}
"""With these a provider has answered nothing about the channel."""


class AcceptedMessage(NamedTuple):
    """A message that a provider accepted."""

    receipt: Receipt
    reply: str
    """The provider's, credentials masked."""


class SentTest(NamedTuple):
    """What became of a test message and its resolve."""

    sent: Sequence[AcceptedMessage]
    """Those that arrived, in this order."""
    error: SendError | None = None
    """Why the next one did not."""


async def send_test_message(settings: RelaySettings, channel_name: str) -> SentTest:
    """Sends a test message and its resolve on one channel."""
    timeout = settings.delivery.timeout
    channel = settings.channels[channel_name].connect(timeout)
    sent: list[AcceptedMessage] = []
    try:
        async with asyncio.timeout(2 * timeout):
            message = _build_test_message(channel_name, datetime.now(UTC), settings.link_rules)
            sent.append(await _send(channel, message))
            resolve = _build_test_resolve(message, sent[0].receipt, datetime.now(UTC))
            sent.append(await _send(channel, resolve))
    except TimeoutError:
        error = SendError(SendReason.TIMEOUT, SendScope.ATTEMPT, f"no answer within {2 * timeout:g} s")
        return SentTest(sent, error)
    except SendError as error:
        return SentTest(sent, error)
    finally:
        await close_channel(channel_name, channel)
    return SentTest(sent)


async def _send(channel: Channel, message: Message) -> AcceptedMessage:
    attempt = _UnrecordedAttempt(message)
    return AcceptedMessage(await channel.send(attempt), attempt.reply)


async def check_channel(settings: RelaySettings, channel_name: str) -> list[CheckResult]:
    """What `doctor` finds of one channel: its files, its provider, its credentials, its destination. Sends nothing.

    Empty for a channel of which there is nothing to check.
    """
    key = f"channels.{channel_name}"
    results = await _run_checks(settings, channel_name, list_file_checks(settings.channels[channel_name], f"{key}."))
    return [replace(result, name=result.name.removeprefix(key).lstrip(". ")) for result in results]


async def _run_checks(
    settings: RelaySettings, channel_name: str, file_checks: Iterable[Check] = ()
) -> list[CheckResult]:
    channel = settings.channels[channel_name].connect(settings.delivery.timeout)
    try:
        checks = [*file_checks, *channel.list_checks(f"channels.{channel_name}")]
        names = {check.name for check in checks}
        own = [check if check.depends_on in names else replace(check, depends_on=None) for check in checks]
        return await run_checks_concurrently(own, time.monotonic, timeout=settings.delivery.timeout)
    finally:
        await close_channel(channel_name, channel)


async def find_advice(settings: RelaySettings, channel_name: str, error: SendError) -> str:
    """What to do about a channel that could not send, by its own checks, or by the error. Sends nothing."""
    results = await _run_checks(settings, channel_name)
    # A check that gets no answer says nothing of an error that is another one.
    unrelated = {NO_ANSWER_HINT, *map(find_hint, _NO_ANSWER - {error.reason})}
    hints = (result.hint for result in results if result.hint)
    return next((hint for hint in hints if hint not in unrelated), error.hint or find_hint(error.reason))


def advise_on(reason: str | None) -> str:
    """What to do about a channel whose last attempt ended for that reason; empty if it is not known."""
    return find_hint(SendReason(reason)) if reason in list(SendReason) else ""


def _build_test_message(channel: str, now: datetime, rules: LinkRules) -> Message:
    """A firing test alert, an incident of its own, so that it touches no real one.

    Args:
        channel: the name of the channel.
        now: when it is sent.
        rules: for its links.
    """
    name = f"test-{uuid4().hex}"
    labels = {"alertname": "KeypulseTest", "severity": "info"}
    annotations = {
        "title": "A test of this channel: nothing is wrong",
        "summary": "A test of this channel; nothing is wrong",
        "description": "Sent by keypulse-relay.",
    }
    alert = Alert(
        status=Status.FIRING,
        labels=labels,
        annotations=annotations,
        starts_at=now,
        ends_at=None,
        generator_url="",
        fingerprint=name,
    )
    event = Event(
        source="",
        receiver="keypulse-relay",
        group_key=name,
        status=alert.status,
        alerts=(alert,),
        group_labels={"alertname": "KeypulseTest"},
        common_labels=labels,
        common_annotations=annotations,
        external_url="",
        truncated_alerts=0,
    )
    task = DeliveryTask(delivery_id=name, incident_id=name, episode=1, channel=channel, accepted_at=now)
    return Message(task, event, links=(build_links(alert, now, rules),))


def _build_test_resolve(message: Message, receipt: Mapping[str, str], now: datetime) -> Message:
    """The resolve of a test message, so that it leaves nothing open.

    Args:
        message: the test message.
        receipt: of that message.
        now: when it is resolved.
    """
    alerts = tuple(replace(alert, status=Status.RESOLVED, ends_at=now) for alert in message.event.alerts)
    event = replace(message.event, status=Status.RESOLVED, alerts=alerts)
    delivery_id = f"{message.task.delivery_id}-over"
    task = message.task._replace(delivery_id=delivery_id, accepted_at=now, first_receipt=receipt)
    return replace(message, task=task, event=event)


class _UnrecordedAttempt:
    """The port's `Attempt` for a message that no outbox holds: one attempt, of which nothing is stored."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.progress: Mapping[str, str] = {}
        self.maybe_sent = False
        self.reply = ""

    def before_request(self, payload: str) -> None:
        """See the port."""

    def check_lease(self) -> None:
        """See the port."""

    def record_reply(self, reply: str) -> None:
        """See the port."""
        self.reply = reply

    async def save_progress(self, progress: Mapping[str, str]) -> None:
        """See the port."""
        self.progress = progress


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


_TEST_INTERVAL: Final = 30.0
"""Seconds between two tests of a channel."""
_TEST_MESSAGES: Final = 2
"""A test message, and its resolve."""


class SendTestRefusal(StrEnum):
    """Why no test message may be sent now."""

    RECENT = "recent"
    """There was one just now."""
    RETRY_AFTER = "retry_after"
    """The provider asked to wait."""
    RATE = "rate"
    """Deliveries need the channel's rate."""


async def claim_test(store: Store, channel: str, rate: float | None) -> tuple[SendTestRefusal, float] | None:
    """Takes the tokens of a test message; else why there may be none now, and for how many seconds.

    A channel behind its circuit breaker may be tested, not one whose provider asked for a pause.

    Args:
        store: the outbox.
        channel: its name.
        rate: messages per second; None if it has no rate limit.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """

    def claim(transaction: Transaction) -> tuple[SendTestRefusal, float] | None:
        now, row = transaction.now, lock_or_insert(transaction, channel)
        # Another replica's may have started after this transaction; much later, the clock was set back.
        since = None if row.test_started_at is None else now - row.test_started_at
        if since is not None and -CLOCK_TOLERANCE <= since < _TEST_INTERVAL:
            return SendTestRefusal.RECENT, _TEST_INTERVAL - max(since, 0.0)
        if seconds := compute_pauses(row, now)[1]:
            return SendTestRefusal.RETRY_AFTER, seconds
        available, wait = count_available(row.next_token_at, now, 1, rate)
        if not available:
            return SendTestRefusal.RATE, wait or NO_TOKEN_SECONDS
        next_token_at = row.next_token_at if rate is None else spend(row.next_token_at, now, _TEST_MESSAGES, rate)
        update_channel(transaction, channel, test_started_at=now, next_token_at=next_token_at)
        return None

    return await store.run(claim)


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


def _refuse(cause: str, seconds: float) -> RefusedError:
    """Nothing is done for so long."""
    rounded = math.ceil(seconds)
    return RefusedError(f"{cause}; try again in {rounded} s", 429, headers={"Retry-After": str(rounded)})


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
        """Checks a channel. Raises RefusedError or StoreUnavailableError."""
        self._refuse_if_busy()
        async with self._slots:
            found = await self._checker.check(channel, CHECK_INTERVAL, who)
        if found is None:
            raise _refuse("it is being checked, or was a moment ago", CHECK_INTERVAL)
        return found

    async def test(self, channel: str, who: str) -> ChannelCheck:
        """Sends a test message and its resolve. Raises RefusedError or StoreUnavailableError.

        A channel behind its circuit breaker is tried again at once after a test that arrived.
        """
        self._refuse_if_busy()
        async with self._slots:
            rate = self._settings.channels[channel].rate_per_second if self._settings.pacing.enabled else None
            if refusal := await claim_test(self._store, channel, rate):
                raise _refuse(_REFUSALS[refusal[0]], refusal[1])
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
            raise _refuse("too many channels are being checked or tested", 5)


def _describe(sent: AcceptedMessage) -> str:
    """The provider's words, and what the receipt has beside them."""
    receipt = ", ".join(f"{name} {value}" for name, value in sent.receipt.items() if value and value not in sent.reply)
    return "; ".join(filter(None, [sent.reply, receipt]))
