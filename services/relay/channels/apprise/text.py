"""A message → title and body for any service that Apprise knows: Markdown, or plain text where there is no mark-up.

Everything of an alert is escaped. What could mention somebody or hide a link's address is made harmless as well, since
some services find mentions in plain text, and show mark-up in titles.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from services.relay.model import Message
from services.relay.text import (
    Link,
    find_worst_severity,
    format_counts,
    format_description,
    format_headline,
    format_period,
    format_remark,
    format_state,
    format_summary,
    list_alerts,
    list_group_links,
    select_contacts,
    truncate,
)

MAX_BODY: Final = 4_000
"""Characters of a body, or as many as the service takes, if those are fewer."""
MAX_TITLE: Final = 250
_RESERVED: Final = 24
"""Characters of the body kept for how many alerts are missing."""
_LAST: Final = 1_000_000
"""A position after those of all alerts."""
_MARKUP: Final = re.compile(r"(?<![\w.])@(?=\w)|<(?=\S)|\](?=\()")
"""How a mention or a link begins, whichever the service: @name, <@U012>, <at>name</at>, [name](…); no mail address."""
_INVISIBLE_SPACE: Final = "\u200b"
_INLINE: Final = re.compile(r"[\\`*_\[\]<>~|&#]")
_LINE_START: Final = re.compile(r"^(\s*\d*)([-+=.)])")
"""Of a list, or under a heading."""


class Text(NamedTuple):
    """A message as Apprise gets it."""

    title: str
    body: str
    is_markdown: bool

    @property
    def payload(self) -> str:
        """As it is recorded."""
        return f"{self.title}\n\n{self.body}"


def build_text(
    message: Message,
    *,
    measure: Callable[[str], int] = len,
    limit: int = MAX_BODY,
    title_limit: int = MAX_TITLE,
    is_markdown: bool = False,
    escapes_title: bool = False,
) -> Text:
    """The message as text: the first alert always, the others as far as they fit whole, and how many do not.

    Args:
        message: to be sent.
        measure: the length of a text once Apprise has turned it into what the service gets.
        limit: of the body's length.
        title_limit: characters of the title.
        is_markdown: whether the body is Markdown, or plain text.
        escapes_title: whether the title is, too.
    """
    event, alerts = message.event, list_alerts(message)
    write = partial(_write, is_markdown=is_markdown)
    head = " · ".join(filter(None, (format_counts(event), find_worst_severity(event))))
    contacts = [f"{role}: {address}" for role, address in select_contacts(message).items()]
    body = _Blocks(measure, min(limit, MAX_BODY))
    body.add(0, write(head))
    body.add(1, write(format_remark(message)))
    listed = 0
    for alert, links in alerts:
        summary, description, period = format_summary(alert), format_description(alert), format_period(alert)
        variants = [write(summary, description, period, links=links), write(summary, period, links=links)]
        if not listed:  # as much of it as there is space for
            variants += [write(truncate(summary, length), period, links=links[:1]) for length in (250, 100)]
            variants += [write(truncate(summary, length)) for length in (250, 100, 40)]
        if not any(body.add(2 + listed, text) for text in variants):
            break
        listed += 1
        if listed == 1:
            body.add(_LAST, write("Escalate to", *contacts) if contacts else "")
    missing = len(alerts) - listed + event.unlisted_count
    body.add(2 + listed, write(f"… and {missing} more") if missing else "", is_reserved=True)
    body.add(_LAST + 1, write(links=list_group_links(event)))
    title = truncate(_disarm(f"{format_state(message)}: {message.title or format_headline(event)}"), title_limit)
    return Text(_escape_markdown(title) if escapes_title else title, body.join(), is_markdown)


class _Blocks:
    """The blocks of a text that fit into it.

    Args:
        measure: the length of a text.
        limit: of the whole.
    """

    def __init__(self, measure: Callable[[str], int], limit: int) -> None:
        self._measure = measure
        self._limit = limit
        self._blocks: dict[int, str] = {}

    def add(self, position: int, block: str, *, is_reserved: bool = False) -> bool:
        """Adds a block, where it fits; an empty one is not shown.

        Args:
            position: where it stands.
            block: its text.
            is_reserved: whether it may use the space that is kept for it.
        """
        candidate = {**self._blocks, position: block} if block else self._blocks
        limit = self._limit - (0 if is_reserved else _RESERVED)
        if self._measure(self._join(candidate)) > limit:
            return False
        self._blocks = candidate
        return True

    def join(self) -> str:
        """The whole text."""
        return self._join(self._blocks)

    def _join(self, blocks: Mapping[int, str]) -> str:
        return "\n\n".join(blocks[position] for position in sorted(blocks))


def _write(*texts: str, links: Sequence[Link] = (), is_markdown: bool) -> str:
    """Lines of text of others, then links; empty texts are left out."""
    lines = [line for text in texts for line in _disarm(text).splitlines() if line]
    if not is_markdown:
        return "\n".join([*lines, *(f"{link.text}: {link.url}" for link in links)])
    link_texts = [f"[{link.text}]({link.url.replace('(', '%28').replace(')', '%29')})" for link in links]
    return "  \n".join([*map(_escape_markdown, lines), *([" · ".join(link_texts)] if link_texts else [])])


def _escape_markdown(text: str) -> str:
    """A line as CommonMark that shows it as it is: https://spec.commonmark.org/0.31.2/#backslash-escapes."""
    return _LINE_START.sub(r"\1\\\2", _INLINE.sub(r"\\\g<0>", text))


def _disarm(text: str) -> str:
    """The text with an invisible space where a mention or a link would begin."""
    return _MARKUP.sub(lambda found: found[0] + _INVISIBLE_SPACE, text)
