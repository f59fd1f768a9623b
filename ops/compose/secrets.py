"""`python -m ops.compose.secrets`: creates the missing secrets of compose.yaml; existing ones stay.

A file's group may read it, because Alertmanager runs as another user. `pgpass` is for its owner alone: libpq refuses
any other.
"""

import secrets
import signal
import sys
from pathlib import Path

import click

LAST_SECRET = "relay_token"  # noqa: S105  # its name
"""Written last: if it exists, the folder is complete, or the user's own."""
_READABLE_MODE = 0o440
_OWNER_ONLY_MODE = 0o400


def generate_secrets() -> dict[str, str]:
    """Return the name and the random content of each file."""
    password = secrets.token_urlsafe(32)
    return {
        "admin_token": secrets.token_urlsafe(32),
        "slack_token": f"xoxb-{secrets.token_hex(16)}",
        "pagerduty_key": secrets.token_hex(16),
        "postgres_password": password,
        "pgpass": f"postgres:5432:keypulse:keypulse:{password}",
        LAST_SECRET: secrets.token_urlsafe(32),
    }


def create_secrets(folder: Path) -> str:
    """Create the missing files, and return what was done. Raises OSError."""
    if (folder / LAST_SECRET).exists():
        return f"{folder} has its secrets already"
    for name, content in generate_secrets().items():
        file = folder / name
        file.unlink(missing_ok=True)  # of a start that was cut off
        file.touch(mode=0o600)
        file.write_text(content + "\n", encoding="utf-8")
        file.chmod(_OWNER_ONLY_MODE if name == "pgpass" else _READABLE_MODE)
    return f"made the secrets in {folder}"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default="/run/secrets")
@click.option("--show", metavar="NAME", help="Print one of them instead, such as admin_token.")
@click.option(
    "--stay",
    "wait_for_signal",
    is_flag=True,
    help="Run until SIGTERM, so that containers that wait for this one can be restarted.",
)
def main(folder: Path, show: str | None, wait_for_signal: bool) -> None:
    """Create the missing secrets of compose.yaml."""
    ends = {signal.SIGTERM, signal.SIGINT}
    if wait_for_signal:
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # the first process of a container has no default for them
    try:
        click.echo((folder / show).read_text(encoding="utf-8").strip() if show else create_secrets(folder))
    except OSError as error:
        click.echo(f"{error.filename or folder}: {error.strerror}; it must belong to user {_get_user_id()}", err=True)
        sys.exit(1)
    if wait_for_signal:
        signal.sigwait(ends)


def _get_user_id() -> int:
    return Path("/proc/self").stat().st_uid


if __name__ == "__main__":
    main()
