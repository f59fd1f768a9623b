"""The members of a digest → its message: an entry for each incident. Pure.

The relay reads the events of one member after the other and condenses each to what its entry needs, so that a digest of
large groups costs little memory. The sending process builds the entries.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from services.relay.delivery.links import (
    LinkRules,
    build_incident_url,
    build_links,
    build_list_url,
    remove_foreign_links,
)
from services.relay.model import (
    Alert,
    DeliveryTask,
    DigestEntry,
    DigestMember,
    Event,
    Message,
    Status,
    decode_event,
    encode_event,
)
from services.relay.text import (
    clean_line,
    compute_status,
    find_worst_severity,
    format_alert_title,
    format_counts,
    format_title,
    list_group_links,
    rank_severity,
    sanitize_url,
    sort_entries,
    truncate,
)

_MAX_PAIRS: Final = 30
"""Labels, and annotations, of the one alert that a condensed event keeps."""
_MAX_NAME: Final = 100
_MAX_VALUE: Final = 500
"""Characters of one of them."""
_MAX_SERVICE: Final = 60


def condense_event(event_json: bytes) -> tuple[str, bytes]:
    """How many alerts an event has, and the event with only the alert that its title is about."""
    event = decode_event(event_json)
    by_urgency = sorted(event.alerts, key=lambda alert: (alert.status is Status.RESOLVED, rank_severity(alert)))
    alert = next((each for each in by_urgency if format_alert_title(each)), next(iter(by_urgency), None))
    condensed = replace(
        event,
        alerts=(_condense_alert(alert),) if alert else (),
        group_labels=_condense_pairs(event.group_labels),
        common_labels=_condense_pairs(event.common_labels),
        common_annotations={},
        unlisted_firing=b"",
        unlisted_resolved=b"",
    )
    return format_counts(event), encode_event(condensed)


def build_digest_message(task: DeliveryTask, link_rules: LinkRules) -> Message:
    """The message of a digest, its entries grouped by service.

    Args:
        task: with the condensed events of its members.
        link_rules: for the links of the entries.

    Raises:
        ValueError: the outbox holds something that is no event.
    """
    entries = sort_entries([_build_entry(member, link_rules) for member in task.members])
    status = Status.FIRING if any(entry.status is Status.FIRING for entry in entries) else Status.RESOLVED
    event = Event(
        source="",
        receiver="",
        group_key="",
        status=status,
        alerts=(),
        group_labels={},
        common_labels={},
        common_annotations={},
        external_url="",
        truncated_alerts=0,
    )
    return Message(task, event, (), digest=tuple(entries), incident_url=build_list_url(link_rules))


def _build_entry(member: DigestMember, link_rules: LinkRules) -> DigestEntry:
    event = remove_foreign_links(decode_event(member.task.event_json), link_rules)
    links = tuple(build_links(alert, member.task.accepted_at, link_rules) for alert in event.alerts)
    message = Message(member.task, event, links)
    labels = {**event.common_labels, **event.group_labels}
    location = {name: labels[name] for name in ("env", "service") if labels.get(name)}
    return DigestEntry(
        title=format_title(message),
        status=compute_status(event),
        severity=find_worst_severity(event) or "",
        counts=member.counts,
        service=_format_service(location),
        link=build_incident_url(member.task, link_rules)
        or _find_link(event)
        or next((sanitize_url(each.runbook) for each in links), None),
        service_link=_find_service_link(event, location, link_rules),
        receiver_link=_find_link(replace(event, group_labels={})),
        is_named_only=member.is_named_only,
    )


def _format_service(location: Mapping[str, str]) -> str:
    env, service = (clean_line(location.get(name, "")) for name in ("env", "service"))
    return truncate(f"{service} ({env})" if service and env else service or env, _MAX_SERVICE)


def _find_service_link(event: Event, location: Mapping[str, str], link_rules: LinkRules) -> str | None:
    """The open incidents of the service, or its alerts in Alertmanager."""
    if not location:
        return None
    own = build_list_url(link_rules, location["service"]) if "service" in location else None
    return own or _find_link(replace(event, group_labels=location))


def _find_link(event: Event) -> str | None:
    """Its Alertmanager, at the alerts of its group."""
    return next((link.url for link in list_group_links(event)), None)


def _condense_alert(alert: Alert) -> Alert:
    return replace(alert, labels=_condense_pairs(alert.labels), annotations=_condense_pairs(alert.annotations))


def _condense_pairs(pairs: Mapping[str, str]) -> dict[str, str]:
    short = [(name, value) for name, value in pairs.items() if len(name) <= _MAX_NAME]
    return {name: truncate(value, _MAX_VALUE) for name, value in sorted(short, key=_rank_pair)[:_MAX_PAIRS]}


def _rank_pair(pair: tuple[str, str]) -> bool:
    return pair[0] not in {"alertname", "env", "service", "severity", "title", "summary"}
