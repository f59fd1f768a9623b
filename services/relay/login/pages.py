"""`/login` and `/logout`: by the password of a user of web.yml, by a token, or at a provider of OpenID Connect."""

import asyncio
import base64
import binascii
import hmac
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from services.relay.console.frame import Console, CredentialRefusedError, View
from services.relay.login.sessions import (
    ATTEMPT_SECONDS,
    LOGIN_PATH,
    Login,
    LoginAttempt,
    LoginService,
    LoginSource,
    OidcError,
    ProviderUnavailableError,
    clean_next_path,
)
from services.relay.outbox.store import StoreUnavailableError
from shared.config.secret_file import SecretUnreadableError
from shared.config.server_settings import is_name_in
from shared.http.access import RefusalReason, get_peer
from shared.http.authentication import find_passwords, format_cookie, get_session, list_cookies, read_cookie
from shared.http.fair_queue import QueueFullError
from shared.http.json_api import RefusedError, hide_paths, read_form
from shared.http.web_config_auth import PASSWORD_CHECK_SECONDS

CALLBACK_PATH: Final = f"{LOGIN_PATH}/oidc/callback"
_ATTEMPT_COOKIE: Final = "login_"
_MAX_ATTEMPTS: Final = 5
"""Tabs of one browser that may log in at once."""
_STATE: Final = re.compile("[0-9a-f]{64}")
_NOT_VALID: Final = "This token is not valid."
_WRONG: Final = "This name, password or token is not valid."
_FOREIGN_ATTEMPT: Final = "This login began in another browser, or too long ago. Log in again."

log = structlog.get_logger(__name__)


class _StartedAttempt(NamedTuple):
    """What the cookie of a login at the provider holds."""

    value: str
    next_path: str


