"""The sessions of the console: each by the cookie of a login, or of the person whom a trusted proxy names.

A session says by what its holder logged in. At each request that is looked up again: a user who left web.yml, a token
that was replaced, a password that was changed and a group without a role end it at once. The database has the hash of
each cookie, never the cookie, and as a proof a hash of the credential, keyed with the cookie. All replicas share it. A
session ends at its `expires_at`, after `IDLE_SECONDS` without a request, or at its logout, whichever is first.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, urlsplit

from pydantic_core import from_json, to_json
from sqlalchemy import Connection, bindparam, delete, insert, or_, select, update
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from services.relay.config import OidcSettings, RelaySettings, find_role
from services.relay.outbox.audit import insert_entry
from services.relay.outbox.store import Store, StoreUnavailableError, Transaction
from services.relay.outbox.tables import clean_for_database, sessions
from shared.config.server_settings import Role, is_name_in
from shared.http.access import (
    IGNORED_HEADER_SCOPE_KEY,
    Authorizer,
    SessionsUnavailableError,
    get_path_and_query,
    get_peer,
)
from shared.http.authentication import (
    Caller,
    Session,
    Token,
    create_access_policy,
    find_passwords,
    find_token,
    format_cookie,
    is_peer_in,
    read_cookie,
)
from shared.sql.rows import select_rows, select_values

MAX_NAME_LENGTH: Final = 200


class LoginSource(StrEnum):
    PASSWORD = "password"  # noqa: S105  # no password
    """Of a user of web.yml."""
    TOKEN = "token"  # noqa: S105  # no token
    OIDC = "oidc"


class Login(NamedTuple):
    name: str
    source: LoginSource
    credential: bytes
    """What the session is valid with: the hash of the password, the token, the client at the provider."""
    groups: Sequence[str] = ()


ATTEMPT_SECONDS: Final = 600
"""How long a person may take at the provider."""


class OidcError(Exception):
    """A login cannot be completed; the message is a sentence without secrets."""


class ProviderUnavailableError(OidcError):
    """The provider does not answer as it should; another attempt may succeed."""


class LoginAttempt(NamedTuple):
    """A login that a browser has begun."""

    value: str
    """Random, its time and their signature; the browser keeps it in a cookie."""

    @property
    def state(self) -> str:
        return self._derive("state")

    @property
    def nonce(self) -> str:
        return self._derive("nonce")

    @property
    def code_verifier(self) -> str:
        """Is shown to the provider with the code alone."""
        return self._derive("verifier")

    def _derive(self, purpose: str) -> str:
        return hmac.digest(self.value.encode(), purpose.encode(), "sha256").hex()


def build_client_credential(oidc: OidcSettings) -> bytes:
    """What the sessions of a provider are valid with: another provider or client ends them."""
    return f"{oidc.issuer} {oidc.client_id}".encode()


def clean_name(text: object) -> str | None:
    """A person's name as somebody else gives it; None if it is none."""
    name = text.strip() if isinstance(text, str) else ""
    return name if name and name.isprintable() and len(name) <= MAX_NAME_LENGTH else None


MAX_SECONDS: Final = 12 * 3600.0
"""How long a session lasts at most."""
IDLE_SECONDS: Final = 3600.0
"""How long it lasts without a request."""
MAX_SESSIONS_OF_NAME: Final = 100
"""Sessions of one person, or of one shared token; the ones that were not used for longest end first."""
_PRUNE_STEP: Final = 100
"""Rows that one transaction removes."""
_USE_STEP: Final = 60.0
"""Seconds between two updates of `used_at`."""

_session = sessions.c


class SessionRow(NamedTuple):
    id: str
    name: str
    source: str
    proof: str
    group_names: str
    used_at: float
    expires_at: float


_FIND: Final = select_rows(SessionRow, sessions.c).where(_session.id == bindparam("session"))
_OLDEST_OF_NAME: Final = (
    select_values(str, _session.id)
    .where(_session.name == bindparam("holder"))
    .order_by(_session.used_at.desc(), _session.id)
)
_DELETE: Final = delete(sessions).where(_session.id == bindparam("session"))


