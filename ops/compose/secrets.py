"""`python -m ops.compose.secrets`: creates the missing secrets of compose.yaml; existing ones stay.

Each container has a folder with what it reads, and no other. A file's group may read it, because Alertmanager runs as
another user. `pgpass` is for its owner alone: libpq refuses any other.
"""

import secrets
import signal
import sys
from pathlib import Path

import click

LAST_SECRET = "relay/relay_token"  # noqa: S105  # its name
"""Written last: if it exists, the folders are complete, or the user's own."""
SECRETS_BY_CONTAINER = {
    "alertmanager": ("relay_token",),
    "backend": ("admin_token", "crypto_admin_token"),
    "exporter": ("admin_token",),
    "postgres": ("postgres_password",),
    "stand-ins": ("slack_token", "pagerduty_key"),
    "relay": ("admin_token", "slack_token", "pagerduty_key", "pgpass", "relay_token"),
}
"""What each container reads."""
_READABLE_MODE = 0o440
_OWNER_ONLY_MODE = 0o400


def generate_secrets() -> dict[str, str]:
    """Return the name and the random content of each secret."""
    password = secrets.token_urlsafe(32)
    return {
        "admin_token": secrets.token_urlsafe(32),
        "crypto_admin_token": secrets.token_urlsafe(32),
        "slack_token": f"xoxb-{secrets.token_hex(16)}",
        "pagerduty_key": secrets.token_hex(16),
        "postgres_password": password,
        "pgpass": f"postgres:5432:keypulse:keypulse:{password}",
        "relay_token": secrets.token_urlsafe(32),
    }


def create_secrets(folder: Path) -> str:
    """Create the files of all containers if any is missing, and return what was done. Raises OSError."""
    if (folder / LAST_SECRET).exists():
        return f"{folder} has its secrets already"
    content_by_name = generate_secrets()
    for file in [folder / container / name for container, names in SECRETS_BY_CONTAINER.items() for name in names]:
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)  # of a start that was cut off
        file.touch(mode=0o600)
        file.write_text(content_by_name[file.name] + "\n", encoding="utf-8")
        file.chmod(_OWNER_ONLY_MODE if file.name == "pgpass" else _READABLE_MODE)
    return f"made the secrets in {folder}"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default="/srv/secrets")
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
        click.echo(_read_secret(folder, show) if show else create_secrets(folder))
    except OSError as error:
        click.echo(f"{error.filename or folder}: {error.strerror}; it must belong to user {_get_user_id()}", err=True)
        sys.exit(1)
    if wait_for_signal:
        signal.sigwait(ends)


def _read_secret(folder: Path, name: str) -> str:
    container = next((each for each, names in SECRETS_BY_CONTAINER.items() if name in names), "relay")
    return (folder / container / name).read_text(encoding="utf-8").strip()


def _get_user_id() -> int:
    return Path("/proc/self").stat().st_uid


if __name__ == "__main__":
    main()
