"""The fault behind an incident: failures of the key, or else of the service, that its first alerts name. Pure."""

from collections.abc import Sequence
from typing import Final

from services.relay.console.incidents.hops import Hop
from services.relay.exporter_api import FailureHistory, HistoryQuery, KeyFailure
from services.relay.model import Event
from shared.http.json_api import format_json_time

_MAX_FAULT_AGE: Final = 900.0
"""Seconds before an alert in which a failure that ended may still be its fault: a rule waits, and looks at a range."""
_CLOCK_TOLERANCE: Final = 10.0
"""Seconds by which the clocks of exporter and Prometheus may differ."""


def find_query(first: Event | None) -> HistoryQuery | None:
    """Whose failures may be the fault of an incident with this first event; None if its alerts name neither."""
    for name in ("target", "service"):
        if first and (value := _find_label(first, name)):
            return HistoryQuery(name, value)
    return None


def select_failures(
    history: FailureHistory | None, begins_at: float, ended_at: float | None
) -> tuple[list[KeyFailure], float | None]:
    """The failures that led to an incident, and those since, until its end; and when the fault began, if it is known.

    Args:
        history: of the exporter; None if it was not asked.
        begins_at: when its first alert began, unix seconds.
        ended_at: when its last one ended; None while it fires.
    """
    ends = float("inf") if ended_at is None else ended_at
    failures = [
        each
        for each in (history.failures if history else ())
        if each.last_at >= begins_at - _MAX_FAULT_AGE and each.first_at <= ends + _CLOCK_TOLERANCE
    ]
    return failures, next((each.first_at for each in failures if each.first_at <= begins_at + _CLOCK_TOLERANCE), None)


def explain_missing_fault(history: FailureHistory | None, start: Sequence[Hop]) -> str:
    """Why a timeline begins without a fault; empty if it does not, or the exporter was not asked.

    Args:
        history: of the exporter; None if it was not asked.
        start: the first hops of the timeline: the fault, the alert, the webhook.
    """
    if history is None or start[0].at is not None:
        return ""
    if history.error is not None:
        return f"no history from the exporter at messages.board_url: {history.error}"
    begin = start[1].at or start[2].at
    if history.recorded_since is not None and begin is not None and history.recorded_since > begin:
        return f"the exporter knows nothing from before its start at {format_json_time(history.recorded_since)}"
    return "the exporter knows no failure of a key that led to it"


def _find_label(event: Event, name: str) -> str:
    return next((value for alert in event.alerts if (value := alert.labels.get(name, ""))), "")
