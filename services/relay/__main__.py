"""`keypulse-relay`: accepts Alertmanager's webhooks and delivers them."""

import gc

gc.disable()  # to look for garbage among what is imported is a third of the start

import logging
from typing import Final, Unpack

import click
import structlog
import uvloop

from services.relay.app import serve
from services.relay.cli import (
    alertmanager,
    deliveries,
    incidents,
    init,
    mark_restored,
    render,
    report,
    retry,
    send_test,
)
from services.relay.config import RelaySettings
from services.relay.doctor import open_checks
from shared.process.command_line import ServerOptions, add_server_options, run_server
from shared.process.doctor import create_doctor_command

gc.freeze()
gc.enable()

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


@click.group(invoke_without_command=True, epilog=_EXAMPLES)
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


for each in (
    deliveries.command,
    incidents.command,
    report.command,
    init.command,
    retry.command,
    mark_restored.command,
    render.command,
    send_test.command,
    alertmanager.command,
    incidents.acknowledge_command,
    incidents.unacknowledge_command,
):
    main.add_command(each)
main.add_command(create_doctor_command(RelaySettings, open_checks, "keypulse-relay"))


if __name__ == "__main__":
    main(prog_name="keypulse-relay")
