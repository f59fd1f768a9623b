"""Validates `blocks`, with errors as (text, JSON pointer), as Slack does.

Limits: https://docs.slack.dev/reference/block-kit/blocks. `slack_sdk.models.blocks` checks the same, but clients that
send plain dictionaries bypass it. Block types that keypulse does not use are refused as unknown.
"""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

MAX_BLOCKS = 50
MAX_BLOCKS_TEXT = (
    13_200  # characters in all blocks together; measured in https://github.com/slackapi/bolt-js/issues/2509
)

MAX_RICH_TEXT_ELEMENTS = 1_000
"""Slack documents none; more than any message of keypulse has."""

BlockError = tuple[str, str]
Json = dict[str, Any]
FindFile = Callable[[str], object | None]
"""Finds a file that blocks may show, by its ID."""


def find_block_errors(blocks: list[Any], find_file: FindFile = lambda _id: None) -> Iterator[BlockError]:
    """Yield the errors in the blocks of one message; none if Slack would accept them."""
    block_ids = set[str]()
    if len(blocks) > MAX_BLOCKS:
        yield f"no more than {MAX_BLOCKS} items allowed", "/blocks"
    for i, block in enumerate(blocks):
        at = f"/blocks/{i}"
        if not isinstance(block, dict):
            yield "must be an object", at
            continue
        check = _BLOCK_CHECKS.get(str(block.get("type")))
        if check is None:
            yield f"unsupported type: {block.get('type')}", at
            continue
        if len(str(block.get("block_id", ""))) > 255:
            yield "must be less than 256 characters", f"{at}/block_id"
        yield from _find_repeated_ids(block, at, block_ids)
        yield from check(block, at)
        if "slack_file" in block:
            yield from _check_slack_file(block, at, find_file)


def _find_repeated_ids(block: Json, pointer: str, block_ids: set[str]) -> Iterator[BlockError]:
    """A `block_id` is unique in its message, an `action_id` in its block."""
    if block_id := block.get("block_id"):
        if block_id in block_ids:
            yield f"block_id {block_id} already exists", f"{pointer}/block_id"
        block_ids.add(str(block_id))
    elements = block.get("elements")
    elements = [each for each in elements if isinstance(each, dict)] if isinstance(elements, list) else []
    action_ids = [each["action_id"] for each in elements if each.get("action_id")]
    if len(action_ids) != len(set(map(str, action_ids))):
        yield "action_id already exists for block_id", f"{pointer}/elements"


def count_text(value: Any) -> int:
    """The characters of every `text` string inside blocks."""
    if isinstance(value, dict):
        own = len(value["text"]) if isinstance(value.get("text"), str) else 0
        return own + sum(count_text(child) for child in value.values())
    if isinstance(value, list):
        return sum(count_text(child) for child in value)
    return 0


def _check_header(block: Json, pointer: str) -> Iterator[BlockError]:
    yield from _check_text(block.get("text"), f"{pointer}/text", 150, kinds=("plain_text",))


def _check_section(block: Json, pointer: str) -> Iterator[BlockError]:
    if "text" not in block and "fields" not in block:
        yield "missing required field: text", pointer
    if "text" in block:
        yield from _check_text(block["text"], f"{pointer}/text", 3000)
    if "fields" in block:
        yield from _check_items(
            block["fields"], f"{pointer}/fields", 10, lambda field, where: _check_text(field, where, 2000)
        )
    if "accessory" in block:
        yield from _check_element(block["accessory"], f"{pointer}/accessory")


def _check_context(block: Json, pointer: str) -> Iterator[BlockError]:
    def one(element: Any, pointer: str) -> Iterator[BlockError]:
        image = isinstance(element, dict) and element.get("type") == "image"
        yield from _check_image(element, pointer) if image else _check_text(element, pointer, 2000)

    yield from _check_items(block.get("elements"), f"{pointer}/elements", 10, one)


def _check_actions(block: Json, pointer: str) -> Iterator[BlockError]:
    yield from _check_items(block.get("elements"), f"{pointer}/elements", 25, _check_element)


def _check_image(block: Json, pointer: str) -> Iterator[BlockError]:
    if "slack_file" not in block:
        yield from _check_url(block.get("image_url"), f"{pointer}/image_url")
    elif "image_url" in block:
        yield "only one of image_url and slack_file allowed", pointer
    if not isinstance(block.get("alt_text"), str):
        yield "missing required field: alt_text", pointer
    elif len(block["alt_text"]) > 2000:
        yield "must be less than 2001 characters", f"{pointer}/alt_text"


