"""The common form of the servers' JSON APIs and forms: refusals, queries, bodies, times, and pages of long lists.

A list has the newest entries first, and is read with `limit`, `cursor` and `next_cursor`.
"""

import asyncio
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse

from shared.http.limits import BODY_SECONDS, BodyTooLargeError, read_body

MAX_FORM_BYTES: Final = 64 * 1024
_MAX_FIELDS: Final = 100
_PATH: Final = re.compile(r"(?<![\w/:.])/[\w.+@%-][^\s,;:'\"`)]*")
"""An absolute path; a URL's has its host before it."""


class RefusedError(Exception):
    """A request is not fulfilled; the message is one sentence without its full stop, and says what was expected.

    Args:
        text: the sentence.
        status: of the response; None takes that of the class.
        hint: another sentence, with what to do.
        headers: of the response.
    """

    status = 400

    def __init__(
        self, text: str, status: int | None = None, *, hint: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(text)
        self.status = status or self.status
        self.hint = hint
        self.headers = headers


def hide_paths(text: str) -> str:
    """The text for callers without credentials: without the paths of files and sockets, which are in the log."""
    return _PATH.sub("…", text)


async def read_request(request: Request, max_bytes: int, too_large: str) -> bytes:
    """The body of a request. Raises RefusedError past `max_bytes`, with the sentence `too_large`, or if it is slow."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await read_body(request.stream(), max_bytes)
    except BodyTooLargeError:
        raise RefusedError(too_large, 413, headers={"Connection": "close"}) from None  # else the rest would be read
    except TimeoutError:
        raise RefusedError(f"the request did not arrive within {BODY_SECONDS:g} s; send it again", 408) from None


async def read_form(request: Request, max_bytes: int = MAX_FORM_BYTES) -> Mapping[str, str]:
    """Return the fields of an urlencoded form; of a field that comes twice, the last. Raises RefusedError."""
    body = await read_request(request, max_bytes, f"the form is too large; expected at most {max_bytes} bytes")
    try:
        return _parse(body) if len(body) <= MAX_FORM_BYTES else await asyncio.to_thread(_parse, body)
    except ValueError:  # it is not UTF-8, or has too many fields
        raise RefusedError("the form cannot be read; reload the page, and try again", 400) from None


def _parse(body: bytes) -> Mapping[str, str]:
    return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS))


T = TypeVar("T")


class Query(BaseModel):
    """The parameters of an address; see `parse_query`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Q = TypeVar("Q", bound=Query)


def parse_query(model: type[Q], parameters: Mapping[str, str], context: object = None) -> Q:
    """The parameters of an address. Raises RefusedError for the first that is unknown or wrong."""
    try:
        return model.model_validate(dict(parameters), context=context)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
    if any(each["type"] == "extra_forbidden" for each in errors):
        raise RefusedError(f"unknown parameter; expected {', '.join(model.model_fields)}")
    raise RefusedError(f"{errors[0]['loc'][0]}: {errors[0]['msg'].removeprefix('Value error, ')}")


def build_error_response(status: int, error: str, hint: str = "") -> JSONResponse:
    """An error: a sentence, and another one with what to do, where there is one."""
    return JSONResponse({"error": error, "hint": hint} if hint else {"error": error}, status_code=status)


def check_names(parameters: Mapping[str, str], names: Collection[str]) -> None:
    """Raises ValueError with the names that are expected, where a query has a parameter of another name."""
    if parameters.keys() - set(names):
        raise ValueError(f"unknown parameter; expected {', '.join(names)}")


def parse_parameter(name: str, parse: Callable[[str], T], parameters: Mapping[str, str]) -> T | None:
    """A parameter of a query; None where it is absent. Raises ValueError with its name and what was expected."""
    if name not in parameters:
        return None
    try:
        return parse(parameters[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def format_json_time(at: float | None) -> str | None:
    """Unix seconds → RFC 3339 in UTC with milliseconds; None stays None."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_DEFAULT_LIMIT: Final = 100
_MAX_LIMIT: Final = 1000


def _parse_limit(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= _MAX_LIMIT:
        raise ValueError(f"expected a number from 1 to {_MAX_LIMIT}")
    return int(text)


def parse_cursor(text: str) -> int:
    """The reverse of `format_cursor`. Raises ValueError with what was expected."""
    if not re.fullmatch("[0-9a-f]{1,15}", text):
        raise ValueError("expected the next_cursor of an earlier answer")
    return int(text, 16)


def format_cursor(before: int | None) -> str | None:
    """The `next_cursor` of a response; None after the last page."""
    return None if before is None else f"{before:x}"


class PageQuery(Query):
    """Which entries of a list are requested."""

    limit: Annotated[int, BeforeValidator(_parse_limit)] = _DEFAULT_LIMIT
    cursor: Annotated[int | None, BeforeValidator(parse_cursor)] = None
    """The number of the first entry that is too new; None for the first page."""
