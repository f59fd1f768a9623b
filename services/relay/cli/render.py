"""`render`: what a channel would tell of a webhook. Sends nothing, and reads no secret."""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from services.relay.cli.command_context import add_config_option, check_channel_or_exit
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import close_channel
from services.relay.delivery.links import build_links, remove_foreign_links
from services.relay.delivery.worker import build_link_rules
from services.relay.event_size import limit_size
from services.relay.intake import webhook
from services.relay.model import DeliveryTask, Event, Message, build_incident_id
from shared.process.command_line import load_settings_or_exit, parse_option_or_exit

_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config ops/compose/relay.yml render --payload tests/relay/payloads/01-firing-1.json --channel pagerduty
  curl -s localhost:9912/api/quarantine/7 | keypulse-relay --config relay.yml render --payload - --channel pagerduty"""  # noqa: E501


@click.command("render", short_help="Print what a channel would be sent.", epilog=_EXAMPLES)
@click.option("--payload", required=True, metavar="FILE", help="A webhook as JSON; - is standard input.")
@click.option("--channel", required=True, help="The name of a channel in the configuration.")
@add_config_option
def command(config: Path | None, payload: str, channel: str) -> None:
    """Print what a channel would be sent for a webhook; sends nothing."""
    settings = load_settings_or_exit(RelaySettings, config)
    check_channel_or_exit(settings, channel)
    event = parse_option_or_exit("--payload", _read_event, payload)
    click.echo(asyncio.run(_render_payload(settings, channel, _build_message(channel, event, settings))))


def _read_event(file: str) -> Event:
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return limit_size(webhook.read_event(body, ""))
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except (webhook.MalformedWebhookError, webhook.TooManyTextsError) as error:
        raise ValueError(f"expected a webhook of Alertmanager: {error}") from None


def _build_message(channel: str, event: Event, settings: RelaySettings) -> Message:
    """The first of its incident."""
    now, rules = datetime.now(UTC), build_link_rules(settings)
    event = remove_foreign_links(event, rules)
    task = DeliveryTask(
        delivery_id="0" * 32,
        incident_id=build_incident_id(event),
        episode=1,
        channel=channel,
        accepted_at=now,
    )
    links = tuple(build_links(alert, now, rules) for alert in event.alerts)
    return Message(task, event, links, settings.contacts)


async def _render_payload(settings: RelaySettings, name: str, message: Message) -> str:
    channel = settings.channels[name].connect(settings.delivery.timeout)
    try:
        return await asyncio.to_thread(channel.render_payload, message)
    finally:
        await close_channel(name, channel)
