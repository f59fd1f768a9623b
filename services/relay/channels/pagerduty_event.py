"""A message → an event of PagerDuty's Events API v2, within its limits whatever the alerts contain.

An event may have 512 KB. What a person needs first is added first: the commands that fix it, the relay's remark, how
many alerts, whom to call, the context, the alerts, the runbook's steps. What no longer fits is left out, and counted.
https://developer.pagerduty.com/docs/send-alert-event
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from services.relay.http_session import encode_json
from services.relay.model import Alert, Event, Message, Status
from services.relay.text import (
    AlertCard,
    AlertTable,
    Severity,
    arrange_alerts,
    clean_line,
    clean_text,
    find_worst_severity,
    format_alert_title,
    format_class,
    format_counts,
    format_description,
    format_headline,
    format_omission,
    format_period,
    format_remark,
    format_subject,
    format_summary,
    format_title,
    is_resolved,
    limit_labels,
    list_alerts,
    list_context,
    list_fixes,
    list_images,
    list_message_links,
    select_contacts,
    truncate,
)

Action = Literal["resolve_earlier", "trigger", "acknowledge", "resolve"]
"""What an event does. `resolve_earlier` resolves the incident of an earlier episode."""

MAX_SUMMARY: Final = 1_024
MAX_LINKS: Final = 20
MAX_IMAGES: Final = 3
MAX_DETAILS_BYTES: Final = 400_000  # of the 512 KB that an event may have
_MAX_TEXT: Final = 2_000
_MAX_LABEL: Final = 500
_MAX_LABELS: Final = 64
_MAX_CARDS: Final = 100
_MAX_TABLES: Final = 10
_MAX_ROWS: Final = 100


def build_event(message: Message, action: Action) -> dict[str, Any]:
    """The event without its routing key, within PagerDuty's limits whatever the alerts hold."""
    event = message.event
    if action in ("acknowledge", "resolve_earlier"):  # of no state of the event
        return {"event_action": action.removesuffix("_earlier"), "dedup_key": build_dedup_key(event)}
    alerts = list_alerts(message)
    group_links = list_message_links(message)
    links = [link for _, found in alerts for link in found]

    def common(name: str, otherwise: str) -> str:
        return truncate(clean_line(event.common_labels.get(name, "")) or otherwise, 255)

    rendered: dict[str, Any] = {
        "event_action": action,
        "dedup_key": build_dedup_key(event),
        "client": "keypulse",
        "payload": {
            "summary": truncate(_format_summary(message), MAX_SUMMARY),
            "severity": find_worst_severity(event) or Severity.ERROR,  # Alertmanager's default, too
            "source": common("instance", common("service", "keypulse")),
            "component": common("service", ""),
            "group": common("env", ""),
            "class": common("alertname", ""),
            "timestamp": min((alert.starts_at for alert, _ in alerts), default=message.task.accepted_at).isoformat(),
            "custom_details": _fit_details(message),
        },
        "links": [{"href": link.url, "text": link.text} for link in (*links[: MAX_LINKS - 2], *group_links[1:])],
    }
    if images := list_images(message)[:MAX_IMAGES]:
        rendered["images"] = [{"src": url, "href": url, "alt": format_title(message)} for url in images]
    if group_links:
        rendered["client_url"] = group_links[0].url
    return rendered


def build_dedup_key(event: Event) -> str:
    """The key of the incident in PagerDuty: Alertmanager's own, and another for each source."""
    named = f"{event.source}\n{event.group_key}" if event.source else event.group_key
    return hashlib.sha256(named.encode(errors="surrogatepass")).hexdigest()


