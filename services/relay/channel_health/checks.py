"""Checks of a channel, which send nothing, and tests by a message and its resolve. Each leaves a result.

The relay checks by itself at its start, when a channel's settings change, then daily; one replica each. The providers'
limits set the pace. One channel is checked after the other; one on which deliveries use up the rate, or whose provider
asked for a pause, is left alone meanwhile: its deliveries show how it is. One that failed is checked each hour, so that
the page does not stay red for a day after somebody has fixed it. A test is sent within the channel's rate, and not
twice within half a minute, by all replicas together.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple
from uuid import uuid4

import structlog

from services.relay.channel_health.store import ChannelCheck, CheckKind, claim_check, read_check_state, record_check
from services.relay.channels.port import REASON_ADVICE, Channel, Receipt, SendError, SendReason, SendScope
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import close_channel
from services.relay.delivery.message import LinkRules, build_links
from services.relay.model import Alert, DeliveryTask, Event, Message, Status
from services.relay.outbox.breaker import (
    NO_TOKEN_SECONDS,
    commit_allow_trial,
    compute_pauses,
    lock_or_insert,
    update_channel,
)
from services.relay.outbox.rate_limit import count_available, spend
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import CLOCK_TOLERANCE
from shared.check import Check, CheckOutcome, CheckResult, detach_checks
from shared.http.json_api import RefusedError
from shared.process.doctor import NO_ANSWER_HINT, list_file_checks, run_checks_concurrently

_NO_ANSWER: Final = {SendReason.TIMEOUT, SendReason.CONNECTION, SendReason.RATE_LIMITED, SendReason.SERVER_ERROR}
"""With these a provider has answered nothing about the channel."""


class AcceptedMessage(NamedTuple):
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
        return SentTest(sent, SendError(SendReason.TIMEOUT, SendScope.ATTEMPT, f"no answer within {2 * timeout:g} s"))
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
        checks = detach_checks([*file_checks, *channel.list_checks(f"channels.{channel_name}")])
        return await run_checks_concurrently(checks, timeout=settings.delivery.timeout)
    finally:
        await close_channel(channel_name, channel)


async def find_advice(settings: RelaySettings, channel_name: str, error: SendError) -> str:
    """What to do about a channel that could not send, by its own checks, or by the error. Sends nothing."""
    results = await _run_checks(settings, channel_name)
    # A check that gets no answer says nothing of an error that is another one.
    unrelated = {NO_ANSWER_HINT, *(REASON_ADVICE[reason].action for reason in _NO_ANSWER - {error.reason})}
    hints = (result.hint for result in results if result.hint)
    return next((hint for hint in hints if hint not in unrelated), error.hint or advise_on(error.reason))


def advise_on(reason: str | None) -> str:
    """What to do about a channel whose last attempt ended for that reason; empty if it is not known."""
    return REASON_ADVICE[SendReason(reason)].action if reason and reason in REASON_ADVICE else ""


def _build_test_message(channel: str, now: datetime, rules: LinkRules) -> Message:
    """A firing test alert, an incident by itself, so that it touches no real one."""
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
    """The resolve of a test message, so that it leaves nothing open."""
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
        pass

    def check_lease(self) -> None:
        pass

    def record_reply(self, reply: str) -> None:
        self.reply = reply

    async def save_progress(self, progress: Mapping[str, str]) -> None:
        self.progress = progress


_START_DELAY: Final = 15.0
"""Seconds after a start in which deliveries have the providers for themselves."""
_START_MIN_AGE: Final = 600.0
"""Seconds: a relay that is restarted again and again, or in many replicas, checks no more often than that."""
_CHANGED_MIN_AGE: Final = 10.0
"""The same after a change of the channel's settings."""
_INTERVAL: Final = 86400.0
_FAILED_INTERVAL: Final = 3600.0
_PAUSE: Final = 5.0
"""Seconds between two checks by the relay itself."""
_POLL_INTERVAL: Final = 60.0
"""Seconds until it is determined again what is due."""
_REQUEST_INTERVAL: Final = 10.0
"""Seconds between two checks of a channel that people ask for."""
_MAX_CONCURRENT: Final = 4
"""Checks and tests on request at the same time."""
_TEST_INTERVAL: Final = 30.0
"""Seconds between two tests of a channel."""
_STEPS: Final = ("test message", "its resolve")
_RECENT: Final = "there was a test just now"
_RETRY_AFTER: Final = "its provider asked to wait"
_NO_RATE: Final = "deliveries use up its rate"

log = structlog.get_logger(__name__)


def _refuse(cause: str, seconds: float) -> RefusedError:
    rounded = math.ceil(seconds)
    return RefusedError(f"{cause}; try again in {rounded} s", 429, headers={"Retry-After": str(rounded)})


