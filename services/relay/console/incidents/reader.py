"""Reads an incident for page, API and export: its row, a page of its timeline, its alerts, and the fault behind it."""

import asyncio
from dataclasses import dataclass
from typing import Final

from services.relay.console.incidents.details import IncidentDetails, build_details
from services.relay.console.incidents.fault import explain_missing_fault, find_query
from services.relay.console.incidents.timeline import Timeline, build_timeline, decode_record
from services.relay.delivery.links import LinkRules
from services.relay.exporter_api import ExporterHistory, FailureHistory, HistoryQuery
from services.relay.outbox.engine.store import Store
from services.relay.outbox.queries.incident_list import IncidentSummary, read_incident
from services.relay.outbox.queries.timeline_query import PAGE_EVENTS, read_episode
from services.relay.outbox.queries.timeline_records import EpisodeHistory

_NOT_SET: Final = "messages.board_url is not set, so the relay cannot ask the exporter"
_NO_KEY: Final = "its alerts have neither a label target nor a label service"


@dataclass(frozen=True, slots=True)
class IncidentView:
    """One episode of an incident."""

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
    """Reads incidents.

    Args:
        store: the outbox.
        exporter: knows the faults.
        link_rules: for the links of alerts.
    """

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
    ) -> IncidentView | None:
        """One episode; None if there is no such incident, or nothing of the episode is stored.

        Args:
            incident_id: which incident.
            episode: which episode; None for the current, or last, one.
            before: the `earlier` of a page of its timeline; None for the newest page.
            limit: events of the page.
            waits_for_fault: whether to ask the exporter, for some seconds at most; otherwise what it said a moment ago.

        Raises:
            StoreUnavailableError: it cannot be read.
        """
        incident = await read_incident(self._store, incident_id)
        history = await read_episode(self._store, incident_id, episode=episode, before=before, limit=limit)
        if incident is None or history is None:
            return None
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