def find_session(connection: Connection, session_id: str) -> SessionRow | None:
    """The session of an id, also one that has ended."""
    return _FIND.fetch_first(connection, {"session": session_id})


async def start_session(store: Store, row: SessionRow, peer: str | None, replaced_id: str | None) -> None:
    """Commits a session with the entry of its login in the audit.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """

    def commit(transaction: Transaction) -> None:
        connection, now = transaction.connection, transaction.now
        if replaced_id is not None:
            connection.execute(_DELETE, {"session": replaced_id})
        ended = _OLDEST_OF_NAME.offset(MAX_SESSIONS_OF_NAME - 1).fetch_all(connection, {"holder": row.name})
        if ended:
            connection.execute(delete(sessions).where(_session.id.in_(ended)))
        times = {"created_at": now, "used_at": now, "expires_at": now + MAX_SECONDS}
        connection.execute(insert(sessions), {**row._asdict(), **times})
        insert_entry(transaction, row.name, peer, "login", row.source)

    await store.run(commit)


async def prune_sessions(store: Store, _cutoff: float) -> int:
    """Removes the sessions that have ended, in small steps; how many went. Raises StoreUnavailableError."""

    def remove(transaction: Transaction) -> int:
        now = transaction.now
        over = or_(_session.expires_at <= now, _session.used_at <= now - IDLE_SECONDS)
        oldest = select(_session.id).where(over).limit(_PRUNE_STEP)
        return transaction.connection.execute(delete(sessions).where(_session.id.in_(oldest))).rowcount

    removed_count = 0
    while removed := await store.run(remove):
        removed_count += removed
    return removed_count


LOGIN_PATH: Final = "/login"
_COOKIE: Final = "session"
_VALUE: Final = re.compile("[A-Za-z0-9_-]{43}")


