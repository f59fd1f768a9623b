"""`keypulse-exporter`: argument parsing and start."""

from pathlib import Path

import click

from services.exporter.app import serve
from services.exporter.config import Settings
from shared.cli import run_server, server_options


@click.command(
    epilog="""\b
Examples:
  keypulse-exporter --config exporter.yml
  keypulse-exporter --config exporter.yml --check
  KEYPULSE_EXPORTER__LISTEN=127.0.0.1:9921 keypulse-exporter --config exporter.yml
"""
)
@server_options
def main(config: Path | None, check: bool, print_schema: bool) -> None:
    """Probe KMS with real round trips, read the backends' crypto state, and show both to Prometheus at /metrics."""
    run_server(Settings, serve, config=config, check=check, print_schema=print_schema)


if __name__ == "__main__":
    main()
