"""One episode of an incident as a timeline over all channels, and the seconds from the fault to each channel. Pure.

Input is the outbox's `EpisodeHistory` and the exporter's failures of the key, or else of the service, that the first
alerts name. Each entry has a time, a sentence and, where it ends something, how many
seconds that took, and since what.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, Literal

from services.relay.apis import FailureHistory, HistoryQuery, KeyFailure
from services.relay.deliveries.retries import ACTION as SEND_ELSEWHERE
from services.relay.incidents.episode_history import (
    ActionRecord,
    AttemptRecord,
    DeliveryRecord,
    EditRecord,
    EpisodeHistory,
    EventRecord,
    SilenceRecord,
)
from services.relay.model import Alert, Event, Status, decode_event
from services.relay.outbox.tables import DeliveryState
from services.relay.silences.store import SilenceState
from services.relay.text import (
    clean_line,
    find_worst_severity,
    format_alert_title,
    format_counts,
    format_summary,
    is_resolved,
    truncate,
)
from shared.http.json_api import format_json_time

HopName = Literal["fault", "alert", "accepted", "delivered"]


@dataclass(frozen=True, slots=True)
class Hop:
    """One step from the fault to a channel, or from the alert's end to a channel."""

    name: HopName
    channel: str | None
    at: float | None
    """None if it is not known, or has not happened."""
    seconds: float | None
    """Since the hop before it; of a delivery since the webhook was accepted."""
    total: float | None
    """Since the first hop that is known."""


def _list_hops(
    points: Sequence[tuple[HopName, float | None]],
    channels: Sequence[DeliveryRecord],
    receipts: Sequence[DeliveryRecord],
) -> list[Hop]:
    """Each point, of which the last is the acceptance, and each channel, those without a receipt last."""
    start = next(at for _, at in points if at is not None)
    times = [at for _, at in points]
    hops = [
        Hop(name, None, at, _subtract(at, before), _subtract(at, start))
        for (name, at), before in zip(points, [None, *times], strict=False)
    ]
    received: dict[str, float] = {}
    for each in receipts:
        if each.finished_at is not None:
            received.setdefault(each.channel, each.finished_at)
    for channel in dict.fromkeys([*received, *(each.channel for each in channels)]):
        at = received.get(channel)
        hops.append(Hop("delivered", channel, at, _subtract(at, times[-1]), _subtract(at, start)))
    return hops


def _subtract(at: float | None, since: float | None) -> float | None:
    return None if at is None or since is None else at - since


def encode_hop(hop: Hop) -> dict[str, Any]:
    """A hop as the API writes it."""
    times = {"at": format_json_time(hop.at), "seconds": _round(hop.seconds), "total": _round(hop.total)}
    return {**asdict(hop), **times}


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


_MAX_TEXT: Final = 500


class EntryKind(StrEnum):
    """What an entry is about; of entries of the same moment, in their order."""

    FAULT = "fault"
    ALERT = "alert"
    ALERT_OVER = "alert_over"
    ACCEPTED = "accepted"
    RESOLVED = "resolved"
    DELIVERED = "delivered"
    FAILED = "failed"
    DEAD = "dead"
    MERGED = "merged"
    NAMED = "named"
    EDITED = "edited"
    ACKNOWLEDGED = "acknowledged"
    UNACKNOWLEDGED = "unacknowledged"
    ESCALATED = "escalated"
    SENT_ELSEWHERE = "sent_elsewhere"
    SILENCED = "silenced"
    SILENCE_REQUESTED = "silence_requested"
    SILENCE_REFUSED = "silence_refused"
    OMITTED = "omitted"


