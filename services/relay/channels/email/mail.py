"""A message → a mail: plain text and HTML, headers that nothing in an alert can break, the same bytes at each retry.

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
from collections.abc import Sequence
from email.headerregistry import Address, BaseHeader, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage, MIMEPart
from email.policy import Policy
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from services.relay import text
from services.relay.channels.email.content import MailContent, build_content
from services.relay.channels.email.plain_text import build_plain_text
from services.relay.model import Event, Message

MAX_SUBJECT: Final = 200


class _IdHeader(BaseHeader):
    """Identifiers in angle brackets. Python would encode one that is too long for a line, and no program reads that."""

    max_count = 1

    @classmethod
    def parse(cls, value: str, found: dict[str, Any]) -> None:
        """As of any header that Python does not know."""
        UnstructuredHeader.parse(value, found)

    def fold(self, *, policy: Policy) -> str:
        """On a line for each, where they are long."""
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
    """The mail, ready to be sent.

    Args:
        message: to be sent.
        sender: for `From`; its domain is in the Message-ID and the List-ID.
        recipients: for `To`: addresses without names, all of them in one mail.
    """
    delivery_id = message.task.delivery_id
    mail = EmailMessage(policy=_POLICY)
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Subject"] = format_subject(message)
    mail["Date"] = message.task.accepted_at
    mail["Message-ID"] = _build_message_id(sender.domain, delivery_id, *sorted(recipients))
    _add_thread(mail, message, sender.domain, recipients)
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    mail["List-ID"] = f"keypulse alerts <keypulse.{sender.domain}>"
    content = build_content(message)
    chart_id = _build_message_id(sender.domain, "chart", delivery_id)
    # Quoted-printable: no line is too long and no byte over 127, whatever the server can take.
    mail.set_content(build_plain_text(content), cte="quoted-printable")
    mail.add_alternative(_build_html(message.event, content, chart_id), subtype="html", cte="quoted-printable")
    if content.has_chart and message.chart is not None:
        _add_chart(mail, message.chart, chart_id)
    # Python's own boundaries are random, and a retry sends the same bytes; an alert's author cannot guess these.
    for number, part in enumerate(part for part in mail.walk() if part.is_multipart()):
        part.set_boundary(_hash_parts("boundary", delivery_id, str(number)))
    return mail


def format_subject(message: Message) -> str:
    """The cause with its state, then the class; without numbers, so that repeats have the same.

    Commas, since a header in ASCII is readable everywhere, even in a notification of a small program.
    """
    headline = text.format_class(message).replace(" · ", ", ")
    subject = text.format_subject(message)
    return text.truncate(f"{subject} [{headline}]" if headline else subject.replace(" · ", ", "), MAX_SUBJECT)


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


def _add_chart(mail: EmailMessage, chart: bytes, chart_id: str) -> None:
    html = mail.get_body(("html",))
    assert isinstance(html, MIMEPart)  # noqa: S101  # the caller has just added it
    html.add_related(chart, "image", "png", cid=chart_id, filename="chart.png", disposition="inline")


def _build_html(event: Event, content: MailContent, chart_id: str) -> str:
    return _TEMPLATE.render(
        content=content,
        colour=_choose_colour(event),
        chart_url=f"cid:{chart_id.strip('<>')}" if content.has_chart else "",
    )


def _choose_colour(event: Event) -> str:
    """Behind white text, at a contrast of 5 and more."""
    if text.is_resolved(event):
        return "#1a7f37"
    return "#96540a" if text.find_worst_severity(event) in {text.Severity.WARNING, text.Severity.INFO} else "#b3261e"


def _build_message_id(domain: str, *parts: str) -> str:
    return f"<{_hash_parts(*parts)}@{domain}>"


def _hash_parts(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()[:40]
