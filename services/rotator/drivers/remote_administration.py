"""The client of a service's admin API: an `Administration` over requests that a driver sends.

Every response is validated against the models of `keyring.administration`: an invalid one raises an error with a
sentence, never a parser's exception.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, TypeAdapter, ValidationError

from shared.keyring.administration import (
    MAX_PAGE_SIZE,
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
)

_MAX_VALUES: Final = 200_000
"""In a response, at most: a page has about ten thousand, and parsing takes hundreds of bytes for each."""
NO_ADMIN_API: Final = "check that it is an admin API"
"""The hint where `explain_excess` finds something."""
_MAX_ERROR_LENGTH: Final = 500
"""Characters of the service's error that are repeated, at most."""
_CLIENT_ERROR_STATUSES: Final = {400, 403, 404, 405, 409, 413, 422}

T = TypeVar("T")


class AdminRequest(NamedTuple):
    """A request of the admin API."""

    method: Literal["GET", "POST"]
    path: str
    """Below `/admin/crypto/`, with its query."""
    body: Mapping[str, object] | None


class AdminResponse(NamedTuple):
    """The response to it."""

    status: int
    """The HTTP status."""
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
        """See the port, as for the other methods."""
        return await self._call(_KEYS, "GET", f"keys?{urlencode({'after': after, 'limit': limit})}")

    async def count_key_usage(self) -> KeyUsage:  # noqa: D102
        return await self._call(_CENSUS, "GET", "census")

    async def acquire_lease(self, holder: str, seconds: float, token: str = "") -> Lease:  # noqa: D102
        return await self._call(_LEASE, "POST", "lease", holder=holder, seconds=seconds, token=token)

    async def release_lease(self, token: str) -> None:  # noqa: D102
        await self._call(_NOTHING, "POST", "release", token=token)

    async def list_backup_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:  # noqa: D102
        return await self._call(_STORED, "POST", "backup", after=after, limit=limit)

    async def list_excluded_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:  # noqa: ARG002
        """A service's own keyring has none."""
        return ()

    async def rotate(self, request: RotateRequest) -> RotationProgress:  # noqa: D102
        return await self._call(_PROGRESS, "POST", "rotate", **request.model_dump(mode="json"))

    async def dry_run(self, type_: RotationType, target_version: str | None) -> RotationProgress:  # noqa: D102
        return await self._call(_PROGRESS, "POST", "rotate", dry_run=True, type=type_, target_version=target_version)

    async def get_progress(self, rotation_id: str | None = None) -> RotationProgress | None:  # noqa: D102
        return await self._call(_OPTIONAL_PROGRESS, "GET", f"rotations/{quote(rotation_id or 'latest', safe='')}")

    async def add_journal_entry(self, rotation_id: str, token: str, entry: JournalEntry) -> None:  # noqa: D102
        columns = entry.model_dump(mode="json", exclude={"created_at"})
        await self._call(_NOTHING, "POST", "journal", rotation_id=rotation_id, token=token, **columns)

    async def rollback(self, rotation_id: str, token: str) -> RotationProgress:  # noqa: D102
        return await self._call(_PROGRESS, "POST", "rollback", rotation_id=rotation_id, token=token)

    async def restore(self, rows: Sequence[StoredKey], token: str) -> int:  # noqa: D102
        sent = [row.model_dump(mode="json") for row in rows]
        return (await self._call(_RESTORED, "POST", "restore", rows=sent, token=token)).changed

    async def verify(self, mode: Literal["sample", "full"], after: str | None = None) -> VerificationResult:  # noqa: D102
        page = {} if after is None else {"after": after}
        return await self._call(_VERIFICATION, "POST", "verify", mode=mode, **page)

    async def retire_version(self, kek_version: str, token: str) -> None:  # noqa: D102
        await self._call(_NOTHING, "POST", "retire", kek_version=kek_version, token=token)

    async def reload_instances(self) -> None:  # noqa: D102
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


def explain_excess(body: bytes) -> str | None:
    """Why JSON is too large to parse; None if it is not. Follows the name of a response in an error."""
    if sum(map(body.count, (b",", b"[", b"{"))) <= _MAX_VALUES:
        return None
    return f"holds over {_MAX_VALUES} values"


def _parse_sentence(body: bytes, field: str) -> str:
    """A field of an error response, on one line; empty if there is none."""
    try:
        document: Any = json.loads(body)
        message = document[field]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return " ".join(message.split())[:_MAX_ERROR_LENGTH] if isinstance(message, str) else ""