Since = Literal["fault", "alert", "end", "accepted", "queued", "attempt"]
_SINCE_TEXTS: Final[Mapping[Since, str]] = {
    "fault": "after the fault",
    "alert": "after the alert",
    "end": "after its end",
    "accepted": "after the webhook",
    "queued": "after it was queued",
    "attempt": "in the attempt",
}


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One thing that happened. Texts are clean, on one line, and not escaped."""

    at: float
    """Unix seconds."""
    kind: EntryKind
    text: str
    channel: str | None = None
    who: str | None = None
    seconds: float | None = None
    """How long it took; negative where clocks differ."""
    since: Since | None = None
    """From what `seconds` counts: `end` is that of the last alert; `queued` when a delivery was added without a
    webhook, as for an acknowledgement; `attempt` the attempt's own start."""
    reason: str | None = None
    detail: str = ""
    """The provider's parts, a comment or a remark."""
    delivery: str | None = None
    event: str | None = None

    @property
    def since_text(self) -> str:
        """From what `seconds` counts, for people."""
        return _SINCE_TEXTS[self.since] if self.since else ""


def build_entry(at: float, kind: EntryKind, text: str, **fields: Any) -> TimelineEntry:
    """An entry with clean texts: what people and providers wrote is in them."""
    detail = truncate(clean_line(fields.pop("detail", "")), _MAX_TEXT)
    return TimelineEntry(at, kind, truncate(clean_line(text), _MAX_TEXT), detail=detail, **fields)


def encode_entry(entry: TimelineEntry) -> dict[str, Any]:
    """An entry as the API writes it."""
    return {**asdict(entry), "at": format_json_time(entry.at), "seconds": _round(entry.seconds)}


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
    """The failures that led to an incident and came until its end, and when the fault began; times are unix seconds."""
    ends = float("inf") if ended_at is None else ended_at
    failures = [
        each
        for each in (history.failures if history else ())
        if each.last_at >= begins_at - _MAX_FAULT_AGE and each.first_at <= ends + _CLOCK_TOLERANCE
    ]
    return failures, next((each.first_at for each in failures if each.first_at <= begins_at + _CLOCK_TOLERANCE), None)


def explain_missing_fault(history: FailureHistory | None, start: Sequence[Hop]) -> str:
    """Why a timeline with these first hops begins without a fault; empty if the exporter was not asked."""
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


MAX_FAULTS: Final = 10
"""Failures of the exporter that are shown."""
_MAX_ALERTS: Final = 10
"""Alerts of one event that began or ended, each with its entry."""
_ORDER: Final = {kind: rank for rank, kind in enumerate(EntryKind)}
"""Of entries of the same moment."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a page of the timeline shows."""

    entries: Sequence[TimelineEntry]
    """The oldest first."""
    start: Sequence[Hop]
    """From the fault to the first receipt of each channel."""
    end: Sequence[Hop]
    """From the end of the last alert to the receipts of the all-clear; empty while it fires."""
    fault: FailureHistory | None
    """What the exporter says; None if it was not asked."""
    faults: Sequence[KeyFailure]
    """The failures of the exporter that are about this episode."""
    faults_left_out: int


def build_timeline(history: EpisodeHistory, fault: FailureHistory | None) -> Timeline:
    """The timeline of a page of an episode; `fault` is None if the exporter was not asked."""
    first, last = decode_record(history.first_event), decode_record(history.last_event)
    alert_at, ended_at = None, None
    if first and history.has_beginning:
        alert_at = min((each.starts_at.timestamp() for each in first.alerts), default=None)
    if last and history.is_over and is_resolved(last):
        ended_at = max((ends_at for each in last.alerts if (ends_at := get_end(each)) is not None), default=None)
    begins_at = alert_at or history.started_at
    faults, fault_at = select_failures(fault, begins_at, ended_at)
    listed_faults = faults[:MAX_FAULTS]
    entries = [
        *(() if history.earlier is not None else _list_faults(listed_faults)),
        *_list_events(history, fault_at),
        *_list_deliveries(history),
        *(_build_action(each) for each in history.actions if not _is_in_silences(each, history.silences)),
        *(_build_silence(each, history.first_event.accepted_at) for each in history.silences),
        *(entry for each in history.edits if (entry := _build_edit(each))),
    ]
    points: list[tuple[HopName, float | None]] = [
        ("fault", fault_at),
        ("alert", alert_at),
        ("accepted", history.started_at),
    ]
    if history.has_beginning:
        start = _list_hops(points, history.channels, history.first_receipts)
    else:  # nor are its receipts stored
        start = _list_hops(points, (), ())
    end: Sequence[Hop] = ()
    if history.is_over and history.last_event.status == Status.RESOLVED:
        points = [("alert", ended_at), ("accepted", history.last_event.accepted_at)]
        end = _list_hops(points, history.channels, history.last_receipts)
    return Timeline(
        entries=sorted(entries, key=lambda each: (each.at, _ORDER[each.kind])),
        start=start,
        end=end,
        fault=fault,
        faults=listed_faults,
        faults_left_out=len(faults) - len(listed_faults),
    )


