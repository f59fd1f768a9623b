"""The tokens of Transit: one for each access, which all keys of the process share.

A token is read from a file, or got by a login. A refused login is not repeated while its inputs are the same, but after
a pause: the fifth refusal locks the role for everybody (https://openbao.org/docs/concepts/user-lockout/). No key needs
to be called for a token's end to be known, once it was used.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
from pydantic import BaseModel, Field

from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.credentials import Validity
from shared.kms.port import KmsError
from shared.kms.reason import Cause, Reason
from shared.kms.transit.auth import Auth
from shared.kms.transit.errors import Answer, Data, parse_error

Send = Callable[[str, str, Mapping[str, Any] | None, str | None], Awaitable[Answer]]
"""Method, path, document and token of a request → its answer. Raises KmsError where there is none."""

FIRST_PAUSE: Final = 300.0
LONGER_PAUSE: Final = 1200.0
"""Seconds from one refused login to the next, with the same inputs: a role's refusals are forgotten after 900 s without
one, so that two replicas never make five.
"""
_RETRY_PAUSE: Final = 30.0
"""Seconds from one failed renewal to the next; also from a login to the next, where its token is not accepted."""
_WORK_SECONDS: Final = 10.0
"""A login or a renewal may take; it goes on where the call that began it ends sooner."""
_FOREVER: Final = float("inf")
_REFUSED: Final = {400, 403}
"""Statuses of a login or a renewal that is refused."""

_Seconds = Annotated[int, Field(ge=0, le=10**9)]

log = structlog.get_logger(__name__)


class _Token(BaseModel):
    client_token: str = Field(min_length=1, pattern=r"^[!-~]+$")
    lease_duration: _Seconds
    renewable: bool


class _Login(BaseModel):
    auth: _Token


class _Lookup(BaseModel):
    ttl: _Seconds
    creation_ttl: _Seconds
    renewable: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    value: str
    began_at: float = 0.0
    """Unix seconds; as the next two."""
    ends_at: float = _FOREVER
    renew_at: float = _FOREVER
    """When it is renewed, replaced by another login, or looked up again."""
    is_renewable: bool = False


@dataclass(frozen=True, slots=True)
class _Refusal:
    inputs: tuple[str, ...]
    count: int
    until: float
    error: KmsError


class Login:
    """How one access gets its token. `clock` gives unix seconds."""

    def __init__(self, auth: Auth, clock: Callable[[], float] = time.time) -> None:
        self._auth = auth
        self._clock = clock
        named = (
            [auth.token_file]
            if auth.token_file
            else [auth.approle.role_id_file, auth.approle.secret_id_file]
            if auth.approle
            else [auth.kubernetes.jwt_file]  # type: ignore[union-attr]  # exactly one of the three
        )
        self._files = [SecretFile(file) for file in named if isinstance(file, Path)]
        self._token: Token | None = None
        self._refusal: _Refusal | None = None
        self._work: asyncio.Task[KmsError | None] | None = None

    @property
    def validity(self) -> Validity | None:
        """Of the token, once it was used; None where it does not end, or where that is not known."""
        token = self._token
        return Validity(token.ends_at, token.began_at) if token and token.ends_at < _FOREVER else None

    async def get_token(self, send: Send) -> str:
        """A token, after a login or a renewal where one is due. Raises KmsError."""
        token = self._token
        if token is None or self._is_replaced(token):
            await self._share(self._log_in, send)
        elif self._clock() >= token.renew_at:
            try:
                await self._share(self._renew, send)
            except KmsError as error:
                if self._clock() >= token.ends_at and self._auth.token_file is None:
                    raise  # the token of a file may have been renewed by another program: the server knows
                log.warning("the token of Transit is not renewed", error=error.detail, retry_in=_RETRY_PAUSE)
                self._token = replace(token, renew_at=self._clock() + _RETRY_PAUSE)
        if self._token is None:  # refused meanwhile
            raise KmsError(Reason.UNAUTHENTICATED, "the token was refused just now", Cause.TOKEN_EXPIRED)
        return self._token.value

    def replace_refused(self, value: str) -> bool:
        """Whether another token can be had for the one that the server refused."""
        token = self._token
        if token is None or token.value != value:
            return True
        if self._auth.token_file or 0 <= self._clock() - token.began_at < _RETRY_PAUSE:
            return False
        self._token = None
        return True

    def _is_replaced(self, token: Token) -> bool:
        """Whether the file has another token; a file that cannot be read has none."""
        try:
            return self._auth.token_file is not None and self._files[0].read_value() != token.value
        except SecretUnreadableError:
            return False

    async def _share(self, work: Callable[[Send], Awaitable[None]], send: Send) -> None:
        """Does the work once for all who wait for it. Raises KmsError."""
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(_run(work, send))
        error = await asyncio.shield(self._work)
        if error:
            raise error

    async def _log_in(self, send: Send) -> None:
        try:
            inputs = tuple(file.read_value() for file in self._files)
        except SecretUnreadableError as error:
            raise KmsError(Reason.UNAUTHENTICATED, str(error), Cause.CREDENTIALS_INVALID) from None
        if self._auth.token_file:
            if not (inputs[0].isascii() and inputs[0].isprintable()):
                detail = f"{self._auth.token_file}: expected a token of printable ASCII"
                raise KmsError(Reason.UNAUTHENTICATED, detail, Cause.CREDENTIALS_INVALID)
            self._token = await self._look_up(inputs[0], send)
            return
        refusal = self._refusal if self._refusal and self._refusal.inputs == inputs else None
        if refusal and self._clock() < refusal.until:
            raise refusal.error
        answer = await send("POST", *self._build_login(inputs), None)
        if answer.status in _REFUSED:
            count = refusal.count + 1 if refusal else 1
            pause = FIRST_PAUSE if count == 1 else LONGER_PAUSE
            detail = f"login: {parse_error(answer).detail}; repeated when its files change, or after {pause:.0f} s"
            refused = KmsError(Reason.UNAUTHENTICATED, detail, Cause.LOGIN_REFUSED)
            self._refusal = _Refusal(inputs, count, self._clock() + pause, refused)
            raise refused
        found = answer.parse(_Login).auth
        self._refusal = None
        self._token = self._build_token(found.client_token, found.lease_duration, found.lease_duration, found.renewable)

    def _build_login(self, inputs: tuple[str, ...]) -> tuple[str, Mapping[str, str]]:
        if role := self._auth.approle:
            return f"auth/{role.mount}/login", {"role_id": inputs[0], "secret_id": inputs[1]}
        pod = self._auth.kubernetes
        assert pod, "exactly one of the three"  # noqa: S101
        return f"auth/{pod.mount}/login", {"role": pod.role, "jwt": inputs[0]}

    async def _look_up(self, value: str, send: Send) -> Token:
        """The token of a file; its end stays unknown where its policies hide it, or where it is none."""
        answer = await send("GET", "auth/token/lookup-self", None, value)
        if answer.status != 200:
            error = parse_error(answer)
            if error.reason not in {Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED}:
                raise error
            return Token(value)
        found = answer.parse(Data[_Lookup]).data
        return self._build_token(value, found.ttl, found.creation_ttl, found.renewable)

    def _build_token(self, value: str, ttl: int, life: int, is_renewable: bool) -> Token:
        """It is renewed after half of its life; without an end never."""
        now = self._clock()
        if ttl == 0:
            return Token(value, now)
        life = max(ttl, life)
        return Token(value, now + ttl - life, now + ttl, now + ttl - life / 2, is_renewable and self._auth.renew)

    async def _renew(self, send: Send) -> None:
        """Renews the token. Where its end stays as it is, by its greatest age or its policies, a login replaces it.

        A token of a file is looked up then: another program may have renewed it.
        """
        token = self._token
        if token is None:
            return
        if token.is_renewable:  # also after its end, which is by this clock: the server knows
            answer = await send("POST", "auth/token/renew-self", {}, token.value)
            if answer.status not in _REFUSED:
                found = answer.parse(_Login).auth
                self._token = self._build_token(
                    token.value, found.lease_duration, found.lease_duration, found.renewable
                )
                if self._token.ends_at > token.ends_at + 1:
                    return
        if self._auth.token_file is None:
            await self._log_in(send)
            return
        looked_up = await self._look_up(token.value, send)
        if not token.ends_at + 1 < looked_up.ends_at < _FOREVER:
            pause = max((token.ends_at - self._clock()) / 2, _RETRY_PAUSE)
            looked_up = replace(token, renew_at=self._clock() + pause)
        self._token = looked_up


async def _run(work: Callable[[Send], Awaitable[None]], send: Send) -> KmsError | None:
    try:
        async with asyncio.timeout(_WORK_SECONDS):
            await work(send)
    except TimeoutError:
        return KmsError(Reason.TIMEOUT, f"no token within {_WORK_SECONDS:g} s")
    except KmsError as error:
        return error
    return None


_logins: Final[dict[tuple[str, str | None, Auth], Login]] = {}


def get_login(address: str, namespace: str | None, auth: Auth) -> Login:
    """The login of this process to that server with these settings."""
    return _logins.setdefault((address, namespace, auth), Login(auth))