class LoginPages:
    """The login page, its actions, and the logout."""

    def __init__(self, login: LoginService) -> None:
        self._sessions = login.sessions
        self._authorizer = login.authorizer
        self._oidc = login.oidc

    def add_routes(self, console: Console) -> None:
        self._sessions.render_refusal = console.render_refusal
        console.public(LOGIN_PATH, self._show, "login.html.j2")
        console.public(LOGIN_PATH, self._log_in, "login.html.j2", ["POST"])
        console.public("/logout", self._log_out, methods=["POST"])
        if self._oidc:
            console.public(f"{LOGIN_PATH}/oidc", self._begin_oidc, "login.html.j2")
            console.public(CALLBACK_PATH, self._complete_oidc, "login.html.j2")

    async def _show(self, request: Request) -> View:
        return self._view(request, request.query_params.get("next", "/"))

    async def _log_in(self, request: Request) -> Response | View:
        next_path, name = "/", ""
        try:
            form = await read_form(request)
            next_path, name = clean_next_path(form.get("next", "/")), form.get("name", "").strip()
            login = await self._check(request, name, form.get("secret", ""))
            return await self._start(request, login, next_path)
        except RefusedError as error:
            return self._refuse(request, error, LOGIN_PATH, next_path, name)

    async def _check(self, request: Request, name: str, secret: str) -> Login:
        """The login of a token, or of a name and its password. Raises CredentialRefusedError."""
        login, is_unreadable = None, False
        try:
            login = self._sessions.find_token(secret.encode())
        except SecretUnreadableError:  # which locks out nobody who has a password
            is_unreadable = True
        passwords = find_passwords(request.scope)
        if login is None and passwords and name:
            try:
                async with asyncio.timeout(PASSWORD_CHECK_SECONDS):
                    is_correct = await passwords.check_password(name, secret.encode(), get_peer(request) or "")
            except (QueueFullError, TimeoutError):
                raise CredentialRefusedError(
                    "Too many passwords are being checked. Try again in a moment.", 503, RefusalReason.BUSY
                ) from None
            stored = passwords.get_hash(name)
            login = Login(name, LoginSource.PASSWORD, stored) if is_correct and stored else None
        if login is None and is_unreadable:
            raise CredentialRefusedError(
                "A token file cannot be read now. See the relay's log.", 503, RefusalReason.UNREADABLE
            )
        if login is None:
            raise CredentialRefusedError(_WRONG if passwords else _NOT_VALID, 401, RefusalReason.WRONG)
        return login

    async def _start(self, request: Request, login: Login, next_path: str) -> Response:
        """Start the session of a login, if its holder has a role. Raises CredentialRefusedError."""
        role = self._sessions.find_role(login)
        if role is None:
            key = "auth.oidc.roles, for a group of theirs" if login.source is LoginSource.OIDC else "auth.roles"
            raise CredentialRefusedError(
                f"{login.name} has no role here. Whoever runs this relay can give one in {key}.",
                403,
                RefusalReason.ROLE,
            )
        response = RedirectResponse(next_path, status_code=303)
        try:
            await self._sessions.start(request, login, response)
        except StoreUnavailableError:
            raise CredentialRefusedError(
                "The outbox cannot store a login now. Try again in a moment.", 503, None
            ) from None
        log.info("action", who=login.name, peer=get_peer(request), action="login", on=login.source.value)
        return response

    async def _log_out(self, request: Request) -> Response:
        response = RedirectResponse(LOGIN_PATH, status_code=303)
        session = get_session(request)
        if session:
            await self._sessions.end(request, session, response)
            log.info("action", who=session.caller.name, peer=get_peer(request), action="logout", on="")
        return response

    async def _begin_oidc(self, request: Request) -> Response | View:
        assert self._oidc  # noqa: S101  # else there is no such route
        next_path = clean_next_path(request.query_params.get("next", "/"))
        try:
            with _translate_errors():
                attempt = self._oidc.create_attempt()
                url = await self._oidc.build_authorization_url(attempt, self._redirect_uri)
        except CredentialRefusedError as error:
            return self._refuse(request, error, f"{LOGIN_PATH}/oidc", next_path)
        response = RedirectResponse(url, status_code=303)
        others = list_cookies(request, _ATTEMPT_COOKIE)
        for name in others if len(others) >= _MAX_ATTEMPTS else ():
            response.headers.append("set-cookie", format_cookie(request, name, "", max_age=0))
        value = f"{attempt.value}.{_encode(next_path)}"
        name = f"{_ATTEMPT_COOKIE}{attempt.state[:16]}"
        response.headers.append("set-cookie", format_cookie(request, name, value, max_age=ATTEMPT_SECONDS))
        return response

    async def _complete_oidc(self, request: Request) -> Response | View:
        state = request.query_params.get("state", "")
        cookie = f"{_ATTEMPT_COOKIE}{state[:16]}" if _STATE.fullmatch(state) else None
        started = _read_attempt(read_cookie(request, cookie) or "") if cookie else _StartedAttempt("", "/")
        # A callback works once.
        end_attempt = {"set-cookie": format_cookie(request, cookie, "", max_age=0)} if cookie and started.value else {}
        try:
            login = await self._identify(request, started, state)
            response = await self._start(request, login, started.next_path)
        except CredentialRefusedError as error:
            view = self._refuse(request, error, CALLBACK_PATH, started.next_path)
            return replace(view, headers=end_attempt)
        for name, value in end_attempt.items():
            response.headers.append(name, value)
        return response

    async def _identify(self, request: Request, started: _StartedAttempt, state: str) -> Login:
        """Who comes back from the provider. Raises CredentialRefusedError."""
        assert self._oidc  # noqa: S101  # else there is no such route
        attempt, sent = LoginAttempt(started.value), request.query_params
        with _translate_errors():
            is_own = hmac.compare_digest(attempt.state.encode(), state.encode()) and self._oidc.is_valid_attempt(
                attempt
            )
        if not is_own:
            raise CredentialRefusedError(_FOREIGN_ATTEMPT, 401, RefusalReason.WRONG)
        if sent.get("iss", self._oidc.settings.issuer) != self._oidc.settings.issuer:
            # https://www.rfc-editor.org/rfc/rfc9207: another provider's answer
            raise CredentialRefusedError("Another provider has answered. Log in again.", 401, RefusalReason.WRONG)
        if "code" not in sent:
            code = sent.get("error", "")
            described = f": {code}" if code.isidentifier() and len(code) <= 40 else ""
            raise CredentialRefusedError(f"The provider has refused the login{described}.", 401, RefusalReason.WRONG)
        with _translate_errors():
            login = await self._oidc.complete(attempt, sent["code"], self._redirect_uri, get_peer(request) or "")
        if is_name_in(login.name, self._sessions.reserved_names):
            raise CredentialRefusedError(
                f"{login.name} is the name of another caller in the audit.", 403, RefusalReason.ROLE
            )
        return login

    def _refuse(self, request: Request, error: RefusedError, endpoint: str, next_path: str, name: str = "") -> View:
        if isinstance(error, CredentialRefusedError) and error.reason:
            self._authorizer.refusals.count(get_peer(request) or "unknown", endpoint, error.reason)
        return self._view(request, next_path, str(error), error.status, name)

    def _view(
        self, request: Request, next_path: str, problem: str | None = None, status: int = 200, name: str = ""
    ) -> View:
        policy = self._sessions.access_policy
        values = {
            "next_path": clean_next_path(next_path),
            "problem": problem,
            "name": name,
            "has_users": find_passwords(request.scope) is not None,
            "has_tokens": bool(policy.tokens),
            "has_oidc": self._oidc is not None,
            "provider": urlsplit(self._oidc.settings.issuer).netloc if self._oidc else None,
            "is_open": policy.is_open,
        }
        return View(values, status)

    @property
    def _redirect_uri(self) -> str:
        return f"{self._sessions.auth.public_url}{CALLBACK_PATH}"


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Turns an OidcError into a CredentialRefusedError, and logs it."""
    try:
        yield
    except ProviderUnavailableError as error:
        log.warning("login by OpenID Connect failed", error=str(error))
        raise CredentialRefusedError(f"OpenID Connect does not work now: {hide_paths(str(error))}.", 503) from None
    except OidcError as error:
        log.warning("login by OpenID Connect refused", error=str(error))
        raise CredentialRefusedError(f"The login is not valid: {error}.", 401, RefusalReason.WRONG) from None


def _encode(path: str) -> str:
    return base64.urlsafe_b64encode(path.encode()).decode().rstrip("=")


def _read_attempt(cookie: str) -> _StartedAttempt:
    """The content of a cookie; an empty value if it is none of ours."""
    value, _, path = cookie.rpartition(".")
    try:
        next_path = base64.urlsafe_b64decode(path + "=" * (-len(path) % 4)).decode()
    except (binascii.Error, ValueError):
        return _StartedAttempt("", "/")
    return _StartedAttempt(value, clean_next_path(next_path))