def decode_record(record: EventRecord) -> Event | None:
    """The content of an event; None if it was not read, or something else than this program wrote it."""
    if record.event is None:
        return None
    try:
        return decode_event(record.event)
    except ValueError:
        return None


def get_end(alert: Alert) -> float | None:
    """When an alert ended, unix seconds; None while it fires, or where its end is before its start, as in year 1."""
    return alert.ends_at.timestamp() if alert.ends_at and alert.ends_at >= alert.starts_at else None


def _list_faults(faults: Sequence[KeyFailure]) -> Iterator[TimelineEntry]:
    for each in faults:
        times = f"{each.count} round trips" if each.count > 1 else "1 round trip"
        cause = f" ({each.cause})" if each.cause else ""
        text = f"KMS fails{cause}: {each.operation} with {each.target}, {times}"
        until = "it still fails" if each.is_current else f"the last one at {format_json_time(each.last_at)}"
        yield build_entry(each.first_at, EntryKind.FAULT, f"{text}, {until}", reason=each.reason, detail=each.detail)


def _list_events(history: EpisodeHistory, fault_at: float | None) -> Iterator[TimelineEntry]:
    """Each webhook, and the alerts that it says have begun or ended."""
    before = decode_record(history.event_before) if history.event_before else None
    earlier = {each.fingerprint: each for each in before.alerts} if before else {}
    has_baseline = history.event_before is None or before is not None
    for record in history.events:
        event = decode_record(record)
        if event is None:
            size = f"{record.event_size / 1024:.0f} KB"
            text = f"Webhook accepted: {record.status}, {size}; its alerts are not listed here"
            yield build_entry(record.accepted_at, EntryKind.ACCEPTED, text, event=record.id)
            has_baseline = False
            continue
        changed = [each for each in event.alerts if _has_changed(each, earlier.get(each.fingerprint))]
        # An alert that was resolved before anybody was told of it has both entries.
        changes = changed if has_baseline else []
        yield from _list_alert_changes(changes, earlier, record, fault_at)
        starts = [each.starts_at.timestamp() for each in changes if each.status is Status.FIRING]
        ends = [ends_at for each in changes if (ends_at := get_end(each)) is not None]
        since = min(starts, default=None) if not is_resolved(event) else max(ends, default=None)
        yield _build_event_entry(record, event, since, is_repeat=has_baseline and not changed)
        earlier |= {each.fingerprint: each for each in event.alerts}
        has_baseline = True


def _has_changed(alert: Alert, before: Alert | None) -> bool:
    """Whether it has begun, or ended; also where it has ended and begun again since the last webhook."""
    if before is None or before.status is not alert.status:
        return True
    return alert.status is Status.FIRING and alert.starts_at > before.starts_at


