"""The command `keypulse-backend`."""

from pathlib import Path

import click

from services.backend.app import running
from services.backend.config import Settings
from shared.cli import run_server, server_options
from shared.server import serve_until_stopped

_EXAMPLES = """\b
Examples:
  keypulse-backend --config backend.yml
  keypulse-backend --config backend.yml --check
  curl -X PUT --data-binary @letter.pdf http://127.0.0.1:8000/v1/records/letter
  curl http://127.0.0.1:8000/healthz
"""


@click.command(epilog=_EXAMPLES)
@server_options
def main(*, config: Path | None, check: bool, print_schema: bool) -> None:
    """A reference service: keeps records in SQLite, encrypted with data keys that KMS wraps."""
    run_server(Settings, _serve, config=config, check=check, print_schema=print_schema)


async def _serve(settings: Settings) -> None:
    async with running(settings) as app:
        await serve_until_stopped(app, settings.listen)


if __name__ == "__main__":
    main(prog_name="keypulse-backend")
