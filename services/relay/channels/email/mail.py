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

from services.relay import text
from services.relay.model import Alert, Event, Message

MAX_ALERTS = 25
MAX_SUBJECT = 200
_MAX_TEXT = 3_000
_MAX_SUMMARY = 500
_MAX_LABEL = 200
_MAX_LABELS = 20
# 25 such alerts, in two parts, stay under 20 MB even where each character takes 12 bytes as quoted-printable; the
# smallest of the usual limits is 25 MB (https://support.google.com/mail/answer/6584).

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
    root = _build_message_id(sender.domain, message.task.incident_id, str(message.task.episode), *sorted(recipients))
    mail = EmailMessage(policy=email.policy.SMTP)
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Subject"] = format_subject(message)
    mail["Date"] = message.task.accepted_at
    mail["Message-ID"] = _build_message_id(sender.domain, message.task.delivery_id, *sorted(recipients))
    mail["In-Reply-To"] = root
    mail["References"] = root
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    mail["List-ID"] = f"keypulse alerts <keypulse.{sender.domain}>"
    alerts = text.list_alerts(message)
    alert_count, more = (
        [_MailAlert(alert, links, message) for alert, links in alerts[:MAX_ALERTS]],
        max(0, len(alerts) - MAX_ALERTS),
    )
    # Quoted-printable: no line is too long and no byte over 127, whatever the server can take.
    mail.set_content(_build_text(message, alert_count, more), cte="quoted-printable")
    mail.add_alternative(_build_html(message, alert_count, more), subtype="html", cte="quoted-printable")
    # Python's own boundary is random, and a retry sends the same bytes; an alert's author cannot guess this one.
    mail.set_boundary(_hash_parts("boundary", message.task.delivery_id))
    return mail


def format_subject(message: Message) -> str:
    """The same for every event of an incident, such as `[KMSCryptoNotReady] production / backend`."""
    name, _, location = text.format_headline(message.event).partition(" · ")
    return text.truncate(f"[{name}] {location}".strip(), MAX_SUBJECT)


class _MailAlert:
    """An alert as both parts of the mail show it."""

    def __init__(self, alert: Alert, links: list[text.Link], message: Message) -> None:
        self.state = str(alert.status)
        self.summary = text.truncate(text.format_summary(alert), _MAX_SUMMARY)
        self.description = text.truncate(text.format_description(alert), _MAX_TEXT)
        self.period = text.format_period(alert)
        self.links = links
        self.labels = _limit_labels(text.select_own_labels(alert, message.event))


def _limit_labels(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    return text.limit_labels(labels, _MAX_LABELS, _MAX_LABEL)


def _build_text(message: Message, alerts: list[_MailAlert], more: int) -> str:
    event = message.event
    level = text.find_worst_severity(event)
    lines = [
        f"{text.format_state(message)}: {text.format_headline(event)}",
        " · ".join(filter(None, (text.format_counts(event), level))),
    ]
    if remark := text.format_remark(message):
        lines += ["", remark]
    for alert in alerts:
        lines += ["", f"* {alert.summary}", f"  {alert.period}"]
        lines += [f"  {line}" for line in alert.description.splitlines()]
        lines += [f"  {link.text}: {link.url}" for link in alert.links]
        lines += [f"  {key} = {value}" for key, value in alert.labels]
    if more:
        lines += ["", f"… and {more} more"]
    lines += ["", *(f"{key} = {value}" for key, value in _limit_labels(event.common_labels))]
    if group_links := text.list_group_links(event):
        lines += ["", *(f"{link.text}: {link.url}" for link in group_links)]
    if contacts := text.select_contacts(message):
        lines += ["", "Escalate to", *(f"  {role}: {address}" for role, address in contacts.items())]
    return "\n".join(lines) + "\n"


def _build_html(message: Message, alerts: list[_MailAlert], more: int) -> str:
    event = message.event
    return _TEMPLATE.render(
        colour=_choose_colour(event),
        state=text.format_state(message),
        headline=text.format_headline(event),
        counts=text.format_counts(event),
        severity=text.find_worst_severity(event),
        remark=text.format_remark(message),
        alerts=alerts,
        more=more,
        labels=_limit_labels(event.common_labels),
        contacts=text.select_contacts(message),
        group_links=text.list_group_links(event),
        receiver=text.clean_line(event.receiver),
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