def _list_alert_changes(
    changes: Sequence[Alert], earlier: Mapping[str, Alert], record: EventRecord, fault_at: float | None
) -> Iterator[TimelineEntry]:
    for alert in changes[:_MAX_ALERTS]:
        title, event = format_alert_title(alert) or format_summary(alert), record.id
        starts_at = alert.starts_at.timestamp()
        if alert.fingerprint not in earlier or alert.status is Status.FIRING:
            entry = build_entry(starts_at, EntryKind.ALERT, f"Alert fires: {title}", event=event)
            yield entry if fault_at is None else replace(entry, seconds=starts_at - fault_at, since="fault")
        ends_at = get_end(alert)
        if ends_at is not None and alert.status is Status.RESOLVED:
            entry = build_entry(ends_at, EntryKind.ALERT_OVER, f"Alert is over: {title}", event=event)
            yield replace(entry, seconds=ends_at - starts_at, since="alert")
    if more := changes[_MAX_ALERTS:]:
        firing = sum(each.status is Status.FIRING for each in more)
        text = f"Further alerts changed: {firing} fire, {len(more) - firing} are over"
        yield build_entry(record.accepted_at, EntryKind.OMITTED, text, event=record.id)


def _build_event_entry(record: EventRecord, event: Event, since: float | None, *, is_repeat: bool) -> TimelineEntry:
    kind = EntryKind.RESOLVED if is_resolved(event) else EntryKind.ACCEPTED
    source = "Event of the relay" if record.is_own else "Webhook accepted"
    repeated = ", as before" if is_repeat else ""
    severity = f", {level}" if kind is EntryKind.ACCEPTED and (level := find_worst_severity(event)) else ""
    over = "; the incident is over" if kind is EntryKind.RESOLVED else ""
    text = f"{source}: {format_counts(event)}{severity}{repeated}{over}"
    entry = build_entry(record.accepted_at, kind, text, detail=event.remark, event=record.id)
    if since is None:
        return entry
    return replace(entry, seconds=record.accepted_at - since, since="end" if is_resolved(event) else "alert")


def _list_deliveries(history: EpisodeHistory) -> Iterator[TimelineEntry]:
    by_delivery: dict[int, list[AttemptRecord]] = {}
    for attempt in history.attempts:
        by_delivery.setdefault(attempt.delivery_seq, []).append(attempt)
    accepted_at = {each.accepted_at for each in (*history.events, history.first_event)}
    for delivery in history.deliveries:
        attempts = by_delivery.get(delivery.seq, [])
        yield from _list_attempts(delivery, attempts)
        if delivery.finished_at is not None:
            outcome = _build_outcome(delivery, delivery.finished_at, attempts)
            yield outcome if delivery.oldest_accepted_at in accepted_at else replace(outcome, since="queued")


def _list_attempts(delivery: DeliveryRecord, attempts: Sequence[AttemptRecord]) -> Iterator[TimelineEntry]:
    """Every attempt that did not deliver it."""
    is_delivered = delivery.state == DeliveryState.DELIVERED
    for attempt in attempts[:-1] if is_delivered and attempts and attempts[-1].reason == "ok" else attempts:
        ended_at = attempt.started_at + attempt.seconds
        if delivery.finished_at is not None:  # by the database's clock, which may be behind
            ended_at = min(ended_at, delivery.finished_at)
        is_named = attempt.reason == "ok"  # a digest has named it, and its own message follows
        where = delivery.channel
        yield build_entry(
            ended_at,
            EntryKind.NAMED if is_named else EntryKind.FAILED,
            f"Named in a digest on {where}" if is_named else f"Attempt {attempt.number} on {where} failed",
            channel=where,
            seconds=attempt.seconds,
            since="attempt",
            reason=attempt.reason,
            detail=attempt.detail,
            delivery=delivery.id,
        )
    for earlier, later in pairwise(attempts):
        if left_out := later.number - earlier.number - 1:
            text = f"{left_out} more attempts on {delivery.channel}: see the delivery"
            ended_at = earlier.started_at + earlier.seconds
            yield build_entry(ended_at, EntryKind.OMITTED, text, channel=delivery.channel, delivery=delivery.id)


