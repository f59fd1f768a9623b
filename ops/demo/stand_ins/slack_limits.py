"""What Slack refuses in `blocks`: pure; blocks come in, its complaints go out as (text, JSON pointer).

Limits: https://docs.slack.dev/reference/block-kit/blocks, the same that `slack_sdk.models.blocks` checks, which clients
that send plain dictionaries pass by. Block types that keypulse has no use for are refused as unknown.
"""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

MAX_BLOCKS = 50
MAX_BLOCKS_TEXT = (
    13_200  # characters in all blocks together; measured in https://github.com/slackapi/bolt-js/issues/2509
)

Complaint = tuple[str, str]
Json = dict[str, Any]


def complaints(blocks: list[Any]) -> Iterator[Complaint]:
    """Everything that is wrong with the blocks of one message; nothing where Slack would take them."""
    if len(blocks) > MAX_BLOCKS:
        yield f"no more than {MAX_BLOCKS} items allowed", "/blocks"
    for i, block in enumerate(blocks):
        at = f"/blocks/{i}"
        if not isinstance(block, dict):
            yield "must be an object", at
            continue
        check = _BLOCKS.get(str(block.get("type")))
        if check is None:
            yield f"unsupported type: {block.get('type')}", at
            continue
        if len(str(block.get("block_id", ""))) > 255:
            yield "must be less than 256 characters", f"{at}/block_id"
        yield from check(block, at)


def text_length(value: Any) -> int:
    """The characters of every `text` string inside blocks."""
    if isinstance(value, dict):
        own = len(value["text"]) if isinstance(value.get("text"), str) else 0
        return own + sum(text_length(child) for child in value.values())
    if isinstance(value, list):
        return sum(text_length(child) for child in value)
    return 0


def _header(block: Json, at: str) -> Iterator[Complaint]:
    yield from _text(block.get("text"), f"{at}/text", 150, kinds=("plain_text",))


def _section(block: Json, at: str) -> Iterator[Complaint]:
    if "text" not in block and "fields" not in block:
        yield "missing required field: text", at
    if "text" in block:
        yield from _text(block["text"], f"{at}/text", 3000)
    if "fields" in block:
        yield from _each(block["fields"], f"{at}/fields", 10, lambda field, where: _text(field, where, 2000))
    if "accessory" in block:
        yield from _element(block["accessory"], f"{at}/accessory")


def _context(block: Json, at: str) -> Iterator[Complaint]:
    def one(element: Any, where: str) -> Iterator[Complaint]:
        image = isinstance(element, dict) and element.get("type") == "image"
        yield from _image(element, where) if image else _text(element, where, 2000)

    yield from _each(block.get("elements"), f"{at}/elements", 10, one)


def _actions(block: Json, at: str) -> Iterator[Complaint]:
    yield from _each(block.get("elements"), f"{at}/elements", 25, _element)


def _image(block: Json, at: str) -> Iterator[Complaint]:
    yield from _url(block.get("image_url"), f"{at}/image_url")
    if not isinstance(block.get("alt_text"), str):
        yield "missing required field: alt_text", at
    elif len(block["alt_text"]) > 2000:
        yield "must be less than 2001 characters", f"{at}/alt_text"


def _divider(_block: Json, _at: str) -> Iterator[Complaint]:
    return iter(())


_BLOCKS: dict[str, Callable[[Json, str], Iterator[Complaint]]] = {
    "header": _header,
    "section": _section,
    "context": _context,
    "actions": _actions,
    "image": _image,
    "divider": _divider,
}


def _each(items: Any, at: str, most: int, check: Callable[[Any, str], Iterator[Complaint]]) -> Iterator[Complaint]:
    if not isinstance(items, list):
        yield f"missing required field: {at.rpartition('/')[2]}", at.rpartition("/")[0]
        return
    if not items:
        yield "no less than 1 items allowed", at
    if len(items) > most:
        yield f"no more than {most} items allowed", at
    for i, item in enumerate(items):
        yield from check(item, f"{at}/{i}")


def _text(text: Any, at: str, most: int, kinds: tuple[str, ...] = ("mrkdwn", "plain_text")) -> Iterator[Complaint]:
    if not isinstance(text, dict):
        yield "missing required field: text", at.rpartition("/")[0]
        return
    if text.get("type") not in kinds:
        yield f"unsupported type: {text.get('type')}", at
    content = text.get("text")
    if not isinstance(content, str) or not content:
        yield "must be more than 0 characters", f"{at}/text"
    elif len(content) > most:
        yield f"must be less than {most + 1} characters", f"{at}/text"


def _element(element: Any, at: str) -> Iterator[Complaint]:
    if not isinstance(element, dict) or element.get("type") != "button":
        yield f"unsupported type: {element.get('type') if isinstance(element, dict) else element}", at
        return
    yield from _text(element.get("text"), f"{at}/text", 75, kinds=("plain_text",))
    if len(str(element.get("value", ""))) > 2000:
        yield "must be less than 2001 characters", f"{at}/value"
    if len(str(element.get("action_id", ""))) > 255:
        yield "must be less than 256 characters", f"{at}/action_id"
    if element.get("style", "primary") not in ("primary", "danger"):
        yield f"failed to match all allowed schemas: style {element['style']}", f"{at}/style"
    if "url" in element:
        yield from _url(element["url"], f"{at}/url")


def _url(url: Any, at: str) -> Iterator[Complaint]:
    if not isinstance(url, str):
        yield f"missing required field: {at.rpartition('/')[2]}", at.rpartition("/")[0]
        return
    if len(url) > 3000:
        yield "must be less than 3001 characters", at
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        yield "must be a valid URL", at
