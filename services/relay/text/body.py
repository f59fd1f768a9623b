"""What every channel shows of a message, without mark-up: `build_view` for one incident, `format_digest` for many.

Many alerts of one rule are a table, and what is left out is counted. Resolved alerts keep a part of the rows, so that
no number of firing ones hides them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Final, NamedTuple
from urllib.parse import quote

from services.relay.model import MAX_EPISODES, Alert, DigestEntry, Event, Links, Message, RunbookExcerpt, Status
from services.relay.text.strings import (
    MAX_SHORT_URL,
    Link,
    clean_line,
    clean_text,
    fit_first,
    format_duration,
    format_period,
    format_short_period,
    format_short_time,
    sanitize_url,
    truncate,
)
from services.relay.text.title import (
    MAX_REMARK,
    WORST_FIRST,
    Severity,
    find_worst_severity,
    format_alert_title,
    format_class,
    format_counts,
    format_description,
    format_end,
    format_omission,
    format_remark,
    format_subject,
    format_summary,
    format_title,
    is_resolved,
    select_contacts,
    select_own_labels,
    sort_labels,
)
from shared.kms.alert_fixes import list_fixes as list_alert_fixes
from shared.kms.fixes import Fix

ACKNOWLEDGED: Final = "Acknowledged"
ESCALATED: Final = "Escalated"
LAST_MESSAGE: Final = "Last message"
ALSO_FIRING: Final = "Also firing"
HOW_OFTEN: Final = "How often"
MAX_RELATED: Final = 5
_MAX_NAMES: Final = 3
"""Alerts that a change names."""
_MAX_NAME: Final = 80
_MAX_RELATED_TITLE: Final = 200


class ContextLine(NamedTuple):
    """One fact, such as `Also firing`, with its items; shown on one line, or as a short list."""

    name: str
    items: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {'; '.join(self.items)}"


def list_context(message: Message) -> list[ContextLine]:
    """What is known of the incident, the most urgent first; clean text without mark-up."""
    lines = (
        ContextLine(ACKNOWLEDGED, _format_acknowledgement(message)),
        ContextLine(ESCALATED, _format_escalation(message)),
        ContextLine(LAST_MESSAGE, _format_changes(message)),
        ContextLine(ALSO_FIRING, _format_related(message)),
        ContextLine(HOW_OFTEN, _format_frequency(message)),
    )
    return [line for line in lines if line.items]


def _format_acknowledgement(message: Message) -> tuple[str, ...]:
    context = message.task.context
    if not context.acknowledged_by:
        return ()
    at = f" at {format_short_time(context.acknowledged_at, message.zone)}" if context.acknowledged_at else ""
    return (f"by {truncate(clean_line(context.acknowledged_by), _MAX_NAME)}{at}",)


def _format_escalation(message: Message) -> tuple[str, ...]:
    context = message.task.context
    if not context.escalated_to:
        return ()
    at = f" at {format_short_time(context.escalated_at, message.zone)}" if context.escalated_at else ""
    return (f"to {', '.join(map(clean_line, context.escalated_to))}{at}, since nobody had acknowledged",)


def _format_changes(message: Message) -> tuple[str, ...]:
    context, event = message.task.context, message.event
    if context.previous_at is None:
        return ()
    span = format_duration(message.task.accepted_at - context.previous_at)
    if not context.previous_alerts:  # it was too large to be compared
        return (f"{span} ago",)
    new, over = select_changed(message, Status.FIRING), select_changed(message, Status.RESOLVED)
    changes = ", ".join(filter(None, (_format_change(new, "new", event), _format_change(over, "resolved", event))))
    return (f"{span} ago; {f'since then {changes}' if changes else 'nothing has changed'}",)


def select_changed(message: Message, status: Status) -> list[Alert]:
    """The alerts that have this status, and had not at the previous message of the episode on the channel."""
    before = message.task.context.previous_alerts
    return [each for each in message.event.alerts if each.status is status is not before.get(each.fingerprint)]


def _format_change(alerts: list[Alert], change: str, event: Event) -> str:
    """Such as `2 new (backend-1:8000; backend-2:8000)`."""
    if not alerts:
        return ""
    names = [" ".join(map(clean_line, select_own_labels(alert, event).values())) for alert in alerts[:_MAX_NAMES]]
    named = [truncate(name, _MAX_NAME) for name in names if name]
    named += ["…"] if named and len(alerts) > len(named) else []
    return f"{len(alerts)} {change}" + (f" ({'; '.join(named)})" if named else "")


def _format_related(message: Message) -> tuple[str, ...]:
    context = message.task.context
    listed = context.related[:MAX_RELATED]
    more = max(context.related_count, len(context.related)) - len(listed)
    items = [
        f"{truncate(clean_line(incident.title), _MAX_RELATED_TITLE)}, "
        f"since {format_short_time(incident.since, message.zone)}"
        for incident in listed
    ]
    return (*items, *([f"… and {more} more"] if more else []))


def _format_frequency(message: Message) -> tuple[str, ...]:
    number = message.task.context.episodes_in_7_days
    if not number:
        return ()
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    often = f"{number} times or more" if number >= MAX_EPISODES else f"{number}{ending} time"
    return (f"{often} in 7 days",)


_SHORTEST_TITLE: Final = 40
"""Characters to which a title is cut at most, before a digest leaves incidents out."""


def sort_entries(entries: Iterable[DigestEntry]) -> list[DigestEntry]:
    """By service, the worst one first; in each the firing ones first, and the worst of them."""
    by_service: dict[str, list[DigestEntry]] = {}
    for entry in sorted(entries, key=_rank_entry):
        by_service.setdefault(entry.service, []).append(entry)
    services = sorted(by_service, key=lambda service: (_rank_entry(by_service[service][0])[:2], service))
    return [entry for service in services for entry in by_service[service]]


def _rank_entry(entry: DigestEntry) -> tuple[bool, int, str]:
    return entry.status is Status.RESOLVED, WORST_FIRST.index(entry.severity), entry.title


def group_entries(message: Message) -> list[tuple[str, list[DigestEntry]]]:
    """The entries of a digest by service, in their order; `no service` where they name none."""
    groups = groupby(message.digest, key=lambda entry: entry.service)
    return [(service or "no service", list(entries)) for service, entries in groups]


def format_digest_title(message: Message) -> str:
    """How many incidents, such as `37 incidents: 5 critical, 30 others firing, 2 resolved`."""
    entries = message.digest
    firing = [entry for entry in entries if entry.status is Status.FIRING]
    critical = sum(entry.severity == Severity.CRITICAL for entry in firing)
    others = len(firing) - critical
    numbers = (
        (critical, "critical"),
        (others, ("other firing" if others == 1 else "others firing") if critical else "firing"),
        (len(entries) - len(firing), "resolved"),
    )
    incidents = "1 incident" if len(entries) == 1 else f"{len(entries)} incidents"
    return f"{incidents}: {', '.join(f'{number} {state}' for number, state in numbers if number)}"


def format_digest_reason(message: Message) -> str:
    """Why there is one message for all, on one line, with the relay's own remarks."""
    own = sum(entry.is_named_only for entry in message.digest)
    follow = "The critical one gets" if own == 1 else f"The {own} critical ones get"
    remarks = dict.fromkeys(clean_line(member.task.remark) for member in message.task.members)
    parts = (
        "More incidents wait than this channel takes messages.",
        f"{follow} a message of {'its' if own == 1 else 'their'} own as well." if own else "",
        truncate(" ".join(filter(None, remarks)), MAX_REMARK),
    )
    return " ".join(filter(None, parts))