class ConsoleSessions:
    """The sessions of the relay's console; see `shared.http.access.Sessions`."""

    def __init__(self, store: Store, settings: RelaySettings) -> None:
        self.auth = settings.auth
        self.access_policy = create_access_policy(settings.auth)
        """Has the tokens, and the roles of web.yml's users."""
        self.reserved_names = frozenset([*settings.list_reserved_names(), *settings.auth.roles])
        """Of other callers in the audit: nobody who logs in elsewhere may have one of them."""
        self.render_refusal: Callable[[int, str], Response] | None = None
        """Makes the page for a browser whose request is refused, by status and message; None before there are pages."""
        self._store = store
        self._recording: dict[str, asyncio.Task[None]] = {}

    @property
    def uses_https(self) -> bool:
        """Whether browsers reach the relay by https, as far as the configuration says."""
        return (self.auth.public_url or "").startswith("https:")

    @property
    def public_path(self) -> str:
        return urlsplit(self.auth.public_url or "").path

    async def find_session(self, request: Request) -> Session | None:
        """The session of a request, or that of a trusted proxy. Raises SessionsUnavailableError."""
        from_proxy = self._read_proxy(request)
        value = _read_value(request)
        if value is None:
            return from_proxy
        try:
            row = await self._store.read(partial(find_session, session_id=_hash_value(value)))
        except StoreUnavailableError as error:
            raise SessionsUnavailableError(str(error)) from None
        now = self._store.clock()
        if row is None or now >= row.expires_at or now >= row.used_at + IDLE_SECONDS:
            return from_proxy
        role = self._find_role(row, value, request)
        if role is None:
            return from_proxy
        self._record_use(row)
        return Session(Caller(row.name, role), value)

    async def start(self, request: Request, login: Login, response: Response) -> None:
        """Commit a new session, and let the response set its cookie. Raises StoreUnavailableError."""
        value = secrets.token_urlsafe(32)  # always a new one: a cookie from before the login is worth nothing
        row = SessionRow(
            id=_hash_value(value),
            name=clean_for_database(login.name)[:MAX_NAME_LENGTH],
            source=login.source.value,
            proof=_compute_proof(value, login.credential),
            group_names=to_json(list(login.groups)).decode(),
            used_at=0.0,
            expires_at=0.0,
        )
        replaced = _read_value(request)
        await start_session(self._store, row, get_peer(request), replaced and _hash_value(replaced))
        response.headers.append("set-cookie", format_cookie(request, _COOKIE, value))

    async def end(self, request: Request, session: Session, response: Response) -> None:
        """Commit a logout, and let the response remove the cookie. Raises StoreUnavailableError."""
        if session.secret:
            ended = {"session": _hash_value(session.secret)}

            def commit(transaction: Transaction) -> None:
                if transaction.connection.execute(_DELETE, ended).rowcount:
                    insert_entry(transaction, session.caller.name, get_peer(request), "logout", "")

            await self._store.run(commit)
        response.headers.append("set-cookie", format_cookie(request, _COOKIE, "", max_age=0))

    def build_refusal(self, request: Request, status: int, message: str) -> Response | None:
        """For a browser, a redirect to the login page, or a page with the reason; None for a program."""
        is_page = "text/html" in request.headers.get("accept", "") and "hx-request" not in request.headers
        if status != 401:
            return self.render_refusal(status, message) if is_page and self.render_refusal else None
        if "hx-request" in request.headers:
            to = build_login_path(get_path_and_query(request))  # a part has the address of its page
            return Response(status_code=401, headers={"HX-Redirect": to, "WWW-Authenticate": "Bearer"})
        if is_page:
            path = get_path_and_query(request) if request.method == "GET" else "/"
            return RedirectResponse(build_login_path(path), status_code=303)
        if "sec-fetch-mode" in request.headers or "text/event-stream" in request.headers.get("accept", ""):
            # A script of ours: a challenge for Basic would open the browser's own dialogue.
            return JSONResponse({"error": message}, status_code=401, headers={"WWW-Authenticate": "Bearer"})
        return None

    async def close(self) -> None:
        await asyncio.gather(*self._recording.values(), return_exceptions=True)

    def find_role(self, login: Login) -> Role | None:
        """The role of who logs in; None if there is none."""
        if login.source is LoginSource.PASSWORD:
            return self.access_policy.roles.get(login.name)
        if login.source is LoginSource.TOKEN:
            return next((each.role for each in self.access_policy.tokens if each.name == login.name), None)
        return find_role(self.auth.oidc.roles, login.groups) if self.auth.oidc else None

    def find_token(self, sent: bytes) -> Login | None:
        """The login of a token. Raises SecretUnreadableError: a file cannot be read, and no other token is valid."""
        found = find_token(self.access_policy.tokens, sent)
        return Login(found.name, LoginSource.TOKEN, sent) if found else None

    def _find_role(self, row: SessionRow, value: str, request: Request) -> Role | None:
        """The role that a session has now; None if its credential is no longer valid. Raises SecretUnreadableError."""
        for credential in self._list_credentials(row, request):
            if hmac.compare_digest(_compute_proof(value, credential), row.proof):
                return self.find_role(
                    Login(row.name, LoginSource(row.source), credential, _parse_groups(row.group_names))
                )
        return None

    def _list_credentials(self, row: SessionRow, request: Request) -> Iterable[bytes]:
        """What a holder of this name may have logged in with."""
        if row.source == LoginSource.PASSWORD:
            passwords = find_passwords(request.scope)
            stored = passwords.get_hash(row.name) if passwords else None
            return [stored] if stored else []
        if row.source == LoginSource.TOKEN:
            tokens: Iterable[Token] = self.access_policy.tokens
            return [value.encode() for each in tokens if each.name == row.name for value in each.secret.read_values()]
        if row.source == LoginSource.OIDC and self.auth.oidc:
            return [build_client_credential(self.auth.oidc)]
        return []

    def _read_proxy(self, request: Request) -> Session | None:
        """The person whom a trusted proxy names. Any other header of this name is ignored, and counted."""
        proxy = self.auth.proxy
        names = request.headers.getlist(proxy.user_header) if proxy else []
        if not proxy or not names:
            return None
        name = _parse_header_name(names[0])
        groups = request.headers.getlist(proxy.groups_header) if proxy.groups_header else []
        # Two of them: one may be the client's own, which the proxy has let through.
        if (
            not is_peer_in(request, proxy.from_)
            or not (self.auth.public_url is None or self.is_public_host(request))
            or len(names) > 1
            or len(groups) > 1
            or name is None
            or is_name_in(name, self.reserved_names)
        ):
            request.scope[IGNORED_HEADER_SCOPE_KEY] = True
            return None
        members = [each.strip() for each in groups[0].split(",")] if groups else []
        role = find_role(proxy.roles, members if proxy.groups_header else [name])
        return Session(Caller(name, role), None)

    def is_public_host(self, request: Request) -> bool:
        """Whether it came for `public_url`'s host: other hosts of the proxy may pass on what their clients send."""
        if self.auth.public_url is None:
            return False
        scheme, own, *_ = urlsplit(self.auth.public_url)
        suffix = ":443" if scheme == "https" else ":80"
        hosts = [host.lower().removesuffix(suffix) for host in request.headers.getlist("host")]
        return hosts == [own.lower().removesuffix(suffix)]

    def _record_use(self, row: SessionRow) -> None:
        """Record the use of a session once a minute; no page waits for it."""
        if self._store.clock() < row.used_at + _USE_STEP or row.id in self._recording:
            return

        def commit(transaction: Transaction) -> None:
            changed = update(sessions).where(_session.id == row.id, _session.used_at < transaction.now)
            transaction.connection.execute(changed.values(used_at=transaction.now))

        async def record() -> None:
            with suppress(StoreUnavailableError):  # a page can be read while nothing can be committed
                await self._store.run(commit)

        task = asyncio.create_task(record(), name="record the use of a session")
        self._recording[row.id] = task
        task.add_done_callback(lambda _: self._recording.pop(row.id, None))