def _check_slack_file(block: Json, pointer: str, find_file: FindFile) -> Iterator[BlockError]:
    """By its ID or its URL, and never both: https://docs.slack.dev/reference/block-kit/composition-objects/slack-file-object."""
    file = block["slack_file"]
    if not isinstance(file, dict) or ("id" in file) == ("url" in file):
        yield "expected id or url", f"{pointer}/slack_file"
    elif "id" in file and find_file(str(file["id"])) is None:
        yield "invalid slack file", f"{pointer}/slack_file"


def _check_rich_text(block: Json, pointer: str) -> Iterator[BlockError]:
    """Sections of texts and links: https://docs.slack.dev/reference/block-kit/blocks/rich-text-block."""
    yield from _check_items(block.get("elements"), f"{pointer}/elements", MAX_RICH_TEXT_ELEMENTS, _check_rich_section)


def _check_rich_section(section: Any, pointer: str) -> Iterator[BlockError]:
    if not isinstance(section, dict) or section.get("type") != "rich_text_section":
        yield "unsupported rich text element", pointer
        return
    yield from _check_items(section.get("elements"), f"{pointer}/elements", MAX_RICH_TEXT_ELEMENTS, _check_rich_element)


def _check_rich_element(element: Any, pointer: str) -> Iterator[BlockError]:
    if not isinstance(element, dict) or element.get("type") not in ("text", "link"):
        yield "unsupported rich text element", pointer
        return
    if not isinstance(element.get("text"), str) or not element["text"]:
        yield "must be more than 0 characters", f"{pointer}/text"
    if element["type"] == "link":
        yield from _check_url(element.get("url"), f"{pointer}/url")


def _check_divider(_block: Json, _at: str) -> Iterator[BlockError]:
    return iter(())


_BLOCK_CHECKS: dict[str, Callable[[Json, str], Iterator[BlockError]]] = {
    "header": _check_header,
    "section": _check_section,
    "context": _check_context,
    "actions": _check_actions,
    "image": _check_image,
    "divider": _check_divider,
    "rich_text": _check_rich_text,
}


def _check_items(
    items: Any, pointer: str, max_items: int, check: Callable[[Any, str], Iterator[BlockError]]
) -> Iterator[BlockError]:
    if not isinstance(items, list):
        yield f"missing required field: {pointer.rpartition('/')[2]}", pointer.rpartition("/")[0]
        return
    if not items:
        yield "no less than 1 items allowed", pointer
    if len(items) > max_items:
        yield f"no more than {max_items} items allowed", pointer
    for i, item in enumerate(items):
        yield from check(item, f"{pointer}/{i}")


def _check_text(
    text: Any, pointer: str, max_length: int, kinds: tuple[str, ...] = ("mrkdwn", "plain_text")
) -> Iterator[BlockError]:
    if not isinstance(text, dict):
        yield "missing required field: text", pointer.rpartition("/")[0]
        return
    if text.get("type") not in kinds:
        yield f"unsupported type: {text.get('type')}", pointer
    content = text.get("text")
    if not isinstance(content, str) or not content:
        yield "must be more than 0 characters", f"{pointer}/text"
    elif len(content) > max_length:
        yield f"must be less than {max_length + 1} characters", f"{pointer}/text"


def _check_element(element: Any, pointer: str) -> Iterator[BlockError]:
    if not isinstance(element, dict) or element.get("type") != "button":
        yield f"unsupported type: {element.get('type') if isinstance(element, dict) else element}", pointer
        return
    yield from _check_text(element.get("text"), f"{pointer}/text", 75, kinds=("plain_text",))
    if len(str(element.get("value", ""))) > 2000:
        yield "must be less than 2001 characters", f"{pointer}/value"
    if len(str(element.get("action_id", ""))) > 255:
        yield "must be less than 256 characters", f"{pointer}/action_id"
    if element.get("style", "primary") not in ("primary", "danger"):
        yield f"failed to match all allowed schemas: style {element['style']}", f"{pointer}/style"
    if "url" in element:
        yield from _check_url(element["url"], f"{pointer}/url")
    if "confirm" in element:
        yield from _check_confirm(element["confirm"], f"{pointer}/confirm")


def _check_confirm(confirm: Any, pointer: str) -> Iterator[BlockError]:
    if not isinstance(confirm, dict):
        yield "must be an object", pointer
        return
    for key, max_length in (("title", 100), ("text", 300), ("confirm", 30), ("deny", 30)):
        yield from _check_text(confirm.get(key), f"{pointer}/{key}", max_length, kinds=("plain_text",))


def _check_url(url: Any, pointer: str) -> Iterator[BlockError]:
    if not isinstance(url, str):
        yield f"missing required field: {pointer.rpartition('/')[2]}", pointer.rpartition("/")[0]
        return
    if len(url) > 3000:
        yield "must be less than 3001 characters", pointer
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        yield "must be a valid URL", pointer
