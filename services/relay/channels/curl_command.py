"""What was sent, as a command that sends it again by hand. Each secret is a variable, which a person sets."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

JSON_TYPE: Final = "-H 'Content-Type: application/json; charset=utf-8'"
_MAX_SIZE: Final = 100_000
"""Bytes of a payload over which there is no command: Linux takes 128 KiB as one argument."""


def quote_address(url: str, own: str, variable: str) -> str:
    """An address, quoted for a shell. A path that is not the provider's own may hold a secret: it is a variable.

    Args:
        url: as configured.
        own: the provider's own address, as documented.
        variable: its name.
    """
    if url.rstrip("/") == own.rstrip("/"):
        return shlex.quote(url.rstrip("/"))
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f'{shlex.quote(f"{parts.scheme}://{host}")}"${variable}"'


def build_posts(url: str, options: Sequence[str], payload: str, secrets: Mapping[str, str] | None = None) -> str | None:
    """A POST for each line of a payload; None for one that is too large.

    Args:
        url: quoted for a shell, and so are the options.
        options: of each request.
        payload: as it was sent, credentials masked.
        secrets: what stands for a credential in it, and the same with a variable.
    """
    if len(payload.encode()) > _MAX_SIZE:
        return None
    commands = []
    for line in payload.splitlines():
        body = shlex.quote(line)
        for masked, variable in (secrets or {}).items():
            body = body.replace(masked, variable, 1)
        commands.append(" \\\n  ".join([f"curl -sS {url}", *options, f"--data-raw {body}"]))
    return "\n".join(commands)


def build_mail_command(url: str, options: Sequence[str], payload: str) -> str | None:
    """The command that submits a mail; None for one that is too large. See `build_posts`."""
    if len(payload.encode()) > _MAX_SIZE:
        return None
    return " \\\n  ".join([f"printf %s {shlex.quote(payload)} | curl -sS {url}", *options, "-T -"])
