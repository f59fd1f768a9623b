"""The command `keypulse-backend`."""

from typing import Unpack

import click

from services.backend.app import serve
from services.backend.config import Settings
from shared.cli import ServerOptions, run_server, server_options

_EXAMPLES = """\b
Examples:
  keypulse-backend --config backend.yml
  keypulse-backend --config backend.yml --check
  curl -X PUT --data-binary @letter.pdf http://127.0.0.1:8000/v1/records/letter
  curl http://127.0.0.1:8000/healthz
"""


@click.command(epilog=_EXAMPLES)
@server_options
def main(**options: Unpack[ServerOptions]) -> None:
    """A reference service: keeps records in SQLite, encrypted with data keys that KMS wraps."""
    run_server(Settings, serve, options)


if __name__ == "__main__":
    main(prog_name="keypulse-backend")
