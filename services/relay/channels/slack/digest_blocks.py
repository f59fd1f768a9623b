"""A digest → what Slack shows: each incident on a line of its own, within Slack's limits whatever the alerts contain.

The lines are rich text, in which a text is only text: nothing in it mentions anybody, starts a link or is mark-up.
A title leads to its alerts while all links fit; in a fuller digest each service has one link for all its incidents,
and with too many services for that, the last line leads to the alerts of all.

Slack documents no limit for all blocks together. 13,200 characters of text were refused (slackapi/bolt-js#2509), and so
were 11,341 in blocks that were mostly rich text (slackapi/bolt-js#2867). So everything in the blocks counts here, their
types and links included.
"""

from collections.abc import Iterator
from typing import Any, Final

from services.relay.channels.slack.blocks import (
    MAX_HEADER,
    MAX_TEXT,
    REPEAT_REMARK,
    Block,
    Post,
    count_characters,
    escape,
)
from services.relay.model import DigestEntry, Message, Status
from services.relay.text import format_digest_reason, format_digest_title, format_entry, group_entries

MAX_INCIDENTS: Final = 100
"""As many fit into one message, whatever their titles are."""
MAX_CHARACTERS: Final = 11_000
"""Of everything in the blocks."""
_MAX_BLOCK: Final = 3_000
"""Of one block; what Slack documents for a section."""
_MAX_REASON: Final = 900
_MAX_SERVICE: Final = 40
_SHORTEST_TITLE: Final = 24
"""Characters of a title at least, which is what a hundred incidents of a hundred services leave to each."""

Element = dict[str, Any]


def build_digest_post(message: Message, *, may_be_a_repeat: bool = False) -> Post:
    """The digest as a post. It mentions nobody: the messages before it did, and the critical ones do.

    Args:
        message: with its entries.
        may_be_a_repeat: whether it says so.
    """
    reason = " ".join(filter(None, (REPEAT_REMARK if may_be_a_repeat else "", format_digest_reason(message))))
    has_firing = any(entry.status is Status.FIRING for entry in message.digest)
    title = f"{'🔴' if has_firing else '🟢'} {format_digest_title(message)}"
    frame: list[Block] = [
        {"type": "header", "text": {"type": "plain_text", "text": escape(title, MAX_HEADER), "emoji": False}},
        {"type": "context", "elements": [{"type": "plain_text", "text": escape(reason, _MAX_REASON), "emoji": False}]},
    ]
    limit = MAX_CHARACTERS - count_characters(frame)
    return Post(_build_fallback_text(message, title), [*frame, *_build_lists(message, limit)])


def _build_lists(message: Message, limit: int) -> list[Block]:
    """The incidents in the fullest form that fits: links go before titles are cut, which often differ at their end."""
    length = 120
    for length, link in ((300, "incident"), (120, "incident"), (120, "service"), (120, "")):
        blocks = _pack(_list_elements(message, length, link))
        if count_characters(blocks) <= limit:
            return blocks
    while count_characters(blocks) > limit and length > _SHORTEST_TITLE:
        length -= 4
        blocks = _pack(_list_elements(message, length, ""))
    return blocks


def _list_elements(message: Message, length: int, link: str) -> Iterator[list[Element]]:
    """For each line its elements.

    Args:
        message: with its entries.
        length: characters of a title.
        link: what has a link: `incident`, `service` or nothing.
    """
    for service, entries in group_entries(message):
        yield _build_heading(service, entries, entries[0].service_link if link == "service" else None)
        for entry in entries:
            line = escape(format_entry(entry, 0 if length > 120 else length), length + 4)
            yield _build_line(line, entry.link if link == "incident" else None)
    if not link and message.incident_url:
        yield _build_line("All open incidents", message.incident_url)
    elif not link and message.digest[0].receiver_link:
        yield _build_line("All alerts in Alertmanager", message.digest[0].receiver_link)


def _build_heading(service: str, entries: list[DigestEntry], url: str | None) -> list[Element]:
    text = f"{escape(service, _MAX_SERVICE)}: {len(entries)}"
    bold = {"style": {"bold": True}}
    return [{"type": "link", "url": url, "text": text, **bold}] if url else [{"type": "text", "text": text, **bold}]


def _build_line(line: str, url: str | None) -> list[Element]:
    return [{"type": "link", "url": url, "text": line}] if url else [{"type": "text", "text": line}]


def _pack(lines: Iterator[list[Element]]) -> list[Block]:
    """As few blocks of rich text as hold all lines; texts without a style that follow each other become one."""
    blocks: list[list[Element]] = [[]]
    size = 0
    for line in lines:
        added = count_characters(line) + 1
        if size and size + added > _MAX_BLOCK:
            blocks.append([])
            size = 0
        elements = blocks[-1]
        if elements:
            _append_text(elements, "\n")
        for element in line:
            if element.keys() == {"type", "text"}:
                _append_text(elements, element["text"])
            else:
                elements.append(element)
        size += added
    return [
        {"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": elements}]} for elements in blocks
    ]


def _append_text(elements: list[Element], text: str) -> None:
    if elements and elements[-1].keys() == {"type", "text"}:
        elements[-1] = {"type": "text", "text": elements[-1]["text"] + text}
    else:
        elements.append({"type": "text", "text": text})


def _build_fallback_text(message: Message, title: str) -> str:
    """The title, then titles of incidents as far as they fit: what a notification and a client without blocks show."""
    text = escape(title, MAX_TEXT)
    for entry in message.digest:
        line = escape(format_entry(entry, 120), MAX_TEXT)
        if len(text) + 1 + len(line) > MAX_TEXT:
            break
        text += f"\n{line}"
    return text