def _build_outcome(delivery: DeliveryRecord, finished_at: float, attempts: Sequence[AttemptRecord]) -> TimelineEntry:
    where, remark = delivery.channel, delivery.remark or ""
    if delivery.state == DeliveryState.DELIVERED:
        parts = [f"Delivered on {where}"]
        if delivery.digest_id:
            parts.append("in a digest")
        if attempts and attempts[-1].number > 1:
            parts.append(f"attempt {attempts[-1].number}")
        answer = attempts[-1].detail if attempts else ""
        kind, text, detail = EntryKind.DELIVERED, ", ".join(parts), " ".join(filter(None, [remark, answer]))
    elif delivery.state == DeliveryState.DEAD:
        kind, text, detail = EntryKind.DEAD, f"Given up on {where}", remark
    else:
        kind, text, detail = EntryKind.MERGED, f"Merged into a newer message on {where}", remark
    return build_entry(
        finished_at,
        kind,
        text,
        channel=where,
        seconds=finished_at - delivery.oldest_accepted_at,
        since="accepted",
        reason=delivery.reason,
        detail=detail,
        delivery=delivery.id,
    )


_ACTIONS: Final = {
    "acknowledge": (EntryKind.ACKNOWLEDGED, "Acknowledged by {who}"),
    "unacknowledge": (EntryKind.UNACKNOWLEDGED, "{who} withdrew the acknowledgement"),
    "silence": (EntryKind.SILENCED, "Silenced by {who}"),
    "silence refused": (EntryKind.SILENCE_REFUSED, "{who} was refused a silence"),
    "silence failed": (EntryKind.SILENCE_REFUSED, "The silence of {who} failed"),
}


def _build_action(action: ActionRecord) -> TimelineEntry:
    who, channels = clean_line(action.who), action.object.partition(" to ")[2]
    if action.action == "escalate":
        text = f"Escalated to {channels}: nobody had acknowledged it"
        return build_entry(action.at, EntryKind.ESCALATED, text)
    if action.action == SEND_ELSEWHERE:
        text = f"{who} sent it to {channels}, too"
        return build_entry(action.at, EntryKind.SENT_ELSEWHERE, text, who=who, detail=_format_peer(action.peer))
    kind, text = _ACTIONS.get(action.action, (EntryKind.OMITTED, f"{action.action} by {{who}}"))
    return build_entry(action.at, kind, text.replace("{who}", who), who=who, detail=_format_peer(action.peer))


def _format_peer(peer: str | None) -> str:
    if not peer:
        return ""
    return (
        "in Slack" if peer.startswith("slack:") else "by the command line" if peer == "command line" else f"from {peer}"
    )


def _is_in_silences(action: ActionRecord, silences: Sequence[SilenceRecord]) -> bool:
    return action.action.startswith("silence") and any(
        each.finished_at is not None and abs(each.finished_at - action.at) < 1e-3 for each in silences
    )


def _build_silence(silence: SilenceRecord, default_at: float) -> TimelineEntry:
    who, comment = clean_line(silence.who), silence.comment or ""
    if silence.state == SilenceState.CREATED:
        kind, text = EntryKind.SILENCED, silence.detail or f"Silenced by {who}"
    elif silence.state in (SilenceState.REFUSED, SilenceState.FAILED):
        kind = EntryKind.SILENCE_REFUSED
        text = f"The silence of {who} was not created: {silence.detail or 'no reason is known'}"
    else:
        kind, text = EntryKind.SILENCE_REQUESTED, f"{who} requested a silence; Alertmanager has not confirmed it yet"
    at = silence.finished_at or silence.requested_at or default_at
    return build_entry(at, kind, text, who=who, detail=comment)


def _build_edit(edit: EditRecord) -> TimelineEntry | None:
    if edit.is_waiting:
        failed = f": attempt {edit.attempts} failed" if edit.attempts and edit.reason else ""
        text = f"An edit of the message on {edit.channel} waits{failed}"
        reason = edit.reason if failed else None
        return build_entry(edit.requested_at, EntryKind.EDITED, text, channel=edit.channel, reason=reason)
    if edit.edited_at is None:
        return None
    text = f"Message on {edit.channel} edited in place; the last edit so far"
    return build_entry(edit.edited_at, EntryKind.EDITED, text, channel=edit.channel)
