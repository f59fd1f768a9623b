"""A person whose credential was checked, and how the audit names them."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from services.relay.login.settings import OidcSettings

MAX_NAME_LENGTH: Final = 200


class LoginSource(StrEnum):
    """What somebody logs in by."""

    PASSWORD = "password"  # noqa: S105  # no password
    """Of a user of web.yml."""
    TOKEN = "token"  # noqa: S105  # no token
    OIDC = "oidc"


class Login(NamedTuple):
    """A person whose credential was checked."""

    name: str
    source: LoginSource
    credential: bytes
    """What the session is valid with: the hash of the password, the token, the client at the provider."""
    groups: Sequence[str] = ()


def build_client_credential(oidc: OidcSettings) -> bytes:
    """What the sessions of a provider are valid with: another provider or client ends them."""
    return f"{oidc.issuer} {oidc.client_id}".encode()


def clean_name(text: object) -> str | None:
    """A person's name as somebody else gives it; None if it is none."""
    name = text.strip() if isinstance(text, str) else ""
    return name if name and name.isprintable() and len(name) <= MAX_NAME_LENGTH else None
