"""A message → a mail: plain text and HTML, headers that nothing in an alert can break, the same bytes at each retry.

25 alerts of the largest size, in two parts, stay under 20 MB even where each character takes 12 bytes as
quoted-printable; the smallest of the usual limits is 25 MB (https://support.google.com/mail/answer/6584).

Mails of one episode are one thread, whatever their subjects, and the subject says what is wrong, or that it is over:

- each refers to one root that was never sent itself, and to the first mail of the episode (RFC 5322, section 3.6.4);
- each has the same Thread-Topic and Thread-Index, by which Outlook groups mails, and not by their subjects
  (https://learn.microsoft.com/en-us/office/client-developer/outlook/mapi/pidtagconversationtopic-canonical-property);
- Gmail begins another conversation where the subject changes, whatever the references, so there the mails of one cause
  are one conversation, and the end is the next
  (https://workspaceupdates.googleblog.com/2019/03/threading-changes-in-gmail-conversation-view.html).
"""

import base64
import email.policy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from email.headerregistry import Address, BaseHeader, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage, MIMEPart
from email.policy import Policy
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.cells import cell_len

from services.relay import text
from services.relay.model import Event, Message, RunbookExcerpt
from services.relay.text import AlertCard, AlertTable, ContextLine, Link

MAX_ALERTS: Final = 25
MAX_ROWS: Final = 60
MAX_CHART_BYTES: Final = 2_000_000
_MAX_TABLES: Final = 5
_MAX_TEXT: Final = 3_000
_MAX_SUMMARY: Final = 500
_MAX_LABEL: Final = 200
_MAX_LABELS: Final = 20
_MAX_BLOCKS: Final = 30


@dataclass(frozen=True, slots=True)
class _Content:
    """What both parts show: the view, cut to a mail's limits, and what is beside it."""

    view: text.View
    counts: str
    """Empty for a single alert, which the state describes."""
    actions: list[Link]
    """What a reader does first."""
    labels: Mapping[str, str]
    receiver: str


def _build_content(message: Message) -> _Content:
    event = message.event
    view = text.build_view(message, max_cards=MAX_ALERTS, max_tables=_MAX_TABLES, max_rows=MAX_ROWS)
    parts = [part if isinstance(part, AlertTable) else _limit_card(part) for part in view.parts]
    acknowledge = [Link("Acknowledge", message.acknowledge_url)] if message.acknowledge_url else []
    return _Content(
        replace(view, parts=parts, excerpt=_limit_excerpt(view.excerpt)),
        counts=view.counts if len(event.alerts) + event.unlisted_count != 1 else "",
        actions=[*acknowledge, *view.incident_links],
        labels=_limit_labels(event.common_labels),
        receiver=text.truncate(text.clean_line(event.receiver), _MAX_LABEL),
    )


def _limit_card(card: AlertCard) -> AlertCard:
    """Headed by its title, or by its summary where the mail's title is the same; else the summary may be empty."""
    summary = text.truncate(card.summary, _MAX_SUMMARY)
    return card._replace(
        title=card.title or summary,
        summary=summary if card.title and summary != card.title else "",
        value=text.truncate(card.value, _MAX_LABEL),
        description=text.truncate(card.description, _MAX_TEXT),
        labels=_limit_labels(card.labels),
    )


def _limit_excerpt(excerpt: RunbookExcerpt | None) -> RunbookExcerpt | None:
    if excerpt is None or not excerpt.blocks:
        return None
    blocks = excerpt.blocks[:_MAX_BLOCKS]
    return RunbookExcerpt(
        text.clean_line(excerpt.alertname),
        tuple(block._replace(text=text.truncate(text.clean_text(block.text), _MAX_TEXT)) for block in blocks),
        excerpt.is_truncated or len(blocks) < len(excerpt.blocks),
    )


def _limit_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return text.build_distinct(text.limit_labels(labels, _MAX_LABELS, _MAX_LABEL))


