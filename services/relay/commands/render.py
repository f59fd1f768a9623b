"""`render`: what a channel would tell of a webhook. Sends nothing, and reads no secret."""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from services.relay import identity
from services.relay.bounds import bounded
from services.relay.commands.configured import configured
from services.relay.commands.outbox import channel_or_exit
from services.relay.config import RelaySettings
from services.relay.intake import webhook
from services.relay.model import Event, Message
from services.relay.sending.enrich.links import links, narrowed
from services.relay.sending.here import close
from services.relay.workers import link_rules
from shared.cli import load_or_exit, option_or_exit

_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config ops/compose/relay.yml render --payload tests/relay/payloads/01-firing-1.json --channel pagerduty
  curl -s localhost:9912/api/quarantine/7 | keypulse-relay --config relay.yml render --payload - --channel pagerduty"""  # noqa: E501


@click.command("render", short_help="Print what a channel would be sent.", epilog=_EXAMPLES)
@click.option("--payload", required=True, metavar="FILE", help="A webhook as JSON; - is standard input.")
@click.option("--channel", required=True, help="The name of a channel in the configuration.")
@configured
def command(config: Path | None, payload: str, channel: str) -> None:
    """Print what a channel would be sent for a webhook; sends nothing."""
    settings = load_or_exit(RelaySettings, config)
    channel_or_exit(settings, channel)
    event = option_or_exit("--payload", _event, payload)
    click.echo(asyncio.run(_rendered(settings, channel, _message(event, settings))))


def _event(file: str) -> Event:
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return bounded(webhook.read(body, ""))
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except (webhook.MalformedError, webhook.TooManyError) as error:
        raise ValueError(f"expected a webhook of Alertmanager: {error}") from None


def _message(event: Event, settings: RelaySettings) -> Message:
    """The first of its incident."""
    now, rules = datetime.now(UTC), link_rules(settings)
    event = narrowed(event, rules)
    return Message(
        delivery_id="0" * 32,
        incident_id=identity.incident_id(event),
        episode=1,
        event=event,
        links=tuple(links(alert, now, rules) for alert in event.alerts),
        accepted_at=now,
        first_receipt=None,
        contacts=settings.contacts,
    )


async def _rendered(settings: RelaySettings, name: str, message: Message) -> str:
    channel = settings.channels[name].connect(settings.delivery.timeout)
    try:
        return await asyncio.to_thread(channel.payload, message)
    finally:
        await close(name, channel)
