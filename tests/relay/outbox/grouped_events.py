"""The groups of alerts in the histories that the outbox is tried with."""

from datetime import UTC, datetime

from services.relay.model import Alert, Event, Status, build_incident_id
from tests.relay.outbox.observations import AlertStatuses

_SEVERITIES = {"A": "warning", "B": "", "C": "critical"}


def group_id(group: str) -> str:
    """Of its incident."""
    return build_incident_id(event_of(group, {}))


def event_of(group: str, alerts: AlertStatuses, receiver: str = "kms") -> Event:
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    status = Status.FIRING if Status.FIRING in alerts.values() else Status.RESOLVED
    return Event(
        source="",
        receiver=receiver,
        group_key=group,
        status=status,
        alerts=tuple(
            Alert(
                alerts[name],
                {"alertname": "Down", "key": name, "severity": _SEVERITIES[name]},
                {},
                begun,
                None,
                "",
                name,
            )
            for name in sorted(alerts)
        ),
        group_labels={},
        common_labels={},
        common_annotations={},
        external_url="",
        truncated_alerts=0,
    )
