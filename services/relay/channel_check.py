"""One channel without the outbox: send a test message and its resolve, advise, or render the payload of a webhook.

Nothing is stored, and nothing is tried again.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

from services.relay.channels.diagnosis import find_hint
from services.relay.channels.port import Channel, Receipt
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import close_channel
from services.relay.delivery.enrichment.enricher import open_enricher
from services.relay.delivery.links import LinkRules, build_links, remove_foreign_links
from services.relay.delivery.templates import MessageTemplates
from services.relay.event_size import limit_size
from services.relay.intake.webhook_parser import MalformedWebhookError, TooManyTextsError, read_event
from services.relay.model import Alert, DeliveryTask, Event, Message, Status, build_incident_id
from services.relay.send_error import SendError, SendReason, SendScope
from shared.check import Check, CheckResult
from shared.process.doctor import list_file_checks, run_checks_concurrently


class SentMessage(NamedTuple):
    """A message that a provider accepted."""

    receipt: Receipt
    reply: str
    """The provider's, credentials masked."""


async def send_test_message(settings: RelaySettings, channel_name: str) -> list[SentMessage]:
    """Sends a test message and its resolve on one channel; gives what became of both. Raises SendError."""
    timeout = settings.delivery.timeout
    channel = settings.channels[channel_name].connect(timeout)
    try:
        async with asyncio.timeout(2 * timeout):
            message = _build_test_message(channel_name, datetime.now(UTC), settings.link_rules)
            sent = await _send(channel, message)
            resolve = _build_test_resolve(message, sent.receipt, datetime.now(UTC))
            return [sent, await _send(channel, resolve)]
    except TimeoutError:
        raise SendError(SendReason.TIMEOUT, SendScope.ATTEMPT, f"no answer within {2 * timeout:g} s") from None
    finally:
        await close_channel(channel_name, channel)


async def _send(channel: Channel, message: Message) -> SentMessage:
    attempt = _UnrecordedAttempt(message)
    return SentMessage(await channel.send(attempt), attempt.reply)


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
    # A check that gets no connection says nothing of an error that is another one.
    unrelated = {SendReason.TIMEOUT, SendReason.CONNECTION} - {error.reason}
    hints = (result.hint for result in results if result.hint)
    advice = next((hint for hint in hints if hint not in map(find_hint, unrelated)), find_hint(error.reason))
    if "not_in_channel" in str(error) and "/invite" not in advice:  # the checks may not read who is a member
        return f"invite the bot: type in {settings.channels[channel_name].destination}: /invite @NAME-OF-THE-BOT"
    return advice


async def render_webhook(settings: RelaySettings, channel_name: str, body: bytes) -> str:
    """The payload that a channel would send for a webhook, the first of its incident. Sends nothing.

    Raises:
        ValueError: the body is no webhook of Alertmanager; the message says where.
    """
    try:
        event = limit_size(read_event(body, ""))
    except (MalformedWebhookError, TooManyTextsError) as error:
        raise ValueError(f"expected a webhook of Alertmanager: {error}") from None
    channel = settings.channels[channel_name].connect(settings.delivery.timeout)
    try:
        message = await _enrich(settings, _build_message(settings, channel_name, event))
        return await asyncio.to_thread(channel.render_payload, message)
    finally:
        await close_channel(channel_name, channel)


async def _enrich(settings: RelaySettings, message: Message) -> Message:
    """The message with its runbook excerpt and what Prometheus says now, as delivery adds them."""
    ends = asyncio.get_running_loop().time() + settings.delivery.timeout
    message = replace(message, task=message.task._replace(attempt_ends=ends))
    async with open_enricher(settings.messages.enrichment, settings.messages.zone) as enricher:
        own = settings.channels[message.task.channel]
        enriched, _ = await enricher.enrich(message, shows_values=own.shows_values, shows_chart=own.shows_chart)
        return enriched


def _build_message(settings: RelaySettings, channel_name: str, event: Event) -> Message:
    now, rules = datetime.now(UTC), settings.link_rules
    event = remove_foreign_links(event, rules)
    task = DeliveryTask(
        delivery_id="0" * 32,
        incident_id=build_incident_id(event),
        episode=1,
        channel=channel_name,
        accepted_at=now,
    )
    links = tuple(build_links(alert, now, rules) for alert in event.alerts)
    message = Message(task, event, links, settings.contacts, zone=settings.messages.zone)
    if not settings.channels[channel_name].uses_templates:
        return message
    return MessageTemplates(settings.messages.templates).apply(message)[0]


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
