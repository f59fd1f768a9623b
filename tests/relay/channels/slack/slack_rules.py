"""What Slack documents about a message, and what the relay promises of its mark-up, as one list of violations.

https://docs.slack.dev/reference/block-kit/blocks, https://docs.slack.dev/messaging/formatting-message-text; beside the
stand-in's own validation, which the calls of the channel meet.
"""

import re
from collections.abc import Iterator
from typing import Any

from ops.demo.stand_ins.slack.block_limits import MAX_BLOCKS_TEXT, count_text, find_block_errors
from services.relay.channels.slack.message import Post

MAX_UPDATE_TEXT = 4_000
_DATE = re.compile(r"<!date\^[0-9]{1,10}\^\{date_short_pretty\} at \{time\}\|[^<>|\n`]{1,100}>")
_CALL = re.compile(r"^<!(?:channel|here)> ")
_CODE = re.compile(r"\A(?:\*[^*\n`<>]+\*\n)?```\n[^`]*\n```\Z")
_PLAIN_TEXT = re.compile(r"[\w .,;:()/*·+-]*")
"""What mark-up of the relay consists of, beside dates, calls and code."""
_STRAY = re.compile(r"[<>]|&(?!amp;|lt;|gt;)")


def find_texts(value: Any, kind: str) -> list[str]:
    """Every text object of this kind inside blocks."""
    if isinstance(value, list):
        return [text for child in value for text in find_texts(child, kind)]
    if not isinstance(value, dict):
        return []
    own = [value["text"]] if value.get("type") == kind else []
    return own + [text for child in value.values() for text in find_texts(child, kind)]


def find_urls(blocks: list[dict[str, Any]]) -> list[str]:
    return [button["url"] for block in blocks for button in block.get("elements", ()) if "url" in button]


def find_violations(post: Post) -> Iterator[str]:
    """Everything that Slack would refuse, or that an alert could have slipped in."""
    yield from (f"{text} at {pointer}" for text, pointer in find_block_errors(post.blocks))
    size = count_text(post.blocks) + sum(map(len, find_urls(post.blocks)))
    if size > MAX_BLOCKS_TEXT:
        yield f"{size} characters in all blocks"
    if not 0 < len(post.text) <= MAX_UPDATE_TEXT:
        yield f"{len(post.text)} characters of text"
    if post.text.encode("utf-8", "ignore").decode() != post.text:
        yield "the text has half a character"
    for plain in [post.text, *find_texts(post.blocks, "plain_text")]:
        if _STRAY.search(plain):
            yield f"a text has mark-up: {plain[:200]}"
    for mrkdwn in find_texts(post.blocks, "mrkdwn"):
        rest = _DATE.sub("", _CALL.sub("", mrkdwn))
        if not _PLAIN_TEXT.fullmatch(rest) and (not _CODE.match(rest) or _STRAY.search(rest)):
            yield f"mark-up that is not the relay's: {mrkdwn[:200]}"
    if any(not url.startswith(("https://", "http://")) for url in find_urls(post.blocks)):
        yield "a link is not http"