def _build_plain_text(content: _Content) -> str:
    """The lines, with an empty one between two parts."""
    view = content.view
    alerts = (_format_table(part) if isinstance(part, AlertTable) else _format_alert(part) for part in view.parts)
    state = "" if view.subject.startswith(view.state) else view.state  # said once
    facts = " · ".join(filter(None, (state, view.severity, content.counts)))
    paragraphs: list[Iterable[str]] = [
        filter(None, [view.subject, view.headline, facts]),
        _format_links(content.actions, ""),
        filter(None, [view.remark]),
        [*(["What to do"] if view.fixes else []), *(f"  {fix.title}:\n    {fix.command}" for fix in view.fixes)],
        _format_context(view.context),
        *alerts,
        filter(None, [view.more, view.omission]),
        _format_excerpt(view.excerpt),
        _format_labels(content.labels),
        [f"Sent by keypulse for the receiver {content.receiver}.", *_format_links(view.group_links, "")],
        ["Escalate to", *(f"  {role}: {address}" for role, address in view.contacts.items())] if view.contacts else [],
    ]
    return "\n\n".join(filter(None, map("\n".join, paragraphs))) + "\n"


def _format_context(context: list[ContextLine]) -> Iterator[str]:
    for line in context:
        if len(line.items) == 1:
            yield str(line)
        else:
            yield f"{line.name}:"
            yield from (f"  - {item}" for item in line.items)


def _format_alert(card: AlertCard) -> Iterator[str]:
    yield f"* {card.title}"
    facts = filter(None, [card.summary, card.period, f"now {card.value}" if card.value else ""])
    yield from (f"  {line}" for line in [*facts, *card.description.splitlines()])
    yield from _format_links(card.links)
    yield from (f"  {label}" for label in _format_labels(card.labels))


def _format_table(table: AlertTable) -> Iterator[str]:
    lines = [table.columns, *table.rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    yield f"* {table.caption}"
    yield from (f"    {_align(line, widths)}" for line in lines if line)
    if table.more:
        yield f"    {table.more}"
    yield from _format_links(table.links)


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
    return "   ".join(padded).rstrip()


def _format_labels(labels: Mapping[str, str]) -> Iterator[str]:
    return (f"{key} = {value}" for key, value in labels.items())


def _format_links(links: list[Link], indent: str = "  ") -> Iterator[str]:
    return (f"{indent}{link.text}: {link.url}" for link in links)


def _format_excerpt(excerpt: RunbookExcerpt | None) -> Iterator[str]:
    if excerpt is None:
        return
    yield f"From the runbook: {excerpt.alertname}"
    number = 0
    for block in excerpt.blocks:
        number += block.kind == "step"
        first, *others = block.text.splitlines() or [""]
        start = {"step": f"  {number}. ", "code": "       ", "paragraph": "  "}[block.kind]
        yield f"{start}{first}"
        yield from (" " * len(start) + line for line in others)
    if excerpt.is_truncated:
        yield "  … the runbook goes on"


MAX_SUBJECT: Final = 200


class _IdHeader(BaseHeader):
    """Identifiers in angle brackets. Python would encode one that is too long for a line, and no program reads that."""

    max_count = 1

    @classmethod
    def parse(cls, value: str, found: dict[str, Any]) -> None:
        UnstructuredHeader.parse(value, found)

    def fold(self, *, policy: Policy) -> str:
        line = f"{self.name}: {self}"
        if len(line) > (policy.max_line_length or len(line)):
            line = line.replace("> <", f">{policy.linesep} <")
        return line + policy.linesep


_HEADERS: Final = HeaderRegistry()
for _name in ("in-reply-to", "references", "list-id"):
    _HEADERS.map_to_type(_name, _IdHeader)
_POLICY: Final = email.policy.SMTP.clone(header_factory=_HEADERS)

_TEMPLATE = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
).get_template("mail.html.j2")


