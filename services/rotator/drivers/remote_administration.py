"""A service's admin API as an Administration, whatever carries the questions there and the answers back.

Everything that the other side says is checked against the shapes of `keyring.administration`: what does not fit is an
error with a sentence, never an exception of a parser.
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

MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
"""Of an answer, at most: a page of a backup has about one megabyte."""
_MAX_VALUES: Final = 200_000
"""Of an answer, at most: a page has about ten thousand, and each takes hundreds of bytes while an answer is parsed."""
_MAX_ERROR_LENGTH: Final = 500
"""Characters of the other side's words that are repeated, at most."""
_CLIENT_ERROR_STATUSES: Final = {400, 403, 404, 405, 409, 413, 422}

T = TypeVar("T")


class AdminRequest(NamedTuple):
    """A request of the admin API."""

    method: Literal["GET", "POST"]
    path: str
    """Below `/admin/crypto/`, with its query."""
    body: Mapping[str, object] | None


class AdminResponse(NamedTuple):
    """What came back."""

    status: int
    """Of HTTP."""
    body: bytes
    """JSON, where it is an answer of the admin API."""


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
"""Takes a question there and brings the answer back. Raises RefusedError or UnreachableError."""


class RemoteAdministration:
    """Asks the admin API behind `send`; `location` begins each error's sentence."""

    def __init__(self, location: str, send: Send) -> None:
        self._location = location
        self._send = send

    async def list_keys(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[KeyInfo]:
        """See the port, as for every method here."""
        return await self._call(_KEYS, "GET", f"keys?{urlencode({'after': after, 'limit': limit})}")

    async def count_key_usage(self) -> KeyUsage:  # noqa: D102
        return await self._call(_CENSUS, "GET", "census")

    async def acquire_lease(self, holder: str, seconds: float, token: str = "") -> Lease:  # noqa: D102
        return await self._call(_LEASE, "POST", "lease", holder=holder, seconds=seconds, token=token)

    async def release_lease(self, token: str) -> None:  # noqa: D102
        await self._call(_NOTHING, "POST", "release", token=token)

    async def list_backup_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:  # noqa: D102
        return await self._call(_STORED, "POST", "backup", after=after, limit=limit)

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
        answer = await self._send(AdminRequest(method, path, body if method == "POST" else None))
        if too_many := too_many_values(answer.body):
            raise UnreachableError(f"{self._location}: the answer to {path.partition('?')[0]} {too_many}")
        if not 200 <= answer.status < 300:
            if (
                answer.status == 404 and shape is _OPTIONAL_PROGRESS and _parse_error(answer.body)
            ):  # else there is no admin API
                return shape.validate_python(None)
            raise self._build_error(answer)
        try:
            return shape.validate_json(answer.body or b"null")  # 204
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            why = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise UnreachableError(
                f"{self._location}: the answer to {path.partition('?')[0]} is not one of an admin API "
                f"({why[:_MAX_ERROR_LENGTH]}); check that the service's version goes with this one"
            ) from None

    def _build_error(self, answer: AdminResponse) -> AdministrationError:
        said = _parse_error(answer.body)
        if answer.status == 401:
            return RefusedError(
                f"{self._location}: the token is refused; expected in token_file the service's admin.token_file"
                + (f" ({said})" if said else "")
            )
        if answer.status in _CLIENT_ERROR_STATUSES and said:
            return RefusedError(f"{self._location}: {said}")
        if answer.status == 424 and said:
            return AdministrationError(f"{self._location}: {said}")
        if answer.status == 404:
            return RefusedError(
                f"{self._location}: no admin API is there (HTTP 404); correct the address of the driver"
            )
        if 300 <= answer.status < 400:
            return RefusedError(
                f"{self._location}: answered with a redirect (HTTP {answer.status}), which would take the token "
                "elsewhere; set the final address"
            )
        return UnreachableError(f"{self._location}: {said or f'answered HTTP {answer.status}'}; try again")


def too_many_values(body: bytes) -> str | None:
    """Why JSON is not even parsed; what follows the name of an answer."""
    if sum(map(body.count, (b",", b"[", b"{"))) <= _MAX_VALUES:
        return None
    return f"holds over {_MAX_VALUES} values; is it an admin API?"


def _parse_error(body: bytes) -> str:
    """The sentence of a refusal, on one line; empty where there is none."""
    try:
        document: Any = json.loads(body)
        said = document["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return " ".join(said.split())[:_MAX_ERROR_LENGTH] if isinstance(said, str) else ""
