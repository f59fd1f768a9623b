"""A message → title and body for any service that Apprise knows: Markdown, or plain text where there is no mark-up.

Everything of an alert is escaped. What could mention somebody or hide a link's address is made harmless as well, since
some services find mentions in plain text, and show mark-up in titles.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Final, NamedTuple

from services.relay.model import Alert, Message, RunbookExcerpt, Status
from services.relay.text import (
    AlertCard,
    AlertTable,
    Fix,
    Link,
    arrange_alerts,
    find_worst_severity,
    format_class,
    format_counts,
    format_description,
    format_digest,
    format_digest_title,
    format_more,
    format_omission,
    format_period,
    format_remark,
    format_subject,
    format_summary,
    join_items,
    limit_labels,
    list_context,
    list_fixes,
    list_group_links,
    sanitize_url,
    select_alerts,
    select_contacts,
    select_own_labels,
    truncate,
)

MAX_BODY: Final = 4_000
"""Characters of a body, or as many as the service takes, if those are fewer."""
MAX_TITLE: Final = 250
_RESERVED: Final = 40
"""Characters of the body kept for how many alerts are missing."""
_MAX_CARDS: Final = 20
_MAX_TABLES: Final = 5
_MAX_ROWS: Final = 20
_MAX_FIXES: Final = 2
_MAX_LABELS: Final = 6
_MAX_LABEL: Final = 80
_CONTACTS, _CONTEXT, _EXCERPT, _GROUP_LINKS = 1, 2, 3, 4
"""Positions after the alerts."""
_TO_ALL: Final = r"everyone|here|channel|room|all\b|&?\d"
"""What is a mention after @ even within a word, as in `ops@everyone`: Discord and Apprise look no further."""
_MARKUP: Final = re.compile(rf"(?<![A-Za-z0-9_])@(?=\w)|@(?=(?i:{_TO_ALL}))|<(?=\S)|\](?=\()")
"""How a mention or a link begins, whichever the service: @name, <@U012>, <at>name</at>, [name](…); no mail address."""
_MENTION_IN_CODE: Final = re.compile(rf"@(?=(?i:{_TO_ALL}))")
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
    event, write = message.event, partial(_write, is_markdown=is_markdown)
    title = truncate(_disarm(format_digest_title(message) if message.digest else format_subject(message)), title_limit)
    title = _escape_markdown(title) if escapes_title else title
    if message.digest:
        return Text(title, _write_digest(message, measure, min(limit, MAX_BODY), is_markdown=is_markdown), is_markdown)
    body = _Blocks(measure, min(limit, MAX_BODY))
    head = " · ".join(filter(None, (format_class(message), format_counts(event), find_worst_severity(event))))
    own = [Link("Incident", message.incident_url)] if message.incident_url else []
    body.add(write(head, format_remark(message), links=own))
    arranged = arrange_alerts(message, max_cards=_MAX_CARDS, max_tables=_MAX_TABLES, max_rows=_MAX_ROWS)
    listed: list[Alert] = []
    for part in arranged.parts:
        variants = _write_table(part, write) if isinstance(part, AlertTable) else _write_card(part, message, write)
        added = next((alerts for alerts, text in variants if body.add(text)), None)
        if added is None:
            break
        if not listed:
            body.add(*(_write_fix(fix, is_markdown=is_markdown) for fix in list_fixes(message)[:_MAX_FIXES]))
            contacts = [f"{role}: {address}" for role, address in select_contacts(message).items()]
            body.add(write("Escalate to", *contacts) if contacts else "", position=_CONTACTS)
            body.add(
                write(*(f"{line.name}: {join_items(line.items)}" for line in list_context(message))), position=_CONTEXT
            )
        listed += added
    left_out = format_more([alert for alert in event.alerts if alert not in listed])
    body.add(write(left_out, format_omission(event)), is_reserved=True)
    body.add(_write_excerpt(message.excerpt, write, is_markdown=is_markdown), position=_EXCERPT)
    body.add(write(links=list_group_links(event)), position=_GROUP_LINKS)
    return Text(title, body.join(), is_markdown)


def _write_digest(message: Message, measure: Callable[[str], int], limit: int, *, is_markdown: bool) -> str:
    """Every incident on a line, as far as they fit; a line that is an address is a link."""
    text, space, end = "", limit, "  \n" if is_markdown else "\n"
    while space:
        lines = format_digest(message, space).split("\n")
        text = end.join(_write_digest_line(line, is_markdown=is_markdown) for line in lines)
        if measure(text) <= limit:
            break
        space = space * 9 // 10  # mark-up takes some of it
    return text


def _write_digest_line(line: str, *, is_markdown: bool) -> str:
    url = sanitize_url(line)
    return _write(*([] if url else [line]), links=[Link("Details", url)] if url else [], is_markdown=is_markdown)


def _write_card(card: AlertCard, message: Message, write: Callable[..., str]) -> Iterator[tuple[list[Alert], str]]:
    """An alert, whole and then shorter and shorter; with each the alerts that it shows."""
    alert, links = card
    summary, period = format_summary(alert), format_period(alert, message.zone)
    value = message.current_values.get(alert.fingerprint, "")
    now = f"now {value}" if value and alert.status is Status.FIRING else ""
    own = select_own_labels(alert, message.event)
    labels = ", ".join(f"{key}={value}" for key, value in limit_labels(own, _MAX_LABELS, _MAX_LABEL))
    is_over = alert.status is Status.RESOLVED and not message.task.firing_undelivered
    description = "" if is_over else format_description(alert)  # it says what would be wrong now
    yield [alert], write(summary, labels, description, period, now, links=links)
    yield [alert], write(summary, labels, period, now, links=links)
    for length in (250, 100):
        yield [alert], write(truncate(summary, length), period, links=links[:1])
    for length in (250, 100, 40):
        yield [alert], write(truncate(summary, length))


def _write_table(table: AlertTable, write: Callable[..., str]) -> Iterator[tuple[list[Alert], str]]:
    """A table with all its rows, and then with fewer and fewer, of which resolved alerts keep a part."""
    for count in (_MAX_ROWS, 10, 5, 2):
        listed = set(map(id, select_alerts(table.alerts, count)[0]))
        pairs = [pair for pair in zip(table.alerts, table.rows, strict=True) if id(pair[0]) in listed]
        lines = (f"• {' · '.join(filter(None, row))}" for _, row in pairs)
        yield [alert for alert, _ in pairs], write(table.caption, *lines, links=table.links)
    for length in (250, 100, 40):
        yield [], write(truncate(table.caption, length))


def _write_fix(fix: Fix, *, is_markdown: bool) -> str:
    title = _escape_markdown(fix.title) if is_markdown else fix.title
    return f"{title}:\n{_write_code(fix.command, is_markdown=is_markdown)}"


def _write_excerpt(excerpt: RunbookExcerpt | None, write: Callable[..., str], *, is_markdown: bool) -> str:
    """The first diagnosis steps of the runbook."""
    if excerpt is None:
        return ""
    blocks = (
        _write_code(block.text, is_markdown=is_markdown) if block.kind == "code" else write(block.text)
        for block in excerpt.blocks
    )
    return "\n\n".join([write("From the runbook"), *blocks])


def _write_code(code: str, *, is_markdown: bool) -> str:
    """As it is to be pasted: an invisible space would break it, and two quotes are nothing to a shell."""
    code = _MENTION_IN_CODE.sub('@""', code)
    return f"\n````\n{code}\n````" if is_markdown else code


class _Blocks:
    """The blocks of a text that fit into it.

    Args:
        measure: the length of a text.
        limit: of the whole.
    """

    def __init__(self, measure: Callable[[str], int], limit: int) -> None:
        self._measure = measure
        self._limit = limit
        self._blocks: list[tuple[int, str]] = []

    def add(self, *blocks: str, position: int = 0, is_reserved: bool = False) -> bool:
        """Adds each block that fits; whether the last one did. An empty one fits, and is not shown.

        Args:
            blocks: their texts.
            position: they stand after those of the same or a lower position.
            is_reserved: whether they may use the space that is kept for them.
        """
        limit = self._limit - (0 if is_reserved else _RESERVED)
        fits = True
        for block in blocks:
            candidate = sorted([*self._blocks, (position, block)], key=itemgetter(0)) if block else self._blocks
            fits = self._measure(self._join(candidate)) <= limit
            self._blocks = candidate if fits else self._blocks
        return fits

    def join(self) -> str:
        """The whole text."""
        return self._join(self._blocks)

    def _join(self, blocks: list[tuple[int, str]]) -> str:
        return "\n\n".join(block for _, block in blocks)


def _write(*texts: str, links: Sequence[Link] = (), is_markdown: bool) -> str:
    """Lines of text of others, then links; empty texts are left out."""
    lines = [line for text in texts for line in _disarm(text).splitlines() if line]
    addresses = [link.url.replace("@", "%40") for link in links]
    if not is_markdown:
        return "\n".join([*lines, *(f"{link.text}: {url}" for link, url in zip(links, addresses, strict=True))])
    link_texts = [
        f"[{link.text}]({url.replace('(', '%28').replace(')', '%29')})"
        for link, url in zip(links, addresses, strict=True)
    ]
    return "  \n".join([*map(_escape_markdown, lines), *([" · ".join(link_texts)] if link_texts else [])])


def _escape_markdown(text: str) -> str:
    """A line as CommonMark that shows it as it is: https://spec.commonmark.org/0.31.2/#backslash-escapes."""
    return _LINE_START.sub(r"\1\\\2", _INLINE.sub(r"\\\g<0>", text))


def _disarm(text: str) -> str:
    """The text with an invisible space where a mention or a link would begin."""
    return _MARKUP.sub(lambda found: found[0] + _INVISIBLE_SPACE, text)
