"""Digests as delivery builds them, of incidents with any texts."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from services.relay.delivery.message import LinkRules, build_digest_message, condense_event
from services.relay.model import DeliveryTask, DigestMember, Event, Message, Status, encode_event
from tests.relay.channels.examples import with_text

ANY_HOST = LinkRules(None, None)


class Named(NamedTuple):
    """An incident of a digest."""

    title: str = "permission_denied: backend (production) cannot encrypt with ledger-kek"
    service: str = "ledger"
    severity: str = "warning"
    status: Status = Status.FIRING
    alerts: int = 1
    named_only: bool = False


def build_event(named: Named) -> Event:
    event = with_text("x", named.alerts).event
    labels = {"alertname": "KMSProbeFailing", "env": "production", "service": named.service, "severity": named.severity}
    alerts = tuple(
        replace(
            alert,
            status=named.status,
            labels={**labels, "instance": str(number)},
            annotations={"title": named.title},
            ends_at=None if named.status is Status.FIRING else alert.starts_at,
        )
        for number, alert in enumerate(event.alerts)
    )
    return replace(
        event,
        alerts=alerts,
        status=named.status,
        group_labels=labels,
        common_labels=labels,
        receiver="kms-security",
        external_url="https://alertmanager.example.org",
    )


def digest_of(incidents: Iterable[Named], rules: LinkRules = ANY_HOST, **changes: Any) -> Message:
    """The message of a digest of these incidents; `changes` replace fields of its task."""
    members = []
    for number, named in enumerate(incidents):
        counts, event_json = condense_event(encode_event(build_event(named)))
        task = _build_task(f"delivery-{number}", f"incident-{number}")._replace(event_json=event_json)
        members.append(DigestMember(task, named.named_only, counts))
    task = _build_task("the-digest", "")._replace(members=tuple(members), **changes)
    return build_digest_message(task, rules)


def _build_task(delivery_id: str, incident_id: str) -> DeliveryTask:
    return DeliveryTask(delivery_id, incident_id, 1, "slack", datetime.now(UTC))
