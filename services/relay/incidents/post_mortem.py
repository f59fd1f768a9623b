"""One incident for its page, the API and a post-mortem: its timeline, its alerts, what to do, and the fault behind it.

A post-mortem is a document in Markdown. What alerts, people and providers wrote is escaped in it, so that it is text
for every renderer: no link, no mention, no HTML and no row of a table.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from services.relay.apis import ExporterHistory, FailureHistory, HistoryQuery
from services.relay.delivery.message import LinkRules, build_links, remove_foreign_links
from services.relay.incidents.episode_history import PAGE_EVENTS, EpisodeHistory, read_episode
from services.relay.incidents.queries import IncidentSummary, UnknownIncidentError, read_incident
from services.relay.incidents.timeline import (
    Timeline,
    build_timeline,
    decode_record,
    explain_missing_fault,
    find_query,
    get_end,
)
from services.relay.model import DeliveryTask, Event, Message, Status
from services.relay.outbox.store import Store
from services.relay.text import (
    Fix,
    Link,
    clean_line,
    clean_text,
    format_alert_title,
    format_counts,
    format_event_title,
    format_omission,
    format_summary,
    list_alerts,
    list_fixes,
    list_group_links,
    select_own_labels,
    sort_labels,
    truncate,
)
from shared import VERSION
from shared.web.time_format import format_step_duration

MAX_ALERTS = 20
"""Alerts that are shown."""
MAX_LABELS = 50
"""Labels, or annotations, of one alert."""
_MAX_VALUE = 2_000
"""Characters of a value."""


@dataclass(frozen=True, slots=True)
class AlertDetails:
    title: str
    status: Status
    starts_at: float
    """Unix seconds."""
    ends_at: float | None
    labels: Sequence[tuple[str, str]]
    """Without the labels of the whole group."""
    annotations: Sequence[tuple[str, str]]
    links: Sequence[Link]
    """Without the links of the alerts before it."""


@dataclass(frozen=True, slots=True)
class IncidentDetails:
    """What the last event of an episode says."""

    title: str
    counts: str
    labels: Sequence[tuple[str, str]]
    """Of every alert of the group."""
    alerts: Sequence[AlertDetails]
    """The firing ones first."""
    more: str
    """What is not shown; empty for nothing."""
    links: Sequence[Link]
    """To Alertmanager."""
    fixes: Sequence[Fix]
    """Commands, while it fires."""


def build_details(incident_id: str, history: EpisodeHistory, event: Event, rules: LinkRules) -> IncidentDetails:
    """What the last event of an episode says. Texts are clean and not escaped; links are http(s)."""
    accepted_at = datetime.fromtimestamp(history.last_event.accepted_at, UTC)
    event = remove_foreign_links(event, rules)
    task = DeliveryTask("", incident_id, history.episode, "", accepted_at)
    links = tuple(build_links(alert, accepted_at, rules) for alert in event.alerts)
    message = Message(task, event, links)
    alerts = [
        AlertDetails(
            title=format_alert_title(alert) or format_summary(alert),
            status=alert.status,
            starts_at=alert.starts_at.timestamp(),
            ends_at=get_end(alert),
            labels=_limit(select_own_labels(alert, event)),
            annotations=_list_annotations(alert.annotations),
            links=own_links,
        )
        for alert, own_links in list_alerts(message)[:MAX_ALERTS]
    ]
    left_out = len(event.alerts) - len(alerts)
    return IncidentDetails(
        title=format_event_title(event),
        counts=format_counts(event),
        labels=_limit({**event.group_labels, **event.common_labels}),
        alerts=alerts,
        more=" ".join(filter(None, [f"{left_out} more alerts." if left_out else "", format_omission(event)])),
        links=list_group_links(event),
        fixes=list_fixes(message),
    )


def _limit(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(truncate(key, 200), truncate(value, _MAX_VALUE)) for key, value in sort_labels(labels)][:MAX_LABELS]


def _list_annotations(annotations: Mapping[str, str]) -> list[tuple[str, str]]:
    """What an alert says, the title excepted, the important ones first."""
    first = [name for name in ("summary", "description") if annotations.get(name)]
    names = [*first, *sorted(annotations.keys() - {*first, "title"})]
    return [
        (truncate(clean_line(name), 200), truncate(clean_text(annotations[name]), _MAX_VALUE))
        for name in names[:MAX_LABELS]
    ]


_GONE: Final = "It never was, or it is older than `retention.max_age`."
_NOT_SET: Final = "messages.board_url is not set, so the relay cannot ask the exporter"
_NO_KEY: Final = "its alerts have neither a label target nor a label service"


@dataclass(frozen=True, slots=True)
class IncidentView:
    incident: IncidentSummary
    history: EpisodeHistory
    timeline: Timeline
    details: IncidentDetails | None
    """None if the last event cannot be read."""
    fault_problem: str
    """Why the fault is not known; empty if it is, or may soon be."""
    is_fault_pending: bool
    """Whether to ask the exporter, for the first time or again."""


class IncidentReader:
    """Reads incidents, and asks the exporter for the faults behind them."""

    def __init__(self, store: Store, exporter: ExporterHistory, link_rules: LinkRules) -> None:
        self._store = store
        self._exporter = exporter
        self._link_rules = link_rules

    async def read(
        self,
        incident_id: str,
        *,
        episode: int | None = None,
        before: int | None = None,
        limit: int = PAGE_EVENTS,
        waits_for_fault: bool = False,
    ) -> IncidentView:
        """One episode, as `read_episode` reads it.

        Asks the exporter for some seconds at most if `waits_for_fault`; else takes what it said a moment ago.

        Raises:
            UnknownIncidentError: there is no such incident, or nothing of the episode is stored.
            StoreUnavailableError: it cannot be read.
        """
        incident = await read_incident(self._store, incident_id)
        history = await read_episode(self._store, incident_id, episode=episode, before=before, limit=limit)
        if incident is None:
            raise UnknownIncidentError("no such incident", hint=_GONE)
        if history is None:
            raise UnknownIncidentError("nothing of it is stored any more", hint=_GONE)
        query = await asyncio.to_thread(lambda: find_query(decode_record(history.first_event)))
        fault = None
        if query is not None and self._exporter.is_configured:
            fault = await self._exporter.read(query) if waits_for_fault else self._exporter.get_answer(query)
        return await asyncio.to_thread(self._build, incident, history, query, fault)

    def _build(
        self,
        incident: IncidentSummary,
        history: EpisodeHistory,
        query: HistoryQuery | None,
        fault: FailureHistory | None,
    ) -> IncidentView:
        timeline, event = build_timeline(history, fault), decode_record(history.last_event)
        is_askable = query is not None and self._exporter.is_configured
        problem = _NO_KEY if query is None else _NOT_SET
        if is_askable:
            problem = explain_missing_fault(fault, timeline.start)
        return IncidentView(
            incident=incident,
            history=history,
            timeline=timeline,
            details=build_details(incident.id, history, event, self._link_rules) if event else None,
            fault_problem=problem,
            is_fault_pending=query is not None and is_askable and not self._exporter.is_current(query),
        )


_MARKUP: Final = re.compile(r"([\\`*_{}\[\]#|~!$])")
_SCHEME: Final = re.compile(r"([A-Za-z])(://)")


def escape_markdown(text: str) -> str:
    """A text of others as Markdown shows it literally, on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    text = _SCHEME.sub(r"\1:\\/\\/", _MARKUP.sub(r"\\\1", text))
    return re.sub(r"(?i)\bwww\.", lambda found: f"{found[0][:-1]}\\.", text).replace("@", "@\u2060")


def build_markdown(view: IncidentView, exported_at: float, address: str) -> str:
    """The document as Markdown; the time is in unix seconds, the address that of the incident's page."""
    return _load_template().render(view=view, exported_at=exported_at, address=address, version=VERSION)


@cache
def _load_template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701  # `finalize` escapes every value, for Markdown
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(at=_format_time, took=_format_seconds)
    return environment.get_template("post_mortem.md.j2")


def _format_time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else format_step_duration(seconds)
