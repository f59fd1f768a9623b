"""The driver `admin_api`: a service's admin API, by HTTPS; and the client of that API, which `command` has, too.

`http://` is refused for anything but this machine, because it would send the token in plaintext: through
`kubectl port-forward` or `ssh -L` a service is on this machine. An invalid response raises an error with a sentence,
never a parser's exception.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError

from services.rotator.drivers import BaseDriverSettings
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.settings import Duration, SecretPath, check_base_url, check_secret_url
from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    MAX_RESPONSE_BYTES,
    Administration,
    AdministrationError,
    JournalEntry,
    KeyInfo,
    KeyUsage,
    Lease,
    RefusedError,
    RotateRequest,
    RotationProgress,
    RotationType,
    StoredKey,
    UnreachableError,
    VerificationResult,
    explain_excess,
)
from shared.kms.settings import ProviderSettings
from shared.net.egress import Egress, EgressError, EgressSettings, describe_os_error
from shared.net.http_connector import Connector, open_session, read_bounded

NO_ADMIN_API: Final = "check that it is an admin API"
_MAX_ERROR_LENGTH: Final = 500
"""Characters of the service's error that are repeated, at most."""
_CLIENT_ERROR_STATUSES: Final = {400, 403, 404, 405, 409, 413, 422}

T = TypeVar("T")


class AdminRequest(NamedTuple):
    method: Literal["GET", "POST"]
    path: str
    """Below `/admin/crypto/`, with its query."""
    body: Mapping[str, object] | None


class AdminResponse(NamedTuple):
    status: int
    body: bytes
    """JSON, if the admin API sent it."""


class _RestoreResponse(BaseModel):
    changed: int


_KEYS: Final = TypeAdapter(tuple[KeyInfo, ...])
_STORED: Final = TypeAdapter(tuple[StoredKey, ...])
_CENSUS: Final = TypeAdapter(KeyUsage)
_LEASE: Final = TypeAdapter(Lease)
_PROGRESS: Final = TypeAdapter(RotationProgress)
_OPTIONAL_PROGRESS: Final = TypeAdapter(RotationProgress | None)
_RESTORED: Final = TypeAdapter(_RestoreResponse)
_VERIFICATION: Final = TypeAdapter(VerificationResult)
_NOTHING: Final = TypeAdapter(None)

Send = Callable[[AdminRequest], Awaitable[AdminResponse]]
"""Sends a request and returns the response. Raises RefusedError or UnreachableError."""


