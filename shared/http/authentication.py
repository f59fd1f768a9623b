"""Authentication: the credentials of a request → a name and a role.

`Authorization: Bearer TOKEN`; for a browser, Basic with the token as its password, or a user of web.yml, whose password
`web_config_auth` has checked before; without that header, the session that `Sessions` has found. The name comes from
the credential alone, never from another header.
"""

import base64
import binascii
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from shared.config.secret_file import SecretUnreadableError, TokenFile
from shared.config.server_settings import AuthSettings, NamedToken, Role

USER_SCOPE_KEY: Final = "keypulse.user"
"""The key in a request's scope for the name of a user of web.yml whose password was checked."""
USER_HASH_SCOPE_KEY: Final = "keypulse.user_hash"
"""The key in a request's scope for the hash by which that password was correct."""
SESSION_SCOPE_KEY: Final = "keypulse.session"
"""The key in a request's scope for its session, or None."""
ADMIN_NAME: Final = "admin"
"""The name of the holder of `admin_token_file`."""
Endpoint = Callable[[Request], Awaitable[Response]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    name: str
    role: Role | None
    """None: may only read `/metrics`."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a browser adds to its requests by itself: a login of ours, or that of a trusted proxy."""

    caller: Caller
    secret: str | None
    """The value of its cookie; None for a proxy's."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token's file, and its holder."""

    name: str
    role: Role
    secret: TokenFile


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Defines who may call a server, or some of its endpoints."""

    tokens: Sequence[Token] = ()
    """Without tokens and users of web.yml, everybody who reaches the server may call; settings allow that on loopback
    only."""
    roles: Mapping[str, Role] = field(default_factory=dict)
    """Of users of web.yml."""
    allowed_networks: Collection[Network] = ()
    """The networks of allowed callers; empty allows every address."""
    bearer_only: bool = False
    """Whether only a bearer token counts, not a user of web.yml or credentials that a browser adds."""
    disabled_reason: str | None = None
    """Why nobody may call while there are no tokens; None allows everybody."""
    accepts_sessions: bool = False
    """Whether a session counts."""
    requires_credentials: bool = False
    """Whether nobody is anonymous even without tokens and users: people log in elsewhere."""

    @property
    def is_open(self) -> bool:
        """Whether everybody who reaches the server may call, unless web.yml has users."""
        return not (self.tokens or self.disabled_reason or self.requires_credentials)

    def identify_caller(self, request: Request) -> Caller | None:
        """Return the caller, or None if no credential is valid. Reads only headers, never the body.

        Raises:
            SecretUnreadableError: a token file cannot be read, and no other credential is valid.
        """
        if USER_SCOPE_KEY in request.scope and not self.bearer_only:
            name = request.scope[USER_SCOPE_KEY]
            return Caller(name, self.roles.get(name))
        session = get_session(request)
        if session and self.accepts_sessions:
            return session.caller
        sent = _parse_token(request, bearer_only=self.bearer_only)
        found = find_token(self.tokens, sent)
        return None if found is None else Caller(found.name, found.role)

    def allows_address(self, request: Request) -> bool:
        """Whether the caller's address is allowed."""
        return not self.allowed_networks or is_peer_in(request, self.allowed_networks)


def is_peer_in(request: Request, networks: Collection[Network]) -> bool:
    """Whether a request comes from an address of these networks."""
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped  # how a dual-stack socket shows a caller of IPv4
    return any(address in network for network in networks)


def create_access_policy(auth: AuthSettings) -> AccessPolicy:
    """Build the policy of a server's settings."""
    admin = auth.admin_token_file
    own = [Token(ADMIN_NAME, Role.ADMIN, TokenFile(admin))] if admin else []
    return AccessPolicy(
        tokens=[*own, *load_tokens(auth.tokens)],
        roles=auth.roles,
        accepts_sessions=True,
        requires_credentials=auth.has_credentials,
    )


def find_token(tokens: Sequence[Token], sent: bytes) -> Token | None:
    """The token with this secret. Raises SecretUnreadableError: a file cannot be read, and no other token matches."""
    found: Token | None = None
    unreadable: SecretUnreadableError | None = None
    for token in tokens:  # every one, so that the delay reveals nothing
        try:
            found = token if token.secret.matches(sent) and found is None else found
        except SecretUnreadableError as error:
            unreadable = error
    if found is None and unreadable is not None:
        raise unreadable
    return found


def load_tokens(tokens: Sequence[NamedToken]) -> list[Token]:
    """Return the tokens of settings."""
    return [Token(token.name, token.role, TokenFile(token.file)) for token in tokens]


def get_session(request: Request) -> Session | None:
    """Return the session that counts for a request; None if its own headers say who calls."""
    session: Session | None = request.scope.get(SESSION_SCOPE_KEY)
    return None if "authorization" in request.headers else session


def parse_basic_credentials(request: Request) -> tuple[str, bytes]:
    """Return name and password of a Basic header; both are empty without one."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return "", b""
    try:
        name, _, password = base64.b64decode(credentials, validate=True).partition(b":")
        return name.decode(), password
    except (binascii.Error, ValueError):
        return "", b""


def _parse_token(request: Request, *, bearer_only: bool) -> bytes:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    # The bytes as they came: Starlette reads headers as latin-1.
    bearer = credentials.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
    return bearer if bearer or bearer_only else parse_basic_credentials(request)[1]
