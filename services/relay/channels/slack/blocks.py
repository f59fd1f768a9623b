"""Slack's blocks and their texts, each cut to its limit, and no text of an alert with a meaning for Slack."""

import re
from collections.abc import Iterable
from datetime import datetime, tzinfo
from typing import Any, Final

from services.relay.text import Link, format_time

Block = dict[str, Any]

MAX_TEXT = 4_000


MAX_SECTION = 3_000


_LAST_DATE: Final = 2.0**31


def escape(text: str, limit: int) -> str:
    """The text with Slack's three control characters as entities, cut to `limit` characters as Slack counts them.

    Without `<` nothing can mention anybody or start a link, see
    https://docs.slack.dev/messaging/formatting-message-text#escaping. The limit is that of the escaped text, and no
    entity is cut in two.
    """
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if len(escaped) <= limit:
        return escaped
    return re.sub(r"&[a-z]*$", "", escaped[: limit - 1]).rstrip() + "…"


def measure_escaped(text: str) -> int:
    return len(escape(text, 6 * len(text) + 1))


def cut_for_edit(text: str) -> str:
    """An escaped text with as many of its lines as `chat.update` takes, which counts what it gets as it escapes it.

    https://docs.slack.dev/reference/methods/chat.update, "Errors", msg_too_long
    """
    while measure_escaped(text) > MAX_TEXT and "\n" in text:
        text = text.rpartition("\n")[0]
    return text


def build_plain_text(text: str, limit: int) -> Block:
    """A text object without mark-up."""
    return {"type": "plain_text", "text": escape(text, limit), "emoji": False}


def build_section(text: str, limit: int = MAX_SECTION) -> list[Block]:
    """A paragraph without mark-up; none if the text is empty."""
    return [{"type": "section", "text": build_plain_text(text, limit)}] if text else []


def build_mrkdwn(text: str) -> Block:
    """A text object with mark-up; the text is the relay's own."""
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def build_code(text: str, caption: str = "", limit: int = MAX_SECTION) -> list[Block]:
    """A code block, as it can be pasted; a paragraph where the text has a backtick, which could end the block."""
    if not text:
        return []
    if "`" in text:
        return build_section(f"{caption}\n{text}" if caption else text, limit)
    bold = f"*{caption}*\n" if caption else ""
    code = escape(text, limit - len(bold) - 8)
    return [{"type": "section", "text": build_mrkdwn(f"{bold}```\n{code}\n```")}]


def build_context(elements: list[Block]) -> list[Block]:
    """A line of small print; none without elements."""
    return [{"type": "context", "elements": elements}] if elements else []


def build_context_text(parts: Iterable[str], limit: int) -> list[Block]:
    """A line of small print without mark-up."""
    text = "  ·  ".join(filter(None, parts))
    return build_context([build_plain_text(text, limit)]) if text else []


def build_link_buttons(links: Iterable[Link]) -> list[Block]:
    return [{"type": "button", "text": build_plain_text(link.text, 75), "url": link.url} for link in links]


def build_actions(buttons: list[Block]) -> list[Block]:
    """A row of buttons; none without any."""
    return [{"type": "actions", "elements": buttons[:25]}] if buttons else []


def format_date(moment: datetime, zone: tzinfo) -> str:
    """Mark-up that shows the moment in the reader's zone; clients that cannot do that show it in `zone`.

    https://docs.slack.dev/messaging/formatting-message-text#date-formatting
    """
    fallback = escape(format_time(moment, zone), 100).replace("|", "/")
    seconds = moment.timestamp()
    if not 0 <= seconds < _LAST_DATE:
        return fallback
    return f"<!date^{int(seconds)}^{{date_short_pretty}} at {{time}}|{fallback}>"


def count_characters(value: Block | list[Any]) -> int:
    """How many characters all texts and links of some blocks have."""
    number = 0
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, str):
            number += len(child)
        elif isinstance(child, (dict, list)):
            number += count_characters(child)
    return number
