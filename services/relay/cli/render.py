"""`render`: prints what a channel would send for a webhook. Sends nothing, and reads no secret."""

import asyncio
import sys
from pathlib import Path
from typing import Final

import click

from services.relay.channel_check import render_webhook
from services.relay.cli.command_context import add_config_option, check_channel_or_exit
from services.relay.config import RelaySettings
from shared.process.command_line import load_settings_or_exit, parse_option_or_exit

_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config ops/compose/relay.yml render --payload tests/relay/payloads/01-firing-1.json --channel pagerduty
  curl -s localhost:9912/api/quarantine/7 | keypulse-relay --config relay.yml render --payload - --channel pagerduty"""  # noqa: E501


@click.command("render", short_help="Print what a channel would send.", epilog=_EXAMPLES)
@click.option("--payload", required=True, metavar="FILE", help="A webhook as JSON; - is standard input.")
@click.option("--channel", required=True, help="The name of a channel in the configuration.")
@add_config_option
def command(config: Path | None, payload: str, channel: str) -> None:
    """Print what a channel would send for a webhook. Sends nothing."""
    settings = load_settings_or_exit(RelaySettings, config)
    check_channel_or_exit(settings, channel)

    def render(file: str) -> str:
        return asyncio.run(render_webhook(settings, channel, _read_file(file)))

    click.echo(parse_option_or_exit("--payload", render, payload))


def _read_file(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