class ChannelChecks:
    """Checks and tests channels, and records what came of it.

    Args:
        store: the outbox.
        settings: the configuration.
        wake_channels: called with a channel that works again.
        changed: the channels whose settings are new since a reload; None after a start, when all are checked.
        run_check: gives the steps of a check; none if there is nothing to check.
    """

    def __init__(
        self,
        store: Store,
        settings: RelaySettings,
        wake_channels: Callable[[Iterable[str]], None],
        changed: Iterable[str] | None = None,
        run_check: Callable[[RelaySettings, str], Awaitable[Sequence[CheckResult]]] = check_channel,
    ) -> None:
        self._store = store
        self._settings = settings
        self._wake_channels = wake_channels
        self._run_check = run_check
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        self._min_ages = (
            dict.fromkeys(settings.channels, _START_MIN_AGE)
            if changed is None
            else dict.fromkeys(changed, _CHANGED_MIN_AGE)
        )
        """Of the channels that were not checked since the start, or the reload."""
        self._has_started = False

    async def check_next(self) -> float:
        """Checks one channel, if one is due; the seconds until the next call. Raises StoreUnavailableError."""
        if not self._has_started:
            self._has_started = True
            return _START_DELAY
        for channel in self._settings.channels:
            state = await self._store.read(partial(read_check_state, channel=channel, now=self._store.clock()))
            min_age = self._min_ages.get(channel, _FAILED_INTERVAL if state.is_failed else _INTERVAL)
            if state.is_busy or (state.age is not None and state.age < min_age):
                continue
            self._min_ages.pop(channel, None)
            if await self._check(channel, min_age) is not None:
                return _PAUSE
        return _POLL_INTERVAL

    async def check(self, channel: str, who: str) -> ChannelCheck:
        """Checks a channel on request. Raises RefusedError or StoreUnavailableError."""
        self._refuse_if_busy()
        async with self._slots:
            found = await self._check(channel, _REQUEST_INTERVAL, who)
        if found is None:
            raise _refuse("it is being checked, or was a moment ago", _REQUEST_INTERVAL)
        return found

    async def test(self, channel: str, who: str) -> ChannelCheck:
        """Sends a test message and its resolve. Raises RefusedError or StoreUnavailableError.

        A channel behind its circuit breaker is tried again at once after a test that arrived.
        """
        self._refuse_if_busy()
        async with self._slots:
            await claim_test(self._store, channel, self._settings.get_rate(channel))
            began = time.monotonic()
            results = await self._send(channel)
            sent = ChannelCheck(CheckKind.TEST, time.monotonic() - began, who, results)
            await record_check(self._store, channel, sent)
            if sent.failure is None:
                await commit_allow_trial(self._store, [channel])
                self._wake_channels([channel])
        return sent

    async def _check(self, channel: str, min_age: float, requested_by: str | None = None) -> ChannelCheck | None:
        """None if a replica has begun a check within `min_age` seconds."""
        if not await claim_check(self._store, channel, min_age):
            return None
        began = time.monotonic()
        results = await self._run_check(self._settings, channel)
        found = ChannelCheck(CheckKind.CHECK, time.monotonic() - began, requested_by, results)
        if results:
            await record_check(self._store, channel, found)
        if (failure := found.failure) is not None:
            log.warning("channel check failed", channel=channel, error=failure.detail, hint=failure.hint)
        return found

    async def _send(self, channel: str) -> list[CheckResult]:
        sent, error = await send_test_message(self._settings, channel)
        results = [
            CheckResult(name, CheckOutcome.PASSED, _describe(each)) for name, each in zip(_STEPS, sent, strict=False)
        ]
        if error is not None:
            detail = f"{error.reason.replace('_', ' ')}: {error}"
            advice = await find_advice(self._settings, channel, error)
            results.append(CheckResult(_STEPS[len(sent)], CheckOutcome.FAILED, detail, advice))
        return results

    def _refuse_if_busy(self) -> None:
        if self._slots.locked():
            raise _refuse("too many channels are being checked or tested", 5)


async def claim_test(store: Store, channel: str, rate: float | None) -> None:
    """Takes the tokens of a test message and its resolve, at `rate` messages per second, if there is a limit.

    A channel behind its circuit breaker may be tested, not one whose provider asked for a pause.

    Raises:
        RefusedError: there may be none now; with the reason, and for how long.
        StoreUnavailableError: it is not known to be committed.
    """

    def claim(transaction: Transaction) -> None:
        now, row = transaction.now, lock_or_insert(transaction, channel)
        # Another replica's may have started after this transaction; much later, the clock was set back.
        since = None if row.test_started_at is None else now - row.test_started_at
        if since is not None and -CLOCK_TOLERANCE <= since < _TEST_INTERVAL:
            raise _refuse(_RECENT, _TEST_INTERVAL - max(since, 0.0))
        if seconds := compute_pauses(row, now)[1]:
            raise _refuse(_RETRY_AFTER, seconds)
        available, wait = count_available(row.next_token_at, now, 1, rate)
        if not available:
            raise _refuse(_NO_RATE, wait or NO_TOKEN_SECONDS)
        next_token_at = row.next_token_at if rate is None else spend(row.next_token_at, now, len(_STEPS), rate)
        update_channel(transaction, channel, test_started_at=now, next_token_at=next_token_at)

    await store.run(claim)


def _describe(sent: AcceptedMessage) -> str:
    """The provider's words, and what the receipt has beside them."""
    receipt = ", ".join(f"{name} {value}" for name, value in sent.receipt.items() if value and value not in sent.reply)
    return "; ".join(filter(None, [sent.reply, receipt]))
