"""`keypulse-relay`: takes Alertmanager's webhooks and delivers them."""

import asyncio
import json
import sys
from pathlib import Path

import click

from services.relay.app import send_test, serve
from services.relay.channels.channel import SendError
from services.relay.config import RelaySettings
from shared.cli import load_or_exit, run_server, server_options


@click.group(invoke_without_command=True)
@server_options
@click.pass_context
def main(context: click.Context, config: Path | None, check: bool, print_schema: bool) -> None:
    r"""Take Alertmanager's webhooks, and deliver them to Slack, email and PagerDuty.

    Serves when no command is given.

    \b
    Examples:
      keypulse-relay --config relay.yml
      keypulse-relay --config relay.yml --check
      keypulse-relay --print-schema > relay.schema.json
      keypulse-relay --config relay.yml send-test --channel slack-critical
    """
    context.obj = config
    if context.invoked_subcommand is None:
        run_server(RelaySettings, serve, config=config, check=check, print_schema=print_schema)


@main.command("send-test")
@click.option("--channel", required=True, help="The name of a channel in the configuration.")
@click.pass_obj
def test_channel(config: Path | None, channel: str) -> None:
    r"""Send a test page and its all-clear on one channel, and print what the provider answered.

    \b
    Example:
      keypulse-relay --config relay.yml send-test --channel slack-critical
    """
    settings = load_or_exit(RelaySettings, config)
    if channel not in settings.channels:
        raise click.BadParameter(f"no such channel; expected one of {', '.join(sorted(settings.channels))}")
    try:
        for receipt in asyncio.run(send_test(settings, channel)):
            click.echo(json.dumps(dict(receipt)))
    except SendError as error:
        click.echo(f"{channel}: not sent ({error.reason}): {error.detail}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="keypulse-relay")