def format_entry(entry: DigestEntry, limit: int = 0) -> str:
    """One incident on one line. A limit of its title's characters also leaves out how many alerts it has."""
    is_over = entry.status is Status.RESOLVED
    mark = "🟢" if is_over else "🟠" if entry.severity in {Severity.WARNING, Severity.INFO} else "🔴"
    counts = f" ({entry.counts})" if entry.counts and not entry.counts.startswith("1 ") else ""
    return f"{mark} {truncate(entry.title, limit) if limit else entry.title + counts}"


def format_digest(message: Message, limit: int) -> str:
    """A digest as plain text of at most `limit` characters: why it is one, then each service with its incidents.

    Titles are shortened, and links left out, before incidents are; the last line then says how many.
    """
    for length, links in ((0, True), (0, False), (80, False), (_SHORTEST_TITLE, False)):
        lines = list(_list_lines(message, length, links=links))
        if sum(map(len, lines)) + len(lines) <= limit:
            return "\n".join(lines)
    first = fit_first(lines, limit - _SHORTEST_TITLE, lambda line: len(line) + 1) or lines[:1]
    return truncate("\n".join([*first, f"… and {len(lines) - len(first)} more lines"]), limit)


def _list_lines(message: Message, length: int, *, links: bool) -> Iterable[str]:
    yield format_digest_reason(message)
    for service, entries in group_entries(message):
        yield f"\n{service}: {len(entries)}"
        for entry in entries:
            yield format_entry(entry, length)
            if links and entry.link:
                yield entry.link


