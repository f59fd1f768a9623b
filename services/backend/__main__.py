"""The command `keypulse-backend`."""

import gc

gc.disable()  # to look for garbage among what is imported is a third of the start

from pathlib import Path
from typing import Unpack

import click

from services.backend import admin_command
from services.backend.app import serve
from services.backend.config import BackendSettings
from services.backend.doctor import open_checks
from shared.process.command_line import ServerOptions, add_server_options, run_server
from shared.process.doctor import create_doctor_command
from shared.process.first_configuration import create_init_command

gc.freeze()
gc.enable()

_EXAMPLES = """\b
Examples:
  keypulse-backend --config backend.yml
  keypulse-backend --config backend.yml --check
  keypulse-backend doctor --config backend.yml
  keypulse-backend admin --config backend.yml
  keypulse-backend admin abandon --config backend.yml
  curl -X PUT --data-binary @letter.pdf http://127.0.0.1:8000/v1/records/letter
  curl http://127.0.0.1:8000/healthz
"""


@click.group(invoke_without_command=True, epilog=_EXAMPLES)
@add_server_options
@click.pass_context
def main(context: click.Context, **options: Unpack[ServerOptions]) -> None:
    """A reference service: keeps records in SQLite or PostgreSQL, encrypted with data keys that KMS wraps.

    Serves when no command is given.
    """
    if context.invoked_subcommand is None:
        run_server(BackendSettings, serve, options)


main.add_command(admin_command.admin)
admin_command.admin.add_command(admin_command.abandon)
main.add_command(create_doctor_command(BackendSettings, open_checks, "keypulse-backend"))
_FIRST = Path(__file__).with_name("first_configuration.yml")
main.add_command(create_init_command(BackendSettings, _FIRST, "keypulse-backend"))


if __name__ == "__main__":
    main(prog_name="keypulse-backend")
