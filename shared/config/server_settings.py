"""The settings that every server has: where it listens, and who may call it."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from shared.config.settings import CommandSettings, ListenAddress, Section, TokenPath


class Role(StrEnum):
    """What a caller may do; each may also do what those before it may."""

    VIEWER = "viewer"
    """Reads pages and `/api`."""
    RESPONDER = "responder"
    """Also retries, and reads and writes records."""
    ADMIN = "admin"
    """Everything."""

    def includes(self, other: "Role") -> bool:
        """Whether it may do what `other` may."""
        roles = list(Role)
        return roles.index(self) >= roles.index(other)


RESERVED_NAMES: Final = ("admin", "crypto-admin", "sender", "anonymous", "SIGHUP")
"""What the audit calls the holders of `auth.admin_token_file`, `admin.token_file` and `auth.bearer_token_file`, and who
needs no credentials."""


class NamedToken(Section):
    """A token of somebody."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]
    """How logs and the audit call its holder."""
    role: Role
    file: TokenPath


def check_unique_names(names: Sequence[str]) -> None:
    """Raises ValueError where a name of the audit would stand for two, or for what has a name anyway."""
    every = [*RESERVED_NAMES, *names]
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"expected each name once, and none of {', '.join(RESERVED_NAMES)}; {twice} is there again")


class AuthSettings(Section):
    """Who may look at pages and use the API."""

    admin_token_file: TokenPath | None = None
    tokens: tuple[NamedToken, ...] = ()
    roles: dict[str, Role] = Field(default_factory=dict)
    """Of users of web.yml; one without a role reads `/metrics` alone."""

    @model_validator(mode="after")
    def _check_unique_names(self) -> Self:
        check_unique_names([*(token.name for token in self.tokens), *self.roles])
        return self


class ServerSettings(CommandSettings):
    """What every server lets a person set."""

    listen: ListenAddress
    auth: AuthSettings = AuthSettings()

    def list_reserved_names(self) -> list[str]:
        """Those that the audit has for others than users of web.yml."""
        return [*RESERVED_NAMES, *(token.name for token in self.auth.tokens)]

    def find_warnings(self) -> Iterator[tuple[str, str]]:
        """Keys whose valid values will not do as things are, with a sentence; told by `--check` and at the start."""
        yield from ()