MAX_FIXES: Final = 6
"""Commands of one message."""


def list_fixes(message: Message) -> list[Fix]:
    """The commands that fix the alerts that fire, each once; at most `MAX_FIXES`, none once the group is resolved."""
    if is_resolved(message.event):
        return []
    firing = (alert for alert in message.event.alerts if alert.status is Status.FIRING)
    commands = dict.fromkeys(fix for alert in firing for fix in list_alert_fixes(alert.annotations, alert.labels))
    return list(islice(commands, MAX_FIXES))


_LABEL_NAME = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")


def list_alerts(message: Message) -> list[tuple[Alert, list[Link]]]:
    """The alerts, firing ones first, each with the links that no alert before it has."""
    listed: set[Link] = set()
    result = []
    for alert, links in _sort_alerts(message):
        new = [link for link in _list_links(alert, links) if link not in listed]
        listed.update(new)
        result.append((alert, new))
    return result


def list_incident_links(message: Message) -> list[Link]:
    return [Link("Incident", message.incident_url)] if message.incident_url else []


def list_images(message: Message) -> list[str]:
    """The addresses of the pictures that the alerts bring, each once, those of firing alerts first."""
    found = (sanitize_url(links.image) for _, links in _sort_alerts(message))
    return list(dict.fromkeys(url for url in found if url and url.startswith("https://")))


def _sort_alerts(message: Message) -> list[tuple[Alert, Links]]:
    pairs = zip(message.event.alerts, message.links, strict=True)
    return sorted(pairs, key=lambda pair: pair[0].status is Status.RESOLVED)


def list_group_links(event: Event) -> list[Link]:
    """The Alertmanager that sent it, at the alerts of the group, and its silence form with the group's labels.

    If the group has no labels, or one that cannot be written as a matcher, the first link shows all alerts of the
    receiver, and there is no second one: it would silence more than the group. Nor is there one once it is resolved.
    """
    # What these two share with other groups is sanitized once for all of them; the filter is quoted already.
    alerts = sanitize_url(f"{event.external_url.rstrip('/')}/#/alerts?receiver={_quote(clean_text(event.receiver))}")
    new_silence = sanitize_url(f"{event.external_url.rstrip('/')}/#/silences/new?filter=")
    if alerts and new_silence and (matchers := _format_matchers(event.group_labels)):
        filled = _quote("{" + matchers + "}")
        at_group, silence = f"{alerts}&filter={filled}", f"{new_silence}{filled}"
        if max(len(at_group), len(silence)) <= MAX_SHORT_URL:
            silence_links = [] if is_resolved(event) else [Link("Silence", silence)]
            return [Link("Alertmanager", at_group), *silence_links]
    return [Link("Alertmanager", alerts)] if alerts else []


def _format_matchers(labels: Mapping[str, str]) -> str:
    """The labels as Alertmanager's page reads them from its address; empty if it would not read the same."""
    if any(
        not _LABEL_NAME.fullmatch(key) or not value.isprintable() or set('"\\') & set(value)
        for key, value in labels.items()
    ):
        return ""
    return ",".join(f'{key}="{value}"' for key, value in sort_labels(labels))


