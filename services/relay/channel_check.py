"""One channel without the outbox: check it, send a test message and its resolve, or advise what to do.

Nothing is stored, and nothing is tried again.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import uuid4

from services.relay.channels.diagnosis import find_hint
from services.relay.channels.port import Channel, Receipt
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import close_channel
from services.relay.delivery.links import LinkRules, build_links
from services.relay.model import Alert, DeliveryTask, Event, Message, Status
from services.relay.send_error import SendError, SendReason, SendScope
from shared.check import Check, CheckResult
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
