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
    PAGE,
    AdministrationError,
    Census,
    KeyInfo,
    Lease,
    Progress,
    RefusedError,
    RotateRequest,
    RotationType,
    StoredKey,
    UnreachableError,
    Verification,
)

ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Of an answer, at most: a page of a backup has about one megabyte."""
_VALUES: Final = 200_000
"""Of an answer, at most: a page has about ten thousand, and each takes hundreds of bytes while an answer is parsed."""
_SENTENCE: Final = 500
"""Characters of the other side's words that are repeated, at most."""
_CLIENT_ERRORS: Final = {400, 403, 404, 405, 409, 413, 422}

T = TypeVar("T")


class Question(NamedTuple):
    """A request of the admin API."""

    method: Literal["GET", "POST"]
    path: str
    """Below `/admin/crypto/`, with its query."""
    body: Mapping[str, object] | None


class Answer(NamedTuple):
    """What came back."""

    status: int
    """Of HTTP."""
    body: bytes
    """JSON, where it is an answer of the admin API."""


class _Restored(BaseModel):
    changed: int


_KEYS: Final = TypeAdapter(tuple[KeyInfo, ...])
_STORED: Final = TypeAdapter(tuple[StoredKey, ...])
_CENSUS: Final = TypeAdapter(Census)
_LEASE: Final = TypeAdapter(Lease)
_PROGRESS: Final = TypeAdapter(Progress)
_MAYBE: Final = TypeAdapter(Progress | None)
_RESTORED: Final = TypeAdapter(_Restored)
_VERIFICATION: Final = TypeAdapter(Verification)
_NOTHING: Final = TypeAdapter(None)

Carry = Callable[[Question], Awaitable[Answer]]
"""Takes a question there and brings the answer back. Raises RefusedError or UnreachableError."""


class RemoteAdministration:
    """Asks the admin API behind `carry`; `where` begins each error's sentence."""

    def __init__(self, where: str, carry: Carry) -> None:
        self._where = where
        self._carry = carry

    async def keys(self, after: str = "", limit: int = PAGE) -> Sequence[KeyInfo]:
        """See the port, as for every method here."""
        return await self._ask(_KEYS, "GET", f"keys?{urlencode({'after': after, 'limit': limit})}")

    async def census(self) -> Census:  # noqa: D102
        return await self._ask(_CENSUS, "GET", "census")

    async def lease(self, holder: str, seconds: float, token: str = "") -> Lease:  # noqa: D102
        return await self._ask(_LEASE, "POST", "lease", holder=holder, seconds=seconds, token=token)

    async def release(self, token: str) -> None:  # noqa: D102
        await self._ask(_NOTHING, "POST", "release", token=token)

    async def backup(self, after: str = "", limit: int = PAGE) -> Sequence[StoredKey]:  # noqa: D102
        return await self._ask(_STORED, "POST", "backup", after=after, limit=limit)

    async def rotate(self, request: RotateRequest) -> Progress:  # noqa: D102
        return await self._ask(_PROGRESS, "POST", "rotate", **request.model_dump(mode="json"))

    async def dry_run(self, type_: RotationType, target_version: int | None) -> Progress:  # noqa: D102
        return await self._ask(_PROGRESS, "POST", "rotate", dry_run=True, type=type_, target_version=target_version)

    async def progress(self, rotation_id: str | None = None) -> Progress | None:  # noqa: D102
        return await self._ask(_MAYBE, "GET", f"rotations/{quote(rotation_id or 'latest', safe='')}")

    async def note(self, rotation_id: str, token: str, step: str) -> None:  # noqa: D102
        await self._ask(_NOTHING, "POST", "note", rotation_id=rotation_id, token=token, step=step)

    async def rollback(self, rotation_id: str, token: str) -> Progress:  # noqa: D102
        return await self._ask(_PROGRESS, "POST", "rollback", rotation_id=rotation_id, token=token)

    async def restore(self, rows: Sequence[StoredKey], token: str) -> int:  # noqa: D102
        sent = [row.model_dump(mode="json") for row in rows]
        return (await self._ask(_RESTORED, "POST", "restore", rows=sent, token=token)).changed

    async def verify(self, mode: Literal["sample", "full"], after: str | None = None) -> Verification:  # noqa: D102
        page = {} if after is None else {"after": after}
        return await self._ask(_VERIFICATION, "POST", "verify", mode=mode, **page)

    async def retire(self, kek_version: int, token: str) -> None:  # noqa: D102
        await self._ask(_NOTHING, "POST", "retire", kek_version=kek_version, token=token)

    async def reload(self) -> None:  # noqa: D102
        await self._ask(_NOTHING, "POST", "reload")

    async def _ask(self, shape: TypeAdapter[T], method: Literal["GET", "POST"], path: str, **body: object) -> T:
        answer = await self._carry(Question(method, path, body if method == "POST" else None))
        if too_many := too_many_values(answer.body):
            raise UnreachableError(f"{self._where}: the answer to {path.partition('?')[0]} {too_many}")
        if not 200 <= answer.status < 300:
            if answer.status == 404 and shape is _MAYBE and _error(answer.body):  # else there is no admin API
                return shape.validate_python(None)
            raise self._failure(answer)
        try:
            return shape.validate_json(answer.body or b"null")  # 204
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            why = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise UnreachableError(
                f"{self._where}: the answer to {path.partition('?')[0]} is not one of an admin API "
                f"({why[:_SENTENCE]}); check that the service's version goes with this one"
            ) from None

    def _failure(self, answer: Answer) -> AdministrationError:
        said = _error(answer.body)
        if answer.status == 401:
            return RefusedError(
                f"{self._where}: the token is refused; expected in token_file the one of the service's admin.token_file"
                + (f" ({said})" if said else "")
            )
        if answer.status in _CLIENT_ERRORS and said:
            return RefusedError(f"{self._where}: {said}")
        if answer.status == 424 and said:
            return AdministrationError(f"{self._where}: {said}")
        if answer.status == 404:
            return RefusedError(f"{self._where}: no admin API is there (HTTP 404); correct the address of the driver")
        if 300 <= answer.status < 400:
            return RefusedError(
                f"{self._where}: answered with a redirect (HTTP {answer.status}), which would take the token "
                "elsewhere; set the final address"
            )
        return UnreachableError(f"{self._where}: {said or f'answered HTTP {answer.status}'}; try again")


def too_many_values(body: bytes) -> str | None:
    """Why JSON is not even parsed; what follows the name of an answer."""
    if sum(map(body.count, (b",", b"[", b"{"))) <= _VALUES:
        return None
    return f"holds over {_VALUES} values; is it an admin API?"


def _error(body: bytes) -> str:
    """The sentence of a refusal, on one line; empty where there is none."""
    try:
        document: Any = json.loads(body)
        said = document["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return " ".join(said.split())[:_SENTENCE] if isinstance(said, str) else ""
