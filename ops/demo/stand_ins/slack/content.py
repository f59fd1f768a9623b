"""What a call may contain: arguments, text, blocks, attachments, metadata. Raises SlackRefusedError as Slack refuses.

A refusal is HTTP 200 with `ok: false` and the error's name: https://docs.slack.dev/reference/methods
"""

import json
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request

from ops.demo.stand_ins.slack.block_limits import MAX_BLOCKS_TEXT, FindFile, count_text, find_block_errors
from shared.http.limits import BodyTooLargeError, read_body

T = TypeVar("T")
Json = dict[str, Any]
MAX_BYTES = 1024 * 1024
MAX_ATTACHMENTS = 100
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


class Content(NamedTuple):
    text: str
    blocks: list[Json]
    attachments: list[Json] | None
    """None where the call has none: an edit leaves those of the message."""


def parse_content(arguments: Json, find_file: FindFile) -> Content:
    text = arguments.get("text") or ""
    blocks = parse_json(arguments.get("blocks") or [], "invalid_blocks_format")
    attachments = parse_json(arguments.get("attachments"), "invalid_attachments")
    if not isinstance(text, str):
        raise SlackRefusedError("invalid_arguments")
    if not isinstance(blocks, list):
        raise SlackRefusedError("invalid_blocks_format")
    if not isinstance(attachments, list | None) or not all(isinstance(each, dict) for each in attachments or ()):
        raise SlackRefusedError("invalid_attachments")
    if not text and not blocks and not attachments:
        raise SlackRefusedError("no_text")
    if len(attachments or ()) > MAX_ATTACHMENTS:
        raise SlackRefusedError("too_many_attachments")
    for each in (blocks, *(attachment.get("blocks") or [] for attachment in attachments or ())):
        _check_blocks(each, find_file)
    return Content(text, blocks, attachments)


def _check_blocks(blocks: Any, find_file: FindFile) -> None:
    if not isinstance(blocks, list):
        raise SlackRefusedError("invalid_blocks_format")
    if found := [f"{text} [json-pointer:{pointer}]" for text, pointer in find_block_errors(blocks, find_file)]:
        messages = [f"[ERROR] {error}" for error in found]
        raise SlackRefusedError("invalid_blocks", errors=found, response_metadata={"messages": messages})
    if count_text(blocks) > MAX_BLOCKS_TEXT:
        raise SlackRefusedError("msg_blocks_too_long")


def parse_metadata(value: Any) -> Json | None:
    """A message's metadata, checked; empty removes it from a message that is edited, and None leaves it."""
    value = parse_json(value, "invalid_metadata_format")
    if value in (None, {}):
        return value  # type: ignore[no-any-return]  # one of the two
    if not isinstance(value, dict) or not isinstance(value.get("event_type"), str):
        raise SlackRefusedError("invalid_metadata_format")
    if not isinstance(value.get("event_payload"), dict):
        raise SlackRefusedError("invalid_metadata_format")
    return value
