"""What a mail shows, within limits whatever the alerts contain; the plain text and the HTML say the same.

25 alerts of that size, in two parts, stay under 20 MB even where each character takes 12 bytes as quoted-printable; the
smallest of the usual limits is 25 MB (https://support.google.com/mail/answer/6584).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.relay import text
from services.relay.model import Message, RunbookExcerpt, Status

MAX_ALERTS: Final = 25
MAX_ROWS: Final = 60
MAX_CHART_BYTES: Final = 2_000_000
_MAX_TABLES: Final = 5
_MAX_TEXT: Final = 3_000
_MAX_SUMMARY: Final = 500
_MAX_LABEL: Final = 200
_MAX_LABELS: Final = 20
_MAX_BLOCKS: Final = 30

Labels = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class MailAlert:
    """An alert that is shown by itself."""

    heading: str
    summary: str
    """What the heading does not say; often empty."""
    state: str
    period: str
    value: str
    """What its expression gives now; empty if unknown."""
    description: str
    links: list[text.Link]
    labels: Labels


@dataclass(frozen=True, slots=True)
class MailContent:
    """What both parts show, in this order; what is empty is left out."""

    title: str
    """Without the state."""
    subject: str
    """With it."""
    state: str
    """With the duration, once it is over."""
    severity: str
    headline: str
    """The class and the labels of the group; empty where they are the title."""
    counts: str
    """Empty for a single alert, which the state describes."""
    actions: list[text.Link]
    """What a reader does first."""
    remark: str
    omission: str
    fixes: list[text.Fix]
    context: list[text.ContextLine]
    parts: list[MailAlert | text.AlertTable]
    more: str
    has_chart: bool
    excerpt: RunbookExcerpt | None
    labels: Labels
    contacts: Mapping[str, str]
    group_links: list[text.Link]
    receiver: str


def build_content(message: Message) -> MailContent:
    """What the mail of a message shows."""
    event = message.event
    resolved = text.is_resolved(event)
    title = text.format_title(message)
    arrangement = text.arrange_alerts(message, max_cards=MAX_ALERTS, max_tables=_MAX_TABLES, max_rows=MAX_ROWS)
    return MailContent(
        title=text.put_into_past(title) if resolved else title,
        subject=text.format_subject(message),
        state=text.format_end(message) if resolved else "Firing",
        severity=text.find_worst_severity(event) or "",
        headline=text.format_class(message),
        counts=text.format_counts(event) if len(event.alerts) + event.unlisted_count != 1 else "",
        actions=[
            text.Link(name, url)
            for name, url in (("Acknowledge", message.acknowledge_url), ("Incident", message.incident_url))
            if url
        ],
        remark=text.format_remark(message),
        omission=text.format_omission(event),
        fixes=text.list_fixes(message),
        context=text.list_context(message),
        parts=[
            part if isinstance(part, text.AlertTable) else _build_alert(part, message, title)
            for part in arrangement.parts
        ],
        more=arrangement.more,
        has_chart=message.chart is not None and len(message.chart) <= MAX_CHART_BYTES,
        excerpt=_limit_excerpt(message.excerpt),
        labels=_limit_labels(event.common_labels),
        contacts=text.select_contacts(message),
        group_links=text.list_group_links(event),
        receiver=text.truncate(text.clean_line(event.receiver), _MAX_LABEL),
    )


def _build_alert(card: text.AlertCard, message: Message, title: str) -> MailAlert:
    """Its own title heads it, unless the mail's title says the same: then its summary does.

    A resolved alert has no description, which says what would be wrong now, unless nobody was told of it before.
    """
    alert = card.alert
    is_over = alert.status is Status.RESOLVED
    own_title, summary = text.format_alert_title(alert), text.truncate(text.format_summary(alert), _MAX_SUMMARY)
    is_titled = own_title not in ("", title)
    heading = own_title if is_titled else summary
    return MailAlert(
        heading=text.put_into_past(heading) if is_over else heading,
        summary=summary if is_titled and summary != own_title else "",
        state=str(alert.status),
        period=text.format_period(alert, message.zone),
        value=text.truncate(text.clean_line(message.current_values.get(alert.fingerprint, "")), _MAX_LABEL),
        description=""
        if is_over and not message.task.firing_undelivered
        else text.truncate(text.format_description(alert), _MAX_TEXT),
        links=card.links,
        labels=_limit_labels(text.select_own_labels(alert, message.event)),
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


def _limit_labels(labels: Mapping[str, str]) -> Labels:
    return text.limit_labels(labels, _MAX_LABELS, _MAX_LABEL)
