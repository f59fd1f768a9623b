"""The common form of the servers' JSON APIs: errors, pages and times."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeVar

from starlette.responses import JSONResponse

T = TypeVar("T")
_DEFAULT_LIMIT: Final = 100
_MAX_LIMIT: Final = 1000


class Page(NamedTuple):
    """Which entries of a list are requested."""

    limit: int
    before: int | None
    """The number of the first entry that is too new; None for the first page."""


def build_error_response(status: int, message: str) -> JSONResponse:
    """An error; the message is one sentence."""
    return JSONResponse({"error": message}, status_code=status)


def parse_page(parameters: Mapping[str, str]) -> Page:
    """The page that `limit` and `cursor` of a query name. Raises ValueError with what was expected."""
    limit, cursor = parameters.get("limit", str(_DEFAULT_LIMIT)), parameters.get("cursor")
    if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= _MAX_LIMIT:
        raise ValueError(f"limit: expected a number from 1 to {_MAX_LIMIT}")
    if cursor is not None and not re.fullmatch("[0-9a-f]{1,15}", cursor):
        raise ValueError("cursor: expected the next_cursor of an earlier answer")
    return Page(int(limit), None if cursor is None else int(cursor, 16))


def parse_parameter(name: str, parse: Callable[[str], T], parameters: Mapping[str, str]) -> T | None:
    """A parameter of a query; None where it is absent. Raises ValueError with its name and what was expected."""
    if name not in parameters:
        return None
    try:
        return parse(parameters[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def format_cursor(before: int | None) -> str | None:
    """The `next_cursor` of a response; None after the last page."""
    return None if before is None else f"{before:x}"


def format_time(at: float | None) -> str | None:
    """Unix seconds → RFC 3339 in UTC with milliseconds; None stays None."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
