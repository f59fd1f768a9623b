"""The arguments of a call, Slack's refusals by their names, and pages of a list.

A refusal is HTTP 200 with `ok: false` and the error's name: https://docs.slack.dev/reference/methods
"""

import json
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request

from shared.http.limits import BodyTooLargeError, read_body

T = TypeVar("T")
Json = dict[str, Any]
MAX_BYTES = 1024 * 1024
MAX_PAGE_SIZE = 999  # "an integer under 1000": conversations.list; "Maximum of 999": conversations.history


class SlackRefusedError(Exception):
    """Slack's `ok: false`; `details` go into the answer beside the error's name."""

    def __init__(self, error: str, **details: Any) -> None:
        super().__init__(error)
        self.response: Json = {"ok": False, "error": error, **details}


async def read_arguments(request: Request) -> Json:
    """The arguments of a call, the token among them. Raises SlackRefusedError."""
    try:
        raw = await read_body(request.stream(), MAX_BYTES)
    except BodyTooLargeError:
        raise SlackRefusedError("request_too_large") from None
    arguments: Json = dict(request.query_params)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        try:
            given = json.loads(raw)
        except ValueError:
            raise SlackRefusedError("invalid_json") from None
        if not isinstance(given, dict):
            raise SlackRefusedError("json_not_object")
        arguments |= given
    else:
        arguments |= dict(parse_qsl(raw.decode(errors="replace")))
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return {**arguments, "token": token.strip()} if scheme.lower() == "bearer" else arguments


def parse_json(value: Any, error: str) -> Any:
    """A value that a form has as JSON in a string. Raises SlackRefusedError with the given name."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise SlackRefusedError(error) from None


def is_true(value: Any) -> bool:
    """Whether a boolean argument is set; a form writes it as 1 or true."""
    return str(value).lower() in ("1", "true")


def paginate(items: list[T], arguments: Json) -> tuple[list[T], str]:
    """Return at most `limit` items after `cursor`, and the next cursor; empty after the last."""
    try:
        limit = int(arguments.get("limit") or 100)
    except ValueError:
        raise SlackRefusedError("invalid_limit") from None
    if not 0 < limit <= MAX_PAGE_SIZE:
        raise SlackRefusedError("invalid_limit")
    try:
        start = int(arguments.get("cursor") or 0)
    except ValueError:
        raise SlackRefusedError("invalid_cursor") from None
    end = start + limit
    return items[start:end], str(end) if end < len(items) else ""