def _format_summary(message: Message) -> str:
    """The cause first, then how many alerts and which; without a cause the headline and the first alert's summary."""
    event = message.event
    several = format_counts(event) if len(event.alerts) + event.unlisted_count > 1 else ""
    late_resolve = "already resolved" if message.task.firing_undelivered and is_resolved(event) else ""
    aside = ", ".join(filter(None, (several, late_resolve)))
    counted = f" ({aside})" if aside else ""
    if headline := format_class(message):
        return f"{format_subject(message)}{counted} · {headline}"
    firing_first = sorted(event.alerts, key=lambda alert: alert.status is Status.RESOLVED)
    first = format_summary(firing_first[0]) if firing_first else format_counts(event)
    title = format_subject(message) if is_resolved(event) and not late_resolve else format_headline(event)
    return f"{title}{counted}: {first}"


def _fit_details(message: Message) -> dict[str, Any]:
    """The details in the order of their worth, each as far as it fits."""
    listed = list(_list_details(message))
    if _measure(dict(listed)) <= MAX_DETAILS_BYTES:
        return dict(listed)
    details: dict[str, Any] = {}
    left = MAX_DETAILS_BYTES
    for name, value in listed:
        fit = {name: value} if _measure({name: value}) <= left else _shorten(name, value, left - _measure(name) - 50)
        details |= fit
        left -= _measure(fit)
    return details


def _shorten(name: str, value: Any, left: int) -> dict[str, Any]:
    """Of a list as many as fit, and how many do not; of anything else, nothing."""
    fit: list[Any] = []
    for each in value if isinstance(value, list) else ():
        left -= _measure(each)
        if left < 0:
            break
        fit.append(each)
    return {name: fit, f"{name}_left_out": len(value) - len(fit)} if fit else {}


def _list_details(message: Message) -> Iterator[tuple[str, Any]]:
    event = message.event
    if fixes := list_fixes(message):
        yield "fix", [{"do": fix.title, "run": fix.command} for fix in fixes]
    if remark := format_remark(message):
        yield "remark", remark
    yield "alerts", format_counts(event)
    if omission := format_omission(event):
        yield "missing", omission
    if contacts := select_contacts(message):
        yield "escalate_to", contacts
    if context := list_context(message):
        yield "context", {line.name: list(line.items) if len(line.items) > 1 else line.items[0] for line in context}
    arrangement = arrange_alerts(message, max_cards=_MAX_CARDS, max_tables=_MAX_TABLES, max_rows=_MAX_ROWS)
    group_title = format_title(message)
    yield (
        "listed",
        [
            _build_table(part) if isinstance(part, AlertTable) else _build_card(part, message, group_title)
            for part in arrangement.parts
        ],
    )
    if arrangement.more:
        yield "more", arrangement.more
    if message.excerpt is not None:
        yield "runbook", [truncate(clean_text(block.text), _MAX_TEXT) for block in message.excerpt.blocks]


def _build_card(card: AlertCard, message: Message, group_title: str) -> dict[str, Any]:
    alert: Alert = card.alert
    title = format_alert_title(alert)
    value = truncate(clean_line(message.current_values.get(alert.fingerprint, "")), _MAX_LABEL)
    describes = alert.status is Status.FIRING or message.task.firing_undelivered
    return {
        **({"title": title} if title not in ("", group_title) else {}),
        "state": format_period(alert, message.zone),
        **({"now": value} if value else {}),
        "summary": truncate(format_summary(alert), _MAX_TEXT),
        **({"description": truncate(format_description(alert), _MAX_TEXT)} if describes else {}),
        "labels": dict(limit_labels(alert.labels, _MAX_LABELS, _MAX_LABEL)),
    }


def _build_table(table: AlertTable) -> dict[str, Any]:
    rows: Mapping[str, Any] = {"columns": _join_cells(table.columns), "rows": [_join_cells(row) for row in table.rows]}
    return {"alerts": table.caption, **rows, **({"more": table.more} if table.more else {})}


def _join_cells(cells: tuple[str, ...]) -> str:
    return " | ".join(cells)


def _measure(value: object) -> int:
    return len(encode_json(value).encode()) + 1
