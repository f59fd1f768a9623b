"""`render`: prints what a channel would send for a webhook, or what a person sees. Sends nothing."""

import asyncio
import sys
from pathlib import Path
from typing import Final

import click

from services.relay.cli.command_context import add_config_option, check_channel_or_exit
from services.relay.config import RelaySettings
from services.relay.preview.page import format_pretty, render_page
from services.relay.rendering import render_webhook
from shared.process.command_line import load_settings_or_exit, parse_option_or_exit, replace_unencodable_output

_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config ops/compose/relay.yml render --payload tests/relay/payloads/01-firing-1.json --channel pagerduty
  keypulse-relay --config relay.yml render --payload FILE --channel slack-critical --format pretty
  keypulse-relay --config relay.yml render --payload FILE --channel email-oncall --format html >mail.html
  curl -s localhost:9912/api/quarantine/7 | keypulse-relay --config relay.yml render --payload - --channel pagerduty"""  # noqa: E501


@click.command("render", short_help="Print what a channel would send.", epilog=_EXAMPLES)
@click.option("--payload", required=True, metavar="FILE", help="A webhook as JSON; - is standard input.")
@click.option("--channel", required=True, help="The name of a channel in the configuration.")
@click.option(
    "--format",
    "shape",
    type=click.Choice(["json", "pretty", "html"]),
    default="json",
    show_default=True,
    help="The payload as it is sent; as a person sees it in a terminal; or as a page.",
)
@add_config_option
def command(config: Path | None, payload: str, channel: str, shape: str) -> None:
    """Print what a channel would send for a webhook. Sends nothing."""
    settings = load_settings_or_exit(RelaySettings, config)
    check_channel_or_exit(settings, channel)

    def render(file: str) -> str:
        return asyncio.run(render_webhook(settings, channel, _read_file(file)))

    rendered = parse_option_or_exit("--payload", render, payload)
    kind = settings.channels[channel].kind
    if shape != "json":
        rendered = format_pretty(kind, rendered) if shape == "pretty" else render_page(kind, rendered)
    replace_unencodable_output()
    click.echo(rendered)


def _read_file(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