def _quote(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _list_links(alert: Alert, links: Links) -> list[Link]:
    found = (
        ("Runbook", links.runbook),
        ("Dashboard", links.dashboard),
        ("Board", links.board),
        ("Prometheus", alert.generator_url),
    )
    return [Link(text, url) for text, candidate in found if (url := sanitize_url(candidate))]


TABLE_FROM: Final = 4
"""So many alerts of one rule are a table; fewer are shown one by one."""
MAX_COLUMNS: Final = 4
"""Labels that have a column."""
MAX_CELL: Final = 80
_MAX_CAPTION: Final = 300
_RESOLVED_SHARE: Final = 4
"""A quarter of the rows is for resolved alerts, if there are so many."""
_GAP: Final = "…"


class AlertCard(NamedTuple):
    """An alert that is shown by itself. Its texts are clean, and as long as they were written."""

    alert: Alert
    title: str
    """Its own; empty where the message has the same, or it has none."""
    summary: str
    description: str
    """Empty once it is over, since it says what would be wrong now, unless nobody was told of it before."""
    period: str
    value: str
    """What its expression gives now; often empty."""
    labels: Mapping[str, str]
    """By which it differs from the others of its group."""
    links: list[Link]
    """No alert before it has them."""


class AlertTable(NamedTuple):
    """Alerts of one rule, firing ones first. The caption has what they share, the columns what differs."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """A cell for each column; some may be empty."""
    alerts: tuple[Alert, ...]
    """One for each row."""
    links: list[Link]
    """Of the first alert."""
    more: str
    """How many the table leaves out, such as `… and 12 more firing`; empty for none."""


@dataclass(frozen=True, slots=True)
class View:
    """A message in the order in which a person needs it. Empty fields are not shown."""

    title: str
    """The cause and its effect, without the state."""
    subject: str
    """With it."""
    state: str
    """`Firing`, or that it is over, and how long it lasted."""
    severity: str
    is_urgent: bool
    """Neither a warning nor an info."""
    headline: str
    """The class and the labels of the group; empty where they are the title."""
    counts: str
    """How many alerts of each state."""
    remark: str
    omission: str
    fixes: list[Fix]
    context: list[ContextLine]
    alerts: list[tuple[Alert, list[Link]]]
    """Those that are listed, see `list_alerts`."""
    parts: list[AlertCard | AlertTable]
    """The same by rule."""
    more: str
    """How many alerts the parts leave out, the rows that a table leaves out excepted."""
    excerpt: RunbookExcerpt | None
    contacts: Mapping[str, str]
    incident_links: list[Link]
    group_links: list[Link]


def build_view(
    message: Message, *, max_cards: int, max_tables: int, max_rows: int, listed: Message | None = None
) -> View:
    """The view of a message, with so many alerts by themselves, so many tables, and so many rows in each.

    Args:
        message: to be shown.
        max_cards: alerts.
        max_tables: at least 1.
        max_rows: of one table.
        listed: whose alerts are listed, where that is not the whole message.
    """
    event = message.event
    resolved, severity = is_resolved(event), find_worst_severity(event)
    shown = listed or message
    alerts = list_alerts(shown)
    parts, more = arrange_alerts(shown, alerts, max_cards=max_cards, max_tables=max_tables, max_rows=max_rows)
    return View(
        title=format_title(message),
        subject=format_subject(message),
        state=format_end(message) if resolved else "Firing",
        severity=severity or "",
        is_urgent=severity not in {Severity.WARNING, Severity.INFO},
        headline=format_class(message),
        counts=format_counts(event),
        remark=format_remark(message),
        omission=format_omission(event),
        fixes=list_fixes(message),
        context=list_context(message),
        alerts=alerts,
        parts=parts,
        more=more,
        excerpt=message.excerpt,
        contacts=select_contacts(message),
        incident_links=list_incident_links(message),
        group_links=list_group_links(event),
    )


def arrange_alerts(
    message: Message, alerts: list[tuple[Alert, list[Link]]], *, max_cards: int, max_tables: int, max_rows: int
) -> tuple[list[AlertCard | AlertTable], str]:
    """The alerts of `list_alerts` by rule; and how many are left out, except the rows of a table."""
    rules: dict[str, list[tuple[Alert, list[Link]]]] = {}
    for alert, links in alerts:
        rules.setdefault(alert.labels.get("alertname", ""), []).append((alert, links))
    single = [alert for pairs in rules.values() if len(pairs) < TABLE_FROM for alert, _ in pairs]
    selected, left_out = select_alerts(single, max_cards)
    listed, title, tables = set(map(id, selected)), format_title(message), 0
    parts: list[AlertCard | AlertTable] = []
    for pairs in rules.values():
        if len(pairs) < TABLE_FROM:
            parts += [_build_card(alert, links, message, title) for alert, links in pairs if id(alert) in listed]
        elif tables < max_tables:
            parts.append(_build_table([alert for alert, _ in pairs], pairs[0][1], message, max_rows))
            tables += 1
        else:
            left_out += [alert for alert, _ in pairs]
    return parts, format_more(left_out)


def _build_card(alert: Alert, links: list[Link], message: Message, title: str) -> AlertCard:
    own_title = format_alert_title(alert)
    is_described = alert.status is Status.FIRING or message.task.firing_undelivered
    return AlertCard(
        alert,
        own_title if own_title != title else "",
        format_summary(alert),
        format_description(alert) if is_described else "",
        format_period(alert, message.zone),
        clean_line(message.current_values.get(alert.fingerprint, "")),
        select_own_labels(alert, message.event),
        links,
    )


def _build_table(alerts: Sequence[Alert], links: list[Link], message: Message, max_rows: int) -> AlertTable:
    """The table of all alerts of one rule, with the links of the first; what is over `max_rows` is counted."""
    listed, left_out = select_alerts(alerts, max_rows)
    names = _find_differing_labels(alerts)
    columns = {name: [alert.labels.get(name, "") for alert in listed] for name in names[:MAX_COLUMNS]}
    caption: list[str] = []
    for name, describe in (("title", format_alert_title), ("summary", _format_summary)):
        shared = _find_shared_text([describe(alert) for alert in alerts], alerts, names)
        if shared is None:
            columns[name] = [describe(alert) for alert in listed]
        elif shared and not caption:
            caption = [shared]
    caption = caption or [alerts[0].labels.get("alertname", "")]
    now = [message.current_values.get(alert.fingerprint, "") for alert in listed]
    if any(now):
        columns["now"] = now
    states = [format_short_period(alert, message.zone) for alert in listed]
    if columns and len(set(states)) == 1:
        caption.append(states[0])
    else:
        columns["state"] = states
    cells = [[truncate(clean_line(value), MAX_CELL) for value in column] for column in columns.values()]
    return AlertTable(
        caption=truncate(" · ".join(filter(None, map(clean_line, caption))), _MAX_CAPTION),
        columns=tuple(truncate(clean_line(name), MAX_CELL) for name in columns),
        rows=tuple(zip(*cells, strict=True)),
        alerts=tuple(listed),
        links=links,
        more=format_more(left_out),
    )


def select_alerts(alerts: Sequence[Alert], limit: int) -> tuple[list[Alert], list[Alert]]:
    """At most `limit` of them, and the others.

    Firing ones never hide the resolved ones: these keep a quarter, of two at least one.
    """
    firing = [alert for alert in alerts if alert.status is Status.FIRING]
    resolved = [alert for alert in alerts if alert.status is Status.RESOLVED]
    share = max(limit // _RESOLVED_SHARE, min(limit - 1, 1))
    resolved_count = min(len(resolved), max(limit - len(firing), share))
    firing_count = limit - resolved_count
    return firing[:firing_count] + resolved[:resolved_count], firing[firing_count:] + resolved[resolved_count:]


def format_more(alerts: Sequence[Alert]) -> str:
    """How many are not shown, such as `… and 12 more firing, 3 more resolved`; empty for none."""
    firing = sum(alert.status is Status.FIRING for alert in alerts)
    numbers = (firing, "firing"), (len(alerts) - firing, "resolved")
    counts = ", ".join(f"{number} more {state}" for number, state in numbers if number)
    return f"… and {counts}" if counts else ""


def _find_differing_labels(alerts: Sequence[Alert]) -> list[str]:
    """The names of labels that differ; a label that tells more alerts apart comes first."""
    values: dict[str, set[str | None]] = {name: set() for alert in alerts for name in alert.labels}
    for name, found in values.items():
        found.update(alert.labels.get(name) for alert in alerts)
    order = [name for name, _ in sort_labels({name: "" for name in values if len(values[name]) > 1})]
    return sorted((name for name in order if name in values), key=lambda name: -len(values[name]))


def _find_shared_text(texts: Sequence[str], alerts: Sequence[Alert], names: Sequence[str]) -> str | None:
    """What the texts share, a gap for each own label: `KMSHighLatency on …`; None if they differ."""
    shared = None
    for found, alert in zip(texts, alerts, strict=True):
        values = (alert.labels.get(name, "") for name in names)
        own = {clean_line(value) for value in values if 0 < len(value) <= MAX_CELL}
        own = {value for value in own if value in found}  # to compile what finds the others takes most of the time
        pattern = "|".join(map(re.escape, sorted(own, key=len, reverse=True)))
        gapped = re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", _GAP, found) if own else found
        if shared is not None and gapped != shared:
            return None
        shared = gapped
    return shared


def _format_summary(alert: Alert) -> str:
    return truncate(format_summary(alert), _MAX_CAPTION)