def build_mail(message: Message, sender: Address, recipients: Sequence[str]) -> EmailMessage:
    """One mail to all recipients, ready to be sent. The sender's domain is in the Message-ID and the List-ID."""
    delivery_id = message.task.delivery_id
    mail = EmailMessage(policy=_POLICY)
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    content = _build_content(message)
    mail["Subject"] = _format_subject(content.view)
    mail["Date"] = message.task.accepted_at
    mail["Message-ID"] = _build_message_id(sender.domain, delivery_id, *sorted(recipients))
    _add_thread(mail, message, sender.domain, recipients)
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    mail["List-ID"] = f"keypulse alerts <keypulse.{sender.domain}>"
    chart = message.chart if message.chart is not None and len(message.chart) <= MAX_CHART_BYTES else None
    chart_id = _build_message_id(sender.domain, "chart", delivery_id)
    # Quoted-printable: no line is too long and no byte over 127, whatever the server can take.
    mail.set_content(_build_plain_text(content), cte="quoted-printable")
    page = _build_html(message.event, content, f"cid:{chart_id.strip('<>')}" if chart else "")
    mail.add_alternative(page, subtype="html", cte="quoted-printable")
    if chart:
        html = mail.get_body(("html",))
        assert isinstance(html, MIMEPart)  # noqa: S101  # it has just been added
        html.add_related(chart, "image", "png", cid=chart_id, filename="chart.png", disposition="inline")
    # Python's own boundaries are random, and a retry sends the same bytes; an alert's author cannot guess these.
    for number, part in enumerate(part for part in mail.walk() if part.is_multipart()):
        part.set_boundary(_hash_parts("boundary", delivery_id, str(number)))
    return mail


def build_proof_mail(sender: Address, to: Sequence[str], proven: Sequence[str], now: datetime) -> EmailMessage:
    """A mail to `to`, which proves the server that takes those to `proven`. A filter can delete it by its List-ID."""
    mail = EmailMessage(policy=_POLICY)
    mail["From"] = sender
    mail["To"] = ", ".join(to)
    mail["Subject"] = "keypulse proves this mail server: nothing is wrong"
    mail["Date"] = now
    mail["Message-ID"] = _build_message_id(sender.domain, "proof", now.isoformat(), *to, *proven)
    mail["Auto-Submitted"] = "auto-generated"
    mail["List-ID"] = f"keypulse proofs <keypulse-proofs.{sender.domain}>"
    purpose = f"By this server and login keypulse sends its alerts to {', '.join(proven)}."
    mail.set_content(f"Nothing is wrong, and there is nothing to do.\n\n{purpose}\n", cte="quoted-printable")
    return mail


def _format_subject(view: text.View) -> str:
    """The cause with its state, then the class; without numbers, so that repeats have the same.

    Commas, since a header in ASCII is readable everywhere, even in a notification of a small program.
    """
    headline = view.headline.replace(" · ", ", ")
    return text.truncate(f"{view.subject} [{headline}]" if headline else view.subject.replace(" · ", ", "), MAX_SUBJECT)


def _add_thread(mail: EmailMessage, message: Message, domain: str, recipients: Sequence[str]) -> None:
    task = message.task
    episode = (task.incident_id, str(task.episode), *sorted(recipients))
    root = _build_message_id(domain, *episode)
    first = (task.first_receipt or {}).get("message_id", root)
    mail["In-Reply-To"] = first
    mail["References"] = " ".join(dict.fromkeys((root, first)))
    mail["Thread-Topic"] = text.truncate(text.format_headline(message.event), MAX_SUBJECT)
    # Its 22 bytes begin with 1 and a time that nothing shows; then the conversation's id.
    mail["Thread-Index"] = base64.b64encode(b"\1" + hashlib.sha256("\n".join(episode).encode()).digest()[:21]).decode()


def _build_html(event: Event, content: _Content, chart_url: str) -> str:
    # Behind white text, at a contrast of 5 and more.
    colour = "#1a7f37" if text.is_resolved(event) else "#b3261e" if content.view.is_urgent else "#96540a"
    return _TEMPLATE.render(content=content, view=content.view, colour=colour, chart_url=chart_url)


def _build_message_id(domain: str, *parts: str) -> str:
    return f"<{_hash_parts(*parts)}@{domain}>"


def _hash_parts(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()[:40]
