"""`keypulse-exporter`: argument parsing and start."""

import gc

gc.disable()  # to look for garbage among what is imported is a third of the start

from typing import Unpack

import click

from services.exporter.app import serve
from services.exporter.config import ExporterSettings
from shared.process.command_line import ServerOptions, add_server_options, run_server
from shared.process.doctor import create_doctor_command

gc.freeze()
gc.enable()


class _Commands(click.Group):
    """Imports the modules of a command when it runs: their HTTP client takes 10 MB, and probes need none."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's own
        return ["doctor", "init"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name == "init":
            from services.exporter.first_configuration import command  # noqa: PLC0415  # see above

            return command
        if cmd_name == "doctor":
            from services.exporter.doctor import open_checks  # noqa: PLC0415  # see above

            return create_doctor_command(ExporterSettings, open_checks, "keypulse-exporter")
        return None


@click.group(
    cls=_Commands,
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
    if context.invoked_subcommand is None:
        run_server(ExporterSettings, serve, options)


if __name__ == "__main__":
    main()
