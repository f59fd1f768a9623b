"""`send-test`: whether a channel works."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

import click
import structlog

from services.relay.channel_health.checks import find_advice, send_test_message
from services.relay.cli import add_config_option, check_channel_or_exit, record_where_possible
from services.relay.config import RelaySettings
from shared.process import logs
from shared.process.command_line import load_settings_or_exit

_EXAMPLES: Final = """\b
Example:
  keypulse-relay --config relay.yml send-test --channel slack-critical"""


@click.command("send-test", short_help="Send a test message and its resolve.", epilog=_EXAMPLES)
@click.option("--channel", required=True, help="The name of a channel in the configuration.")
@add_config_option
def command(config: Path | None, channel: str) -> None:
    """Send a test message and its resolve on one channel; print where they went, and the receipts, or what to do."""
    settings = load_settings_or_exit(RelaySettings, config)
    check_channel_or_exit(settings, channel)
    if settings.channels[channel].kind == "log":
        structlog.reset_defaults()
        logs.configure(settings.service_name)  # what it sends are lines of the log
    record_where_possible(settings, "test channel", channel)
    sent, error = asyncio.run(send_test_message(settings, channel))
    if error is not None:
        click.echo(f"{channel}: not sent ({error.reason}): {error}", err=True)
        click.echo(f"{channel}: {asyncio.run(find_advice(settings, channel, error))}", err=True)
        sys.exit(1)
    rejected = sent[0].receipt.get("rejected_recipients")
    click.echo(
        f"{channel}: sent to {settings.channels[channel].destination}" + (f"; refused: {rejected}" if rejected else "")
    )
    for each in sent:
        click.echo(json.dumps(dict(each.receipt)))
