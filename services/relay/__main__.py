"""`keypulse-relay`: accepts Alertmanager's webhooks and delivers them."""

import gc

gc.disable()  # to look for garbage among what is imported is a third of the start

import logging
from importlib import import_module
from typing import Final, Unpack

import click
import structlog
import uvloop

from services.relay.app import serve
from services.relay.config import RelaySettings
from shared.process.command_line import ServerOptions, add_server_options, run_server

gc.freeze()
gc.enable()

_COMMANDS: Final = {
    "acknowledge": "services.relay.incidents.cli:acknowledge_command",
    "alertmanager": "services.relay.routes.merge:command",
    "deliveries": "services.relay.deliveries.cli:deliveries_command",
    "doctor": "services.relay.doctor:command",
    "incidents": "services.relay.incidents.cli:command",
    "init": "services.relay.init:init_command",
    "mark-restored": "services.relay.cli:mark_restored_command",
    "proofs": "services.relay.proofs.cli:command",
    "render": "services.relay.preview.pages:command",
    "report": "services.relay.report.pages:command",
    "retry": "services.relay.deliveries.cli:retry_command",
    "send-test": "services.relay.channel_health.cli:command",
    "unacknowledge": "services.relay.incidents.cli:unacknowledge_command",
}
_EXAMPLES: Final = """\b
Examples:
  keypulse-relay init --slack '#security-ops' > relay.yml
  keypulse-relay --config relay.yml
  keypulse-relay --config relay.yml --check
  keypulse-relay --print-schema > relay.schema.json
  keypulse-relay doctor --config relay.yml
  keypulse-relay --config relay.yml send-test --channel slack-critical
  keypulse-relay --config relay.yml incidents --status firing
  keypulse-relay --config relay.yml deliveries --state dead"""


class _Commands(click.Group):
    """Imports a command once it is used: a relay that serves needs none."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's
        module, _, attribute = _COMMANDS.get(cmd_name, "").partition(":")
        command: click.Command | None = getattr(import_module(module), attribute) if module else None
        return command


@click.group(cls=_Commands, invoke_without_command=True, epilog=_EXAMPLES)
@add_server_options
@click.pass_context
def main(context: click.Context, **options: Unpack[ServerOptions]) -> None:
    """Accept Alertmanager's webhooks, and deliver them to Slack, email and PagerDuty.

    Serves when no command is given.
    """
    context.obj = options["config"]
    if context.invoked_subcommand is None:
        run_server(RelaySettings, serve, options, uvloop.new_event_loop)
    else:  # a command prints what the log would contain
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


if __name__ == "__main__":
    main(prog_name="keypulse-relay")
