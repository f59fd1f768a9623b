"""A message → a mail: plain text and HTML, headers that nothing in an alert can break, the same bytes at each retry.

Mails of one episode refer to one root that was never sent itself, and share one subject, so mail programs show them as
one thread. https://www.rfc-editor.org/rfc/rfc5322#section-3.6.4
"""

import email.policy
import hashlib
from collections.abc import Mapping, Sequence
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from services.relay.channels import wording
from services.relay.model import Alert, Event, Message

ALERTS = 25
SUBJECT = 200
_TEXT = 3_000
_SUMMARY = 500
_LABEL = 200
_LABELS = 20
# 25 such alerts, in two parts, stay under 20 MB even where each character takes 12 bytes as quoted-printable; the
# smallest of the usual limits is 25 MB (https://support.google.com/mail/answer/6584).

_TEMPLATE = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
).get_template("mail.html.j2")


def render(message: Message, sender: Address, recipients: Sequence[str]) -> EmailMessage:
    """The mail, ready to be sent.

    Args:
        message: what to tell.
        sender: for `From`; its domain stands in the Message-ID and the List-ID.
        recipients: for `To`: addresses without names, all of them in one mail.
    """
    root = _message_id(sender.domain, message.incident_id, str(message.episode), *sorted(recipients))
    mail = EmailMessage(policy=email.policy.SMTP)
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Subject"] = subject(message)
    mail["Date"] = message.accepted_at
    mail["Message-ID"] = _message_id(sender.domain, message.delivery_id, *sorted(recipients))
    mail["In-Reply-To"] = root
    mail["References"] = root
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    mail["List-ID"] = f"keypulse alerts <keypulse.{sender.domain}>"
    alerts = wording.listed(message)
    shown, more = [_Shown(alert, links, message) for alert, links in alerts[:ALERTS]], max(0, len(alerts) - ALERTS)
    # Quoted-printable: no line is too long and no byte over 127, whatever the server can take.
    mail.set_content(_text(message, shown, more), cte="quoted-printable")
    mail.add_alternative(_html(message, shown, more), subtype="html", cte="quoted-printable")
    # Python's own boundary is random, and a retry sends the same bytes; nobody who writes an alert knows this one.
    mail.set_boundary(_digest("boundary", message.delivery_id))
    return mail


def subject(message: Message) -> str:
    """The same for every event of an incident, such as `[KMSCryptoNotReady] production / backend`."""
    name, _, where = wording.headline(message.event).partition(" · ")
    return wording.shorten(f"[{name}] {where}".strip(), SUBJECT)


class _Shown:
    """An alert as both parts of the mail show it."""

    def __init__(self, alert: Alert, links: list[wording.Link], message: Message) -> None:
        self.state = str(alert.status)
        self.summary = wording.shorten(wording.summary(alert), _SUMMARY)
        self.description = wording.shorten(wording.description(alert), _TEXT)
        self.when = wording.when(alert)
        self.links = links
        self.labels = _labels(wording.own_labels(alert, message.event))


def _labels(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    pairs = list(wording.ordered(labels))[:_LABELS]
    return [(wording.shorten(key, _LABEL), wording.shorten(value, _LABEL)) for key, value in pairs]


def _text(message: Message, alerts: list[_Shown], more: int) -> str:
    event = message.event
    level = wording.severity(event)
    lines = [
        f"{wording.state(message)}: {wording.headline(event)}",
        " · ".join(filter(None, (wording.counts(event), level))),
    ]
    if note := wording.note(message):
        lines += ["", note]
    for alert in alerts:
        lines += ["", f"* {alert.summary}", f"  {alert.when}"]
        lines += [f"  {line}" for line in alert.description.splitlines()]
        lines += [f"  {link.text}: {link.url}" for link in alert.links]
        lines += [f"  {key} = {value}" for key, value in alert.labels]
    if more:
        lines += ["", f"… and {more} more"]
    lines += ["", *(f"{key} = {value}" for key, value in _labels(event.common_labels))]
    if page := wording.alertmanager(event):
        lines += ["", f"{page.text}: {page.url}"]
    if contacts := wording.contacts(message):
        lines += ["", "Escalate to", *(f"  {role}: {how}" for role, how in contacts.items())]
    return "\n".join(lines) + "\n"


def _html(message: Message, alerts: list[_Shown], more: int) -> str:
    event = message.event
    return _TEMPLATE.render(
        colour=_colour(event),
        state=wording.state(message),
        headline=wording.headline(event),
        counts=wording.counts(event),
        severity=wording.severity(event),
        note=wording.note(message),
        alerts=alerts,
        more=more,
        labels=_labels(event.common_labels),
        contacts=wording.contacts(message),
        page=wording.alertmanager(event),
        receiver=wording.one_line(event.receiver),
    )


def _colour(event: Event) -> str:
    """Behind white text, at a contrast of 5 and more."""
    if wording.is_over(event):
        return "#1a7f37"
    return "#96540a" if wording.severity(event) in {wording.Severity.WARNING, wording.Severity.INFO} else "#b3261e"


def _message_id(domain: str, *parts: str) -> str:
    return f"<{_digest(*parts)}@{domain}>"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()[:40]
