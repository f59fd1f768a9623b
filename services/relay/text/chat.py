"""A message as the text of a chat: a title and a body, plain or in Markdown, within the limit of whoever shows it.

Everything of an alert is escaped. What could mention somebody or hide a link's address is made harmless as well, since
some services find mentions in plain text, and show mark-up in titles.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Final, NamedTuple

from services.relay.model import Alert, Message, RunbookExcerpt, Status
from services.relay.text.body import (
    AlertCard,
    AlertTable,
    build_view,
    format_digest,
    format_digest_title,
    format_more,
    select_alerts,
)
from services.relay.text.strings import Link, fit, sanitize_url, truncate
from services.relay.text.title import limit_labels
from shared.kms.fixes import Fix

MAX_BODY: Final = 4_000
"""Characters of a body, where its reader says no other limit."""
MAX_TITLE: Final = 250
_RESERVED: Final = 40
"""Characters of the body kept for how many alerts are missing."""
_MAX_CARDS: Final = 20
_MAX_TABLES: Final = 5
_MAX_ROWS: Final = 20
_MAX_FIXES: Final = 2
_MAX_LABELS: Final = 6
_MAX_LABEL: Final = 80
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
    """A message for a chat."""

    title: str
    body: str
    is_markdown: bool

    @property
    def payload(self) -> str:
        return f"{self.title}\n\n{self.body}"


class _Form(NamedTuple):
    """One of the forms of a part."""

    text: str
    """Empty where there is nothing to say."""
    alerts: Sequence[Alert] = ()
    """Shown in it."""


class _Part(NamedTuple):
    """A part of a body: it stands after those of the same or a lower position."""

    position: int
    forms: Sequence[_Form]
    """The fullest first."""


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
        measure: the length of a text as the service counts it, once it is in what the service gets.
        limit: of the body's length.
        title_limit: characters of the title.
        is_markdown: whether the body is Markdown, or plain text.
        escapes_title: whether the title is, too.
    """
    write = partial(_write, is_markdown=is_markdown)
    view = build_view(message, max_cards=_MAX_CARDS, max_tables=_MAX_TABLES, max_rows=_MAX_ROWS)
    title = truncate(_disarm(format_digest_title(message) if message.digest else view.subject), title_limit)
    title = _escape_markdown(title) if escapes_title else title
    if message.digest:
        return Text(title, _write_digest(message, measure, limit, write), is_markdown)
    head = " · ".join(filter(None, (view.headline, view.counts, view.severity)))
    contacts = [f"{role}: {address}" for role, address in view.contacts.items()]
    first, *others = [_list_forms(part, write) for part in view.parts] or [[]]
    fixes = (_write_fix(fix, is_markdown=is_markdown) for fix in view.fixes[:_MAX_FIXES])
    parts = [
        _Part(0, [_Form(write(head, view.remark, links=view.incident_links))]),
        _Part(0, first),
        *(_Part(0, [_Form(fix)]) for fix in fixes),
        _Part(1, [_Form(write("Escalate to", *contacts) if contacts else "")]),
        _Part(2, [_Form(write(*map(str, view.context)))]),
        *(_Part(0, forms) for forms in others),
    ]
    shown, left = _fit_parts(parts, limit - _RESERVED, measure)
    listed = {id(alert) for part in shown for alert in part.forms[0].alerts}
    left_out = format_more([alert for alert in message.event.alerts if id(alert) not in listed])
    rest = [
        _Part(0, [_Form(write(left_out, view.omission))]),
        _Part(3, [_Form(_write_excerpt(view.excerpt, write, is_markdown=is_markdown))]),
        _Part(4, [_Form(write(links=view.group_links))]),
    ]
    shown += _fit_parts(rest, left + _RESERVED, measure)[0]
    blocks = [part.forms[0].text for part in sorted(shown, key=itemgetter(0)) if part.forms[0].text]
    while measure("\n\n".join(blocks)) > limit:  # all together may be longer than one by one
        blocks.pop()
    return Text(title, "\n\n".join(blocks), is_markdown)


def _fit_parts(parts: Sequence[_Part], limit: int, measure: Callable[[str], int]) -> tuple[list[_Part], int]:
    """The parts that fit, each with the one form that does, and what is left of the limit."""

    def measure_form(form: _Form) -> int:
        return measure(form.text) + 2 if form.text else 0

    forms = fit((part.forms for part in parts), (limit, measure_form))
    shown = [_Part(part.position, [form]) for part, form in zip(parts, forms, strict=True) if form is not None]
    return shown, limit - sum(measure_form(part.forms[0]) for part in shown)


def _write_digest(message: Message, measure: Callable[[str], int], limit: int, write: "partial[str]") -> str:
    """Every incident on a line, as far as they fit; a line that is an address is a link."""
    text, space, end = "", limit, "  \n" if write.keywords["is_markdown"] else "\n"
    while space:
        text = end.join(
            write(links=[Link("Details", url)]) if (url := sanitize_url(line)) else write(line)
            for line in format_digest(message, space).split("\n")
        )
        if measure(text) <= limit:
            break
        space = space * 9 // 10  # mark-up takes some of it
    return text


def _list_forms(part: AlertCard | AlertTable, write: Callable[..., str]) -> list[_Form]:
    return list(_list_table_forms(part, write) if isinstance(part, AlertTable) else _list_card_forms(part, write))


def _list_card_forms(card: AlertCard, write: Callable[..., str]) -> Iterator[_Form]:
    shown, now = [card.alert], f"now {card.value}" if card.value and card.alert.status is Status.FIRING else ""
    labels = ", ".join(f"{key}={value}" for key, value in limit_labels(card.labels, _MAX_LABELS, _MAX_LABEL))
    yield _Form(write(card.summary, labels, card.description, card.period, now, links=card.links), shown)
    yield _Form(write(card.summary, labels, card.period, now, links=card.links), shown)
    for length in (250, 100):
        yield _Form(write(truncate(card.summary, length), card.period, links=card.links[:1]), shown)
    for length in (250, 100, 40):
        yield _Form(write(truncate(card.summary, length)), shown)


def _list_table_forms(table: AlertTable, write: Callable[..., str]) -> Iterator[_Form]:
    for count in (_MAX_ROWS, 10, 5, 2):
        listed = set(map(id, select_alerts(table.alerts, count)[0]))
        pairs = [pair for pair in zip(table.alerts, table.rows, strict=True) if id(pair[0]) in listed]
        lines = (f"• {' · '.join(filter(None, row))}" for _, row in pairs)
        yield _Form(write(table.caption, *lines, links=table.links), [alert for alert, _ in pairs])
    for length in (250, 100, 40):
        yield _Form(write(truncate(table.caption, length)))


def _write_fix(fix: Fix, *, is_markdown: bool) -> str:
    title = _escape_markdown(fix.title) if is_markdown else fix.title
    return f"{title}:\n{_write_code(fix.command, is_markdown=is_markdown)}"


def _write_excerpt(excerpt: RunbookExcerpt | None, write: Callable[..., str], *, is_markdown: bool) -> str:
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