def build_login_path(next_path: str) -> str:
    """The login page's path, which leads back to a page of ours."""
    following = clean_next_path(next_path)
    return LOGIN_PATH if following == "/" else f"{LOGIN_PATH}?next={quote(following, safe='/')}"


def clean_next_path(path: str) -> str:
    """A path of ours to go on to; the start page for whatever else it is, such as another site's address."""
    is_own = (
        path.startswith("/")
        and not path.startswith("//")
        and "\\" not in path
        and path.isascii()
        and path.isprintable()
        and len(path) <= 2000
    )
    return path if is_own and not re.match(r"/log(in|out)\b", path) else "/"


def _parse_header_name(text: str) -> str | None:
    try:
        return clean_name(text.encode("latin-1").decode())  # Starlette reads headers as latin-1
    except UnicodeDecodeError:
        return None


def _read_value(request: Request) -> str | None:
    value = read_cookie(request, _COOKIE)
    return value if value and _VALUE.fullmatch(value) else None


def _hash_value(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _compute_proof(value: str, credential: bytes) -> str:
    return hmac.digest(value.encode(), credential, "sha256").hex()


def _parse_groups(text: str) -> Sequence[str]:
    groups = from_json(text)
    return [each for each in groups if isinstance(each, str)] if isinstance(groups, list) else []


if TYPE_CHECKING:
    from services.relay.login.oidc import OidcClient


class LoginService(NamedTuple):
    sessions: ConsoleSessions
    authorizer: Authorizer
    oidc: "OidcClient | None"


@asynccontextmanager
async def open_login(settings: RelaySettings, store: Store, authorizer: Authorizer) -> AsyncIterator[LoginService]:
    """Lets the authorizer find sessions from now on; closes the connections to the provider at the end."""
    async with AsyncExitStack() as stack:
        oidc = None
        if settings.auth.oidc:
            from services.relay.login.oidc import OidcClient  # noqa: PLC0415  # authlib takes 200 ms, which few need

            oidc = OidcClient(settings.auth.oidc, store.clock)
            stack.push_async_callback(oidc.close)
        sessions = ConsoleSessions(store, settings)
        stack.push_async_callback(sessions.close)
        authorizer.sessions = sessions
        yield LoginService(sessions, authorizer, oidc)
