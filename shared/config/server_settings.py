"""The settings that every server has: where it listens, and who may call it."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from shared.config.settings import CommandSettings, ListenAddress, Section, TokenPath


class Role(StrEnum):
    """What a caller may do; each role includes those before it."""

    VIEWER = "viewer"
    """Reads pages and `/api`."""
    RESPONDER = "responder"
    """Also retries, and reads and writes records."""
    ADMIN = "admin"
    """Everything."""

    def includes(self, other: "Role") -> bool:
        """Whether this role includes the other."""
        roles = list(Role)
        return roles.index(self) >= roles.index(other)


RESERVED_NAMES: Final = ("admin", "crypto-admin", "sender", "anonymous", "SIGHUP")
"""The audit log's names for holders of `auth.admin_token_file`, `admin.token_file`, `auth.bearer_token_file`, for
callers without credentials, and for a signal."""


class NamedToken(Section):
    """A token and its role."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]
    """The holder's name in logs and the audit log."""
    role: Role
    file: TokenPath


def fold_name(name: str) -> str:
    """How names of the audit log are compared: its reader takes `Admin` for `admin`."""
    return unicodedata.normalize("NFKC", name).casefold()


def is_name_in(name: str, names: Iterable[str]) -> bool:
    """Whether another caller of the audit log has this name."""
    return fold_name(name) in map(fold_name, names)


def check_unique_names(names: Sequence[str]) -> None:
    """Raises ValueError if two callers of the audit log would have one name."""
    every = [*RESERVED_NAMES, *names]
    folded = [fold_name(name) for name in every]
    twice = next((name for name in reversed(every) if folded.count(fold_name(name)) > 1), None)
    if twice is not None:
        raise ValueError(f"expected each name once, and none of {', '.join(RESERVED_NAMES)}; {twice} is there again")


class AuthSettings(Section):
    """Who may read pages and call the API."""

    admin_token_file: TokenPath | None = None
    tokens: tuple[NamedToken, ...] = ()
    roles: dict[str, Role] = Field(default_factory=dict)
    """Of users of web.yml; one without a role reads `/metrics` alone."""

    @property
    def has_credentials(self) -> bool:
        """Whether there is a credential beside those of web.yml."""
        return self.admin_token_file is not None or bool(self.tokens)

    @model_validator(mode="after")
    def _check_unique_names(self) -> Self:
        check_unique_names([*(token.name for token in self.tokens), *self.roles])
        return self


class ServerSettings(CommandSettings):
    """The settings of every server."""

    listen: ListenAddress
    auth: AuthSettings = AuthSettings()

    def list_reserved_names(self) -> list[str]:
        """Return the names that no user of web.yml may have."""
        return [*RESERVED_NAMES, *(token.name for token in self.auth.tokens)]

    def find_warnings(self) -> Iterator[tuple[str, str]]:
        """Yield keys whose valid values cannot work now, with a sentence; for `--check` and the log of the start."""
        yield from ()
