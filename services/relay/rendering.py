"""What channels would send for a webhook, were it the first of its incident. Nothing is sent, and nothing is stored."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import structlog
from markupsafe import Markup

from services.relay.acknowledge_link import build_link
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import close_channel
from services.relay.delivery.enrichment.enricher import EnrichmentSettings, open_enricher
from services.relay.delivery.links import build_incident_url, build_links, remove_foreign_links
from services.relay.delivery.templates import MessageTemplates
from services.relay.event_size import limit_size
from services.relay.intake.webhook_parser import MalformedWebhookError, TooManyTextsError, parse_whole_event
from services.relay.model import DeliveryTask, Event, Message, build_incident_id
from services.relay.preview.message import render_message
from services.relay.text import is_resolved
from shared.process.logs import describe_exception

_MAX_SECONDS: Final = 10.0
"""How long rendering one webhook for all channels may take."""
_MAX_WAITING: Final = 4
"""Webhooks that are rendered or wait for it; one is rendered at a time."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class RenderedPayload(NamedTuple):
    """What one channel would send."""

    channel: str
    kind: str
    payload: str | None = None
    """Credentials masked; None after a defect, which is in the log."""
    html: Markup = Markup()
    """The same as a person sees it, for a page; of a mail its text."""


class RenderingBusyError(Exception):
    """Too many webhooks are being rendered, or one takes too long; the message says what to do."""


class WebhookRenderer:
    """Renders webhooks for every channel, in a thread of its own and in bounded time. No request is made to anybody.

    Args:
        settings: the configuration.
        clock: seconds, monotonic.
    """

    def __init__(self, settings: RelaySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        # They open a connection at their first send, and never send.
        self._channels = {name: each.connect(settings.delivery.timeout) for name, each in settings.channels.items()}
        self._templates = MessageTemplates(settings.messages.templates)
        self._thread = ThreadPoolExecutor(1, "render")
        self._waiting_count = 0

    async def render(self, body: bytes, *, only: str | None = None) -> list[RenderedPayload]:
        """The payload of each channel, without what Prometheus says now.

        Args:
            body: of the webhook.
            only: the name of one channel; None renders for all.

        Raises:
            ValueError: the body is no webhook of Alertmanager; the message says where.
            RenderingBusyError: try again, or a smaller one.
        """
        if self._waiting_count >= _MAX_WAITING:
            raise RenderingBusyError("others are being rendered; try again in a moment")
        self._waiting_count += 1
        try:
            async with asyncio.timeout(_MAX_SECONDS):
                event = await self._run(partial(parse_event, body))
                message = build_preview_message(self._settings, "", event)
                message = await enrich(_get_runbook_files(self._settings), self._settings, message)
                ends = self._clock() + _MAX_SECONDS  # a thread cannot be cancelled
                names = [name for name in self._channels if only in {None, name}]
                return await self._run(lambda: [self._render_one(name, message, ends) for name in names])
        except TimeoutError:
            raise RenderingBusyError(f"it takes longer than {_MAX_SECONDS:g} s; try a smaller one") from None
        finally:
            self._waiting_count -= 1

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _render_one(self, name: str, message: Message, ends: float) -> RenderedPayload:
        if self._clock() > ends:
            raise TimeoutError
        own = self._settings.channels[name]
        message = replace(message, task=message.task._replace(channel=name))
        kind = str(getattr(own, "kind", ""))
        try:
            if own.uses_templates:
                message = self._templates.apply(message)[0]
            payload = self._channels[name].render_payload(_add_link(self._settings, message))
            return RenderedPayload(name, kind, payload, render_message(kind, payload))
        except Exception as error:  # noqa: BLE001  # the other channels are shown
            log.error("payload could not be rendered", channel=name, **describe_exception(error))  # noqa: TRY400
            return RenderedPayload(name, kind)


async def render_webhook(settings: RelaySettings, channel_name: str, body: bytes) -> str:
    """The payload of one channel, with what Prometheus says now. Raises ValueError, as `WebhookRenderer.render`."""
    event = parse_event(body)
    channel = settings.channels[channel_name].connect(settings.delivery.timeout)
    try:
        message = build_preview_message(settings, channel_name, event)
        if settings.channels[channel_name].uses_templates:
            with closing(MessageTemplates(settings.messages.templates)) as templates:
                message = (await asyncio.to_thread(templates.apply, message))[0]
        message = await enrich(settings.enrichment, settings, message)
        return await asyncio.to_thread(channel.render_payload, _add_link(settings, message))
    finally:
        await close_channel(channel_name, channel)


def parse_event(body: bytes) -> Event:
    """The event of a webhook. Raises ValueError, whose message says where and what was expected."""
    try:
        return limit_size(parse_whole_event(body, ""))
    except (MalformedWebhookError, TooManyTextsError) as error:
        raise ValueError(f"expected a webhook of Alertmanager: {error}") from None


def build_preview_message(settings: RelaySettings, channel_name: str, event: Event) -> Message:
    """The message of an event, as delivery builds it."""
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
    return Message(
        task,
        event,
        links,
        settings.contacts,
        zone=settings.messages.zone,
        buttons=settings.buttons,
        incident_url=build_incident_url(task, rules),
    )


def _add_link(settings: RelaySettings, message: Message) -> Message:
    """The message with its link that acknowledges, where it has one; nobody signs it here."""
    public_url = settings.auth.public_url
    if public_url is None or is_resolved(message.event):
        return message
    if not settings.channels[message.task.channel].has_acknowledge_link:
        return message
    return replace(message, acknowledge_url=build_link(message).build_url(public_url, ""))


async def enrich(enrichment: EnrichmentSettings, settings: RelaySettings, message: Message) -> Message:
    """The message with its runbook excerpt and what Prometheus says now, as delivery adds them."""
    ends = asyncio.get_running_loop().time() + settings.delivery.timeout
    message = replace(message, task=message.task._replace(attempt_ends=ends))
    own = settings.channels.get(message.task.channel)
    async with open_enricher(enrichment, settings.messages.zone) as enricher:
        enriched, _ = await enricher.enrich(
            message,
            shows_values=own is not None and own.shows_values,
            shows_chart=own is not None and own.shows_chart,
        )
        return enriched


def _get_runbook_files(settings: RelaySettings) -> EnrichmentSettings:
    """Only what is read from this machine: a payload that somebody pastes must not make the relay ask a server."""
    runbook = settings.messages.runbook
    return EnrichmentSettings(
        runbook=runbook if isinstance(runbook, Path) else None, addresses=settings.enrichment.addresses
    )
