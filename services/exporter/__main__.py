"""`keypulse-exporter`: argument parsing and start."""

import gc

gc.disable()  # to look for garbage among what is imported is a third of the start

from typing import Unpack

import click

from services.exporter import first_configuration
from services.exporter.app import serve
from services.exporter.config import ExporterSettings
from services.exporter.doctor import open_checks
from shared.process.command_line import ServerOptions, add_server_options, run_server
from shared.process.doctor import create_doctor_command

gc.freeze()
gc.enable()


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  keypulse-exporter --config exporter.yml
  keypulse-exporter --config exporter.yml --check
  KEYPULSE_EXPORTER__LISTEN=127.0.0.1:9921 keypulse-exporter --config exporter.yml
  keypulse-exporter doctor --config exporter.yml
""",
)
@add_server_options
@click.pass_context
def main(context: click.Context, **options: Unpack[ServerOptions]) -> None:
    """Probe KMS with real round trips, read the backends' crypto state, and show both to Prometheus at /metrics.

    Serves when no command is given.
    """
    context.obj = options["config"]
    if context.invoked_subcommand is None:
        run_server(ExporterSettings, serve, options)


main.add_command(first_configuration.command)
main.add_command(create_doctor_command(ExporterSettings, open_checks, "keypulse-exporter"))


if __name__ == "__main__":
    main()