class RemoteAdministration:
    """Calls the admin API through `send`; each error starts with `location`."""

    def __init__(self, location: str, send: Send) -> None:
        self._location = location
        self._send = send

    async def list_keys(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[KeyInfo]:
        return await self._call(_KEYS, "GET", f"keys?{urlencode({'after': after, 'limit': limit})}")

    async def count_key_usage(self) -> KeyUsage:
        return await self._call(_CENSUS, "GET", "census")

    async def acquire_lease(self, holder: str, seconds: float, token: str = "") -> Lease:
        return await self._call(_LEASE, "POST", "lease", holder=holder, seconds=seconds, token=token)

    async def release_lease(self, token: str) -> None:
        await self._call(_NOTHING, "POST", "release", token=token)

    async def list_backup_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:
        return await self._call(_STORED, "POST", "backup", after=after, limit=limit)

    async def list_excluded_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:  # noqa: ARG002
        return ()

    async def rotate(self, request: RotateRequest) -> RotationProgress:
        return await self._call(_PROGRESS, "POST", "rotate", **request.model_dump(mode="json"))

    async def dry_run(self, type_: RotationType, target_version: str | None) -> RotationProgress:
        return await self._call(_PROGRESS, "POST", "rotate", dry_run=True, type=type_, target_version=target_version)

    async def get_progress(self, rotation_id: str | None = None) -> RotationProgress | None:
        return await self._call(_OPTIONAL_PROGRESS, "GET", f"rotations/{quote(rotation_id or 'latest', safe='')}")

    async def add_journal_entry(self, rotation_id: str, token: str, entry: JournalEntry) -> None:
        columns = entry.model_dump(mode="json", exclude={"created_at"})
        await self._call(_NOTHING, "POST", "journal", rotation_id=rotation_id, token=token, **columns)

    async def rollback(self, rotation_id: str, token: str) -> RotationProgress:
        return await self._call(_PROGRESS, "POST", "rollback", rotation_id=rotation_id, token=token)

    async def restore(self, rows: Sequence[StoredKey], token: str) -> int:
        sent = [row.model_dump(mode="json") for row in rows]
        return (await self._call(_RESTORED, "POST", "restore", rows=sent, token=token)).changed

    async def verify(self, mode: Literal["sample", "full"], after: str | None = None) -> VerificationResult:
        page = {} if after is None else {"after": after}
        return await self._call(_VERIFICATION, "POST", "verify", mode=mode, **page)

    async def retire_version(self, kek_version: str, token: str) -> None:
        await self._call(_NOTHING, "POST", "retire", kek_version=kek_version, token=token)

    async def reload_instances(self) -> None:
        await self._call(_NOTHING, "POST", "reload")

    async def _call(self, shape: TypeAdapter[T], method: Literal["GET", "POST"], path: str, **body: object) -> T:
        response = await self._send(AdminRequest(method, path, body if method == "POST" else None))
        if excess := explain_excess(response.body):
            raise UnreachableError(f"{self._location}: the answer to {path.partition('?')[0]} {excess}", NO_ADMIN_API)
        if not 200 <= response.status < 300:
            is_from_admin_api = bool(_parse_sentence(response.body, "error"))
            if response.status == 404 and shape is _OPTIONAL_PROGRESS and is_from_admin_api:
                return shape.validate_python(None)
            raise self._build_error(response)
        try:
            return shape.validate_json(response.body or b"null")  # 204
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            cause = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise UnreachableError(
                f"{self._location}: the answer to {path.partition('?')[0]} is not one of an admin API "
                f"({cause[:_MAX_ERROR_LENGTH]})",
                "check that the service's version goes with this one",
            ) from None

    def _build_error(self, response: AdminResponse) -> AdministrationError:
        message, hint = _parse_sentence(response.body, "error"), _parse_sentence(response.body, "hint")
        if response.status == 401:
            return RefusedError(
                f"{self._location}: the token is refused" + (f" ({message})" if message else ""),
                "expected in token_file the service's admin.token_file",
            )
        if response.status in _CLIENT_ERROR_STATUSES and message:
            return RefusedError(f"{self._location}: {message}", hint)
        if response.status == 424 and message:
            return AdministrationError(f"{self._location}: {message}", hint)
        if response.status == 404:
            return RefusedError(
                f"{self._location}: no admin API is there (HTTP 404)", "correct the address of the driver"
            )
        if 300 <= response.status < 400:
            return RefusedError(
                f"{self._location}: answered with a redirect (HTTP {response.status}), which would take the token "
                "elsewhere",
                "set the final address",
            )
        return UnreachableError(
            f"{self._location}: {message or f'answered HTTP {response.status}'}", hint or "try again"
        )


def _parse_sentence(body: bytes, field: str) -> str:
    """A field of an error response, on one line; empty if there is none."""
    try:
        document: Any = json.loads(body)
        message = document[field]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return " ".join(message.split())[:_MAX_ERROR_LENGTH] if isinstance(message, str) else ""


_CONNECT_TIMEOUT: Final = 10.0


def _check_url(url: str) -> str:
    return check_secret_url(check_base_url(url))


class AdminApiDriverSettings(EgressSettings, BaseDriverSettings):
    """Over HTTPS."""

    kind: Literal["admin_api"]
    url: Annotated[str, AfterValidator(_check_url)]
    """Of the service; `/admin/crypto/…` follows it."""
    token_file: SecretPath
    """The first line is sent."""
    timeout: Duration = 300.0
    """Of one call. A full verification takes longest."""

    @property
    def location(self) -> str:
        return self.url

    @asynccontextmanager
    async def open(
        self, kms: ProviderSettings, previous_kms: Sequence[ProviderSettings], caller: str
    ) -> AsyncIterator[Administration]:
        del kms, previous_kms  # the service calls it itself
        async with open_session(
            # Not kept open: one left idle may be closed just as it is used again.
            Connector(Egress(self), force_close=True),
            timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=_CONNECT_TIMEOUT),
            headers={"User-Agent": "keypulse-rotator", "X-Keypulse-Caller": caller},
        ) as session:
            yield RemoteAdministration(self.url, _HttpTransport(self, session).send)


class _HttpTransport:
    def __init__(self, settings: AdminApiDriverSettings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session
        self._token = SecretFile(settings.token_file)

    async def send(self, request: AdminRequest) -> AdminResponse:
        token = self._read_token()
        url = self._settings.url
        try:
            async with self._session.request(
                request.method,
                f"{url}/admin/crypto/{request.path}",
                json=request.body,
                headers={"Authorization": f"Bearer {token}"},
                allow_redirects=False,
            ) as response:
                excess = UnreachableError(f"{url}: the answer is over {MAX_RESPONSE_BYTES // 1024**2} MiB")
                body = await read_bounded(response, MAX_RESPONSE_BYTES, excess)
        except TimeoutError:
            raise UnreachableError(
                f"{url}: no answer within {self._settings.timeout:g} s", "it may have been done: check with `status`"
            ) from None
        except EgressError as error:
            raise (RefusedError if error.is_permanent else UnreachableError)(f"{url}: {error.strerror}") from None
        except aiohttp.ClientSSLError as error:
            raise RefusedError(
                f"{url}: no secure connection ({type(error).__name__})",
                "where its certificate is by a CA of your own, name that CA's file in ca_file",
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            # Only the operating system's text: that of a client error may contain the request.
            cause = describe_os_error(error)
            raise UnreachableError(f"{url}: no answer: {cause}", "is the service running there?") from None
        # The response may repeat the request, with the token.
        return AdminResponse(response.status, body.replace(token.encode(), b"[secret]"))

    def _read_token(self) -> str:
        try:
            token = self._token.read_value()
        except SecretUnreadableError as error:
            raise RefusedError(f"token_file {error}", "expected the service's admin token") from None
        if not (token.isascii() and token.isprintable()):
            raise RefusedError(f"token_file {self._token.path}: its first line holds what no HTTP header can carry")
        return token
