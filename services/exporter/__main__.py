"""`keypulse-exporter`: argument parsing and start."""

from typing import Unpack

import click

from services.exporter.app import serve
from services.exporter.config import ExporterSettings
from shared.process.command_line import ServerOptions, add_server_options, run_server


@click.command(
    epilog="""\b
Examples:
  keypulse-exporter --config exporter.yml
  keypulse-exporter --config exporter.yml --check
  KEYPULSE_EXPORTER__LISTEN=127.0.0.1:9921 keypulse-exporter --config exporter.yml
"""
)
@add_server_options
def main(**options: Unpack[ServerOptions]) -> None:
    """Probe KMS with real round trips, read the backends' crypto state, and show both to Prometheus at /metrics."""
    run_server(ExporterSettings, serve, options)


if __name__ == "__main__":
    main()
