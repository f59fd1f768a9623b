"""`keypulse-relay`: takes Alertmanager's webhooks and delivers them."""

from pathlib import Path

import click

from services.relay.app import serve
from services.relay.config import RelaySettings
from shared.cli import run_server, server_options


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
    """
    if context.invoked_subcommand is None:
        run_server(RelaySettings, serve, config=config, check=check, print_schema=print_schema)


if __name__ == "__main__":
    main(prog_name="keypulse-relay")
