"""An incident for a post-mortem: a document in Markdown, and the same in JSON. Pure.

What alerts, people and providers wrote is escaped, so that it is text for every renderer of Markdown: no link, no
mention, no HTML and no row of a table.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from services.relay.console.incidents.details import AlertDetails
from services.relay.console.incidents.entries import TimelineEntry, encode_entry
from services.relay.console.incidents.hops import Hop, encode_hop
from services.relay.console.incidents.reader import IncidentView
from services.relay.outbox.queries.incident_list import encode_incident
from shared import VERSION
from shared.http.json_api import format_json_time
from shared.web.time_format import format_step_duration

_MARKUP: Final = re.compile(r"([\\`*_{}\[\]#|~!$])")
_SCHEME: Final = re.compile(r"([A-Za-z])(://)")
_HOP_NAMES: Final = {"fault": "fault", "alert": "alert", "accepted": "webhook accepted", "delivered": "delivered"}


@dataclass(frozen=True, slots=True)
class PostMortem:
    """What is exported."""

    view: IncidentView
    exported_at: float
    """Unix seconds."""
    address: str
    """The incident's page."""


def escape_markdown(text: str) -> str:
    """A text of others as Markdown shows it literally, on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    text = _SCHEME.sub(r"\1:\\/\\/", _MARKUP.sub(r"\\\1", text))
    return re.sub(r"(?i)\bwww\.", lambda found: f"{found[0][:-1]}\\.", text).replace("@", "@\u2060")


def build_json(export: PostMortem) -> dict[str, Any]:
    """The document as JSON; times in RFC 3339, UTC."""
    view = export.view
    history, timeline, details = view.history, view.timeline, view.details
    return {
        "exported_at": format_json_time(export.exported_at),
        "address": export.address,
        "incident": encode_incident(view.incident),
        "episode": history.episode,
        "is_over": history.is_over,
        "events": history.event_count,
        "hops": {"start": [*map(encode_hop, timeline.start)], "end": [*map(encode_hop, timeline.end)]},
        "fault": {
            "note": view.fault_problem or None,
            "failures": [
                {**asdict(each), "first_at": format_json_time(each.first_at), "last_at": format_json_time(each.last_at)}
                for each in timeline.faults
            ],
        },
        "timeline": [*map(encode_entry, timeline.entries)],
        "timeline_is_complete": not (history.is_cut or history.earlier is not None or history.pruned_up_to is not None),
        "labels": dict(details.labels) if details else {},
        "alerts": [_encode_alert(each) for each in details.alerts] if details else [],
        "links": [each._asdict() for each in details.links] if details else [],
        "fixes": [each._asdict() for each in details.fixes] if details else [],
    }


def build_markdown(export: PostMortem) -> str:
    """The document as Markdown."""
    return "\n".join([*_list_head(export), *_list_hops(export), *_list_entries(export), *_list_details(export), ""])


def _encode_alert(alert: AlertDetails) -> dict[str, Any]:
    return {
        "title": alert.title,
        "status": alert.status,
        "starts_at": format_json_time(alert.starts_at),
        "ends_at": format_json_time(alert.ends_at),
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "links": [each._asdict() for each in alert.links],
    }


def _list_head(export: PostMortem) -> Iterator[str]:
    incident, history, details = export.view.incident, export.view.history, export.view.details
    title = details.title if details else incident.title or incident.alertname
    yield f"# Incident: {escape_markdown(title)}"
    yield ""
    state = "resolved" if history.is_over else "open"
    facts = [
        ("State", state),
        ("Severity", incident.severity or "not known"),
        ("Alert", escape_markdown(incident.alertname or "several")),
        ("Service", escape_markdown(incident.service or "not known")),
        ("Started", _format_time(history.started_at)),
        ("Ended", _format_time(history.last_event.accepted_at) if history.is_over else "not yet"),
        ("Channels", escape_markdown(", ".join(each.channel for each in history.channels))),
        ("Webhooks", str(history.event_count)),
    ]
    if history.is_current:
        facts.append(("Acknowledged by", escape_markdown(incident.acknowledged_by or "nobody")))
        facts.append(("Escalated to", escape_markdown(", ".join(incident.escalated_to)) or "nobody"))
    facts.append(("Incident", f"<{export.address}>"))
    for name, value in facts:
        yield f"- **{name}**: {value}"
    yield f"- **Exported**: {_format_time(export.exported_at)} by keypulse {VERSION}; times are UTC"
    yield ""


def _list_hops(export: PostMortem) -> Iterator[str]:
    for heading, hops in (
        ("From the fault to each channel", export.view.timeline.start),
        ("The end", export.view.timeline.end),
    ):
        if not hops:
            continue
        yield f"## {heading}"
        yield ""
        yield from _format_table(("hop", "at", "took", "in all"), map(_format_hop, hops))
        yield ""
    if export.view.fault_problem:
        yield f"The fault is not known: {escape_markdown(export.view.fault_problem)}"
        yield ""


def _format_hop(hop: Hop) -> Sequence[str]:
    name = _HOP_NAMES[hop.name]
    where = f"{name} on {escape_markdown(hop.channel)}" if hop.channel else name
    return (
        where,
        "not known" if hop.at is None else _format_time(hop.at),
        _format_seconds(hop.seconds),
        _format_seconds(hop.total),
    )


def _list_entries(export: PostMortem) -> Iterator[str]:
    history = export.view.history
    yield "## Timeline"
    yield ""
    if history.earlier is not None:
        yield f"Only the last {len(history.events)} of {history.event_count} webhooks, and what came since."
        yield ""
    elif history.pruned_up_to is not None:
        yield f"Retention has deleted most of what ended before {_format_time(history.pruned_up_to)}."
        yield ""
    if history.is_cut:
        yield "Some deliveries, attempts or actions are too many to list here."
        yield ""
    yield from _format_table(("at", "what", "took"), map(_format_entry, export.view.timeline.entries))
    yield ""


def _format_entry(entry: TimelineEntry) -> Sequence[str]:
    reason = f"reason {entry.reason}" if entry.reason and entry.reason != "ok" else ""
    rest = ", ".join(filter(None, [reason, entry.detail]))
    text = f"{entry.text} ({rest})" if rest else entry.text
    seconds = f"{_format_seconds(entry.seconds)} {entry.since_text}" if entry.seconds is not None else ""
    return _format_time(entry.at), escape_markdown(text), seconds


def _list_details(export: PostMortem) -> Iterator[str]:
    details = export.view.details
    if details is None:
        return
    yield "## Alerts"
    yield ""
    yield f"{details.counts}. {details.more}".strip()
    yield ""
    yield from map(_format_pair, details.labels)
    for alert in details.alerts:
        yield ""
        yield f"### {escape_markdown(alert.title)}"
        yield ""
        end = f", over at {_format_time(alert.ends_at)}" if alert.ends_at else ""
        yield f"- fired at {_format_time(alert.starts_at)}{end}"
        yield from map(_format_pair, (*alert.labels, *alert.annotations))
        yield from (f"- [{link.text}](<{link.url}>)" for link in alert.links)
    if details.fixes:
        yield ""
        yield "## What to do"
        yield ""
        for fix in details.fixes:
            yield f"{fix.title}:"
            yield ""
            yield f"    {fix.command}"
            yield ""


def _format_pair(pair: tuple[str, str]) -> str:
    name, value = map(escape_markdown, pair)
    return f"- **{name}**: {value}"


def _format_table(head: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _format_time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else format_step_duration(seconds)
