"""What a message may contain: text, blocks, attachments, metadata. Raises SlackRefusedError as Slack does."""

from typing import Any, NamedTuple

from ops.demo.stand_ins.slack.arguments import Json, SlackRefusedError, parse_json
from ops.demo.stand_ins.slack.blocks import MAX_BLOCKS_TEXT, FindFile, count_text, find_block_errors

MAX_ATTACHMENTS = 100


class Content(NamedTuple):
    """The content of a message."""

    text: str
    blocks: list[Json]
    attachments: list[Json] | None
    """None where the call has none: an edit leaves those of the message."""


def parse_content(arguments: Json, find_file: FindFile) -> Content:
    """Text, blocks and attachments, checked."""
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
