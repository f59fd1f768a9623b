"""`send-test`: whether a channel works."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

import click
import structlog

from services.relay.channel_check import find_advice, send_test_message
from services.relay.cli.command_context import add_config_option, check_channel_or_exit
from services.relay.config import RelaySettings
from services.relay.send_error import SendError
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
    try:
        receipts = asyncio.run(send_test_message(settings, channel))
    except SendError as error:
        click.echo(f"{channel}: not sent ({error.reason}): {error}", err=True)
        click.echo(f"{channel}: {_find_advice(settings, channel, error)}", err=True)
        sys.exit(1)
    rejected = receipts[0].get("rejected_recipients")
    click.echo(
        f"{channel}: sent to {settings.channels[channel].destination}" + (f"; refused: {rejected}" if rejected else "")
    )
    for receipt in receipts:
        click.echo(json.dumps(dict(receipt)))


def _find_advice(settings: RelaySettings, channel: str, error: SendError) -> str:
    """What the channel's checks say, or what follows from the error where they may not read that."""
    advice = asyncio.run(find_advice(settings, channel, error.reason))
    if "not_in_channel" in str(error) and "/invite" not in advice:
        return f"invite the bot: type in {settings.channels[channel].destination}: /invite @NAME-OF-THE-BOT"
    return advice
