"""Pages of long lists in the servers' JSON APIs, the newest entries first: `limit`, `cursor` and `next_cursor`."""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

_DEFAULT_LIMIT: Final = 100
_MAX_LIMIT: Final = 1000


class Page(NamedTuple):
    """Which entries of a list are requested."""

    limit: int
    before: int | None
    """The number of the first entry that is too new; None for the first page."""


def parse_page(parameters: Mapping[str, str]) -> Page:
    """The page that `limit` and `cursor` of a query name. Raises ValueError with what was expected."""
    limit, cursor = parameters.get("limit", str(_DEFAULT_LIMIT)), parameters.get("cursor")
    if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= _MAX_LIMIT:
        raise ValueError(f"limit: expected a number from 1 to {_MAX_LIMIT}")
    try:
        return Page(int(limit), None if cursor is None else parse_cursor(cursor))
    except ValueError as error:
        raise ValueError(f"cursor: {error}") from None


def parse_cursor(text: str) -> int:
    """The reverse of `format_cursor`. Raises ValueError with what was expected."""
    if not re.fullmatch("[0-9a-f]{1,15}", text):
        raise ValueError("expected the next_cursor of an earlier answer")
    return int(text, 16)


def format_cursor(before: int | None) -> str | None:
    """The `next_cursor` of a response; None after the last page."""
    return None if before is None else f"{before:x}"
