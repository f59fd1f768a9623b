"""Who calls: by credentials, by a session, or a browser that another web page uses (CSRF, DNS rebinding).

A name comes from a credential alone: `Authorization: Bearer TOKEN`, Basic with the token or a user of web.yml, else the
session that `Sessions` has found.

A browser adds its credentials and reaches loopback, so neither shows that a person meant a request. `Origin` and
`Sec-Fetch-Site` do (https://www.w3.org/TR/fetch-metadata/); programs send neither. `Sec-Fetch-Site` wins: no page can
set it, and behind a proxy that ends TLS `Origin` has `https`. A page that points its own name at 127.0.0.1 is
recognised by `Host`. Every action of a page carries a token, in `X-CSRF-Token` or as the first field of its form, bound
to the session, or to a cookie where there is none (double submit). Cookies are invisible to scripts; `__Host-` makes a
browser refuse one from a subdomain or from plain http.
"""

import asyncio
import base64
import binascii
import hmac
import ipaddress
import re
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from shared.config.secret_file import SecretUnreadableError, TokenFile
from shared.config.server_settings import AuthSettings, NamedToken, Role
from shared.config.settings import Address
from shared.http.password_check import PasswordChecker

_PASSWORDS_KEY: Final = "keypulse.passwords"
"""The key in a request's scope for a function that returns the PasswordChecker of now."""


def set_passwords(scope: Scope, get: Callable[[], PasswordChecker | None]) -> None:
    """Let a request find the passwords of web.yml's users, also later, when these may have changed."""
    scope[_PASSWORDS_KEY] = get


def find_passwords(scope: Scope) -> PasswordChecker | None:
    """Return the passwords of web.yml's users as they are now; None if it has none."""
    get: Callable[[], PasswordChecker | None] | None = scope.get(_PASSWORDS_KEY)
    return get() if get else None


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
    tokens_setting: str = "auth.admin_token_file or auth.tokens"
    """Where `tokens` are configured: a token may be valid, but for other endpoints."""
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


def read_cookie(request: Request, name: str) -> str | None:
    """Return the value of a cookie that `format_cookie` made, or None."""
    return request.cookies.get(_build_name(request, name))


def list_cookies(request: Request, prefix: str) -> list[str]:
    """Return the names of the cookies of a request that begin so."""
    own = _build_name(request, "")
    return [name.removeprefix(own) for name in request.cookies if name.startswith(own + prefix)]


def format_cookie(request: Request, name: str, value: str, *, max_age: int | None = None) -> str:
    """Return the header `Set-Cookie` for a name without prefixes and a value that needs no quotes.

    The scheme of the request decides. `max_age` is in seconds; 0 removes it, None keeps it until the browser ends.
    """
    secure = "; Secure" if request.scope.get("scheme") == "https" else ""
    age = "" if max_age is None else f"; Max-Age={max_age}"
    return f"{_build_name(request, name)}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{age}"


def _build_name(request: Request, name: str) -> str:
    prefix = "__Host-" if request.scope.get("scheme") == "https" else ""
    return f"{prefix}keypulse_{name}"


def is_cross_origin(request: Request) -> bool:
    """Whether a browser sent it for a page of another origin."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and origin != f"{request.scope.get('scheme', 'http')}://{request.headers.get('host', '')}"


def is_loopback_host(host: str) -> bool:
    """Whether a header `Host` is a name of loopback."""
    name = _parse_host_name(host)
    return name is not None and Address(name, 0).is_loopback


def is_private_host(host: str) -> bool:
    """Whether a header `Host` is an address, or a name without a dot: no outsider can point either at this machine."""
    name = _parse_host_name(host)
    if name is None:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name
    return True


def _parse_host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


CSRF_HEADER: Final = "x-csrf-token"
CSRF_FIELD: Final = "csrf_token"
_COOKIE: Final = "csrf"
_COOKIE_SECONDS: Final = 7 * 86400
_NEW_VALUE_SCOPE_KEY: Final = "keypulse.new_csrf_cookie"
_SECRET: Final = re.compile("[A-Za-z0-9_-]{43}")
_TOKEN_BYTES: Final = 64
_FIRST_BYTES: Final = len(CSRF_FIELD) + 1 + _TOKEN_BYTES + 1
"""Name, value, and what ends it."""
_READ_SECONDS: Final = 30.0
"""How long the beginning of a form may take to arrive."""


def get_csrf_token(request: Request) -> str:
    """Return the token for the forms of a page; the response sets the cookie that it needs, if any."""
    secret = _find_secret(request)
    if secret is None:
        secret = request.scope[_NEW_VALUE_SCOPE_KEY] = secrets.token_urlsafe(32)
    return _derive_token(secret)


def send_csrf_cookie(request: Request, send: Send) -> Send:
    """Return a `send` that adds the cookie, if `get_csrf_token` needed a new one."""

    async def send_with_cookie(message: Message) -> None:
        secret = request.scope.get(_NEW_VALUE_SCOPE_KEY)
        if secret and message["type"] == "http.response.start":
            cookie = format_cookie(request, _COOKIE, secret, max_age=_COOKIE_SECONDS)
            MutableHeaders(scope=message).append("set-cookie", cookie)
        await send(message)

    return send_with_cookie


async def check_csrf_token(request: Request, receive: Receive) -> tuple[bool, Receive]:
    """Return whether a request has the token, and a `receive` that begins with what was read of its body."""
    sent = request.headers.get(CSRF_HEADER)
    if sent is None:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                sent, receive = await _read_field(receive)
        except TimeoutError:
            return False, receive
    secret = _find_secret(request)
    return secret is not None and hmac.compare_digest(_derive_token(secret).encode(), sent.encode()), receive


async def _read_field(receive: Receive) -> tuple[str, Receive]:
    beginning = b""
    messages: deque[Message] = deque()
    while len(beginning) < _FIRST_BYTES:
        messages.append(message := await receive())
        beginning += message.get("body", b"")
        if not message.get("more_body"):
            break

    async def replay() -> Message:
        return messages.popleft() if messages else await receive()

    name, _, value = beginning.partition(b"&")[0].partition(b"=")
    return value.decode("latin-1") if name == CSRF_FIELD.encode() else "", replay


def _find_secret(request: Request) -> str | None:
    session = get_session(request)
    secret = (
        (session and session.secret) or request.scope.get(_NEW_VALUE_SCOPE_KEY) or read_cookie(request, _COOKIE) or ""
    )
    return secret if _SECRET.fullmatch(secret) else None


def _derive_token(secret: str) -> str:
    return hmac.digest(secret.encode(), b"csrf", "sha256").hex()
