"""What a call of Slack's Web API carries: a request comes in, checked arguments or a SlackError go out."""

import json
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from ops.demo.stand_ins import body
from ops.demo.stand_ins.slack_limits import MAX_BLOCKS_TEXT, find_block_errors, count_text

MAX_BYTES = 1024 * 1024

Json = dict[str, Any]


class SlackError(Exception):
    """Slack's `ok: false`; `details` go into the answer beside the error's name."""

    def __init__(self, error: str, **details: Any) -> None:
        super().__init__(error)
        self.response: Json = {"ok": False, "error": error, **details}


async def read_arguments(request: Request) -> Json:
    """The arguments of a call, the token among them. Raises SlackError."""
    try:
        raw = await body.read_body(request, MAX_BYTES)
    except body.BodyTooLargeError:
        raise SlackError("request_too_large") from None
    arguments: Json = dict(request.query_params)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        try:
            given = json.loads(raw)
        except ValueError:
            raise SlackError("invalid_json") from None
        if not isinstance(given, dict):
            raise SlackError("json_not_object")
        arguments |= given
    else:
        arguments |= dict(parse_qsl(raw.decode(errors="replace")))
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return {**arguments, "token": token.strip()} if scheme.lower() == "bearer" else arguments


def parse_content(arguments: Json) -> tuple[str, list[Json]]:
    """Text and blocks, checked. Raises SlackError."""
    text, blocks = arguments.get("text") or "", arguments.get("blocks") or []
    if isinstance(blocks, str):  # a form carries blocks as JSON in a string
        try:
            blocks = json.loads(blocks)
        except ValueError:
            raise SlackError("invalid_blocks_format") from None
    if not isinstance(text, str) or not isinstance(blocks, list):
        raise SlackError("invalid_blocks_format" if isinstance(text, str) else "invalid_arguments")
    if not text and not blocks:
        raise SlackError("no_text")
    if found := [f"{text} [json-pointer:{pointer}]" for text, pointer in find_block_errors(blocks)]:
        messages = [f"[ERROR] {complaint}" for complaint in found]
        raise SlackError("invalid_blocks", errors=found, response_metadata={"messages": messages})
    if count_text(blocks) > MAX_BLOCKS_TEXT:
        raise SlackError("msg_blocks_too_long")
    return text, blocks


def parse_metadata(value: Any) -> Json | None:
    """A message's metadata, checked. Raises SlackError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise SlackError("invalid_metadata_format") from None
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("event_type"), str):
        raise SlackError("invalid_metadata_format")
    if not isinstance(value.get("event_payload"), dict):
        raise SlackError("invalid_metadata_format")
    return value


def is_true(value: Any) -> bool:
    """Whether a boolean argument is set; a form writes it as 1 or true."""
    return str(value).lower() in ("1", "true")
