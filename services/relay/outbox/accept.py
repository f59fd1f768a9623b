"""Accepts an event: commits it with one delivery for each channel.

An event that repeats the latest one of its incident is not stored. It adds deliveries of that one on the channels that
have none of it, as those of another receiver of the group: the receiver only chooses channels.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, case, func, insert, select, update

from services.relay.model import MAX_EPISODES, EscalationStep, Event, Status, encode_event, encode_steps
from services.relay.outbox.context import build_service_id, build_title, find_service
from services.relay.outbox.edits import MessageKey, find_digests, request_channel_edits
from services.relay.outbox.incidents import IncidentState, lock_states
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries
from services.relay.outbox.quarantine import Replay, record_replay
from services.relay.outbox.store import BulkStatement, Store, StoreUnavailableError, Transaction
from services.relay.outbox.tables import EPISODE_COLUMNS, clean_for_database, create_id, deliveries, events, incidents
from services.relay.text import find_worst_severity
from shared.process.concurrency import run_in_thread_if_large
from shared.sql.rows import select_tuples, select_values

# Statements are built once: building one costs more than a database takes to run it.
_INSERT_EVENTS: Final = BulkStatement(
    insert(events), [column.name for column in events.c if column is not events.c.seq]
)


_READ_SEQS: Final = select_tuples(tuple[str, int], select(events.c.id, events.c.seq)).where(
    events.c.id.in_(bindparam("ids", expanding=True))
)
_FIRST_WAITING_EVENT: Final = (
    select_values(int, deliveries.c.first_event_seq).order_by(deliveries.c.first_event_seq).limit(1)
).where(
    deliveries.c.incident_id == bindparam("incident"),
    deliveries.c.channel.in_(bindparam("channels", expanding=True)),
    deliveries.c.finished_at.is_(None),
)
_INCIDENT_COLUMNS: Final = (
    *("episode", "is_open", "latest_event_seq", "repeated_by", "earlier_events", "escalation", "escalation_after"),
    *("severity", "service_id", "title", "started_at", "episode_starts", "alertname", "service"),
)
_is_same_episode = incidents.c.episode == bindparam("new_episode")
_UPDATE_INCIDENTS: Final = BulkStatement(
    update(incidents)
    .where(incidents.c.id == bindparam("incident"))
    .values(
        {
            **{name: bindparam(f"new_{name}") for name in _INCIDENT_COLUMNS},
            **{name: case((_is_same_episode, incidents.c[name])) for name in EPISODE_COLUMNS},
            "first_event_seq": func.coalesce(
                case((_is_same_episode, incidents.c.first_event_seq)), bindparam("new_latest_event_seq")
            ),
        }
    )
)
_RECORD_REPEAT: Final = BulkStatement(
    update(incidents)
    .where(incidents.c.id == bindparam("incident"))
    .values({name: bindparam(f"new_{name}") for name in ("repeated_by", "escalation", "escalation_after")})
)
_MAX_RECEIVERS: Final = 16
"""How many receivers of one event are remembered."""


class IncomingEvent(NamedTuple):
    event: Event
    incident_id: str
    fingerprint: str
    """Equal for another webhook with the same content."""
    alertname: str
    body: bytes
    """The webhook as it came."""
    replay: Replay | None = None
    """Which entry of the quarantine it replays; None for one that was just sent."""

    @property
    def receiver(self) -> str:
        """As the database stores it."""
        return clean_for_database(self.event.receiver)


class DeliveryPlan(NamedTuple):
    episode: int
    is_open: bool
    channels: tuple[str, ...]
    unconfigured_channels: tuple[str, ...] = ()
    """Channels on which the incident is open, but which this relay has not configured: they may have been renamed."""
    escalation: tuple[EscalationStep, ...] = ()
    """Where it goes if nobody acknowledges it; the first step first."""
    is_repeat: bool = False
    """Whether the latest event says the same: `channels` get that one, and nothing else changes."""


PlanEvent = Callable[[IncidentState | None, float], DeliveryPlan | None]
"""The incident's state and the time of acceptance → what to do; None for nothing."""


class AcceptResult(NamedTuple):
    """What was committed. `event_id` is that of the incident's latest event."""

    event_id: str
    delivery_count: int
    """How many deliveries were added; for a duplicate, how many the latest event has."""
    is_duplicate: bool
    """Whether no delivery was added, because all channels have the event."""
    channels: tuple[str, ...]
    """Where something new is to be delivered."""
    superseded_channels: tuple[str, ...] = ()
    """The channel of each delivery that was merged into a new one."""


def encode_accepted(result: AcceptResult) -> dict[str, Any]:
    """What is answered to the sender of a webhook, and to the person who replays one."""
    return {"event_id": result.event_id, "deliveries": result.delivery_count, "duplicate": result.is_duplicate}


class _AcceptRequest(NamedTuple):
    incoming: IncomingEvent
    event_json: bytes
    plan: PlanEvent


class _PlannedEvent(NamedTuple):
    incoming: IncomingEvent
    state: IncidentState | None
    plan: DeliveryPlan
    event_id: str
    """Of the latest event, where it repeats that."""
    seq: int


def plan_deliveries(
    event: Event,
    state: IncidentState | None,
    *,
    routed_channels: Sequence[str],
    configured_channels: Collection[str],
) -> DeliveryPlan:
    """The deliveries of an event that is news: on its routes' channels, and where its incident is open. Pure."""
    is_firing, was_open = event.status is Status.FIRING, state is None or state.is_open
    # Alertmanager computes the status of a truncated group on the alerts that were left in it: it says nothing.
    is_open = is_firing or (was_open and event.truncated_alerts > 0)
    if state is None or not state.is_open:
        episode = 1 if state is None else state.episode + is_firing
        return DeliveryPlan(episode, is_open, tuple(dict.fromkeys(routed_channels)))
    existing = state.open_channels & state.served_channels.union(configured_channels)
    return DeliveryPlan(
        state.episode,
        is_open,
        channels=tuple(dict.fromkeys([*routed_channels, *sorted(existing)])),
        unconfigured_channels=tuple(sorted(state.open_channels.difference(configured_channels))),
    )


async def accept_event(store: Store, incoming: IncomingEvent, plan: PlanEvent) -> AcceptResult:
    """Commits an event and its deliveries; they are on the disk when this returns.

    `plan` is called in the transaction, so that it sees the latest event whatever arrives at the same time.

    Raises:
        UnknownEntryError, AlreadyReplayedError: of its `replay`; nothing was changed.
        StoreUnavailableError: it is not known to be committed; or it is not, since the workers could not read it.
    """
    if store.damage is not None:
        raise StoreUnavailableError(store.damage)
    # Encoded before the transaction, so that a large event makes nobody wait.
    size = len(incoming.body)
    event_json = await run_in_thread_if_large(size, lambda: encode_event(incoming.event))
    return await store.batch(_accept_batch, _AcceptRequest(incoming, event_json, plan), size=size)


def _accept_batch(transaction: Transaction, requests: Sequence[_AcceptRequest]) -> list[AcceptResult]:
    """In rounds with at most one event of each incident, so that the next event sees it."""
    rounds: dict[int, list[_AcceptRequest]] = {}
    earlier: Counter[str] = Counter()
    for each in requests:
        rounds.setdefault(earlier[each.incoming.incident_id], []).append(each)
        earlier[each.incoming.incident_id] += 1
    results: dict[int, AcceptResult] = {}
    for of_round in rounds.values():
        results |= zip(map(id, of_round), _accept_round(transaction, of_round), strict=True)
    for incoming in (each.incoming for each in requests):
        if incoming.replay is not None:  # after the incidents, which everybody locks first
            record_replay(transaction, incoming.replay, incoming.incident_id)
    return [results[id(each)] for each in requests]


def _accept_round(transaction: Transaction, requests: Sequence[_AcceptRequest]) -> list[AcceptResult]:
    states = lock_states(transaction, {each.incoming.incident_id: each.incoming.fingerprint for each in requests})
    new: list[tuple[_AcceptRequest, IncidentState | None, DeliveryPlan]] = []
    repeats: list[_PlannedEvent] = []
    results: dict[str, AcceptResult] = {}
    for each in requests:
        state = states.get(each.incoming.incident_id)
        plan = each.plan(state, transaction.now)
        if plan is not None and not plan.is_repeat:
            new.append((each, state, plan))
            continue
        if state is None:
            raise ValueError("the first event of an incident is no duplicate")
        duplicate = AcceptResult(state.event_id, state.delivery_count, is_duplicate=True, channels=())
        results[each.incoming.incident_id] = duplicate
        if plan is not None:
            repeats.append(_PlannedEvent(each.incoming, state, plan, state.event_id, state.latest_event_seq))
    if repeats:
        rows = [_build_repeat_row(each, transaction.now) for each in repeats]
        _RECORD_REPEAT.execute(transaction.connection, rows)
    planned = [*_insert_events(transaction, new), *repeats]
    for accepted, superseded in zip(planned, _enqueue_deliveries(transaction, planned), strict=True):
        channels = accepted.plan.channels
        if channels or not accepted.plan.is_repeat:
            results[accepted.incoming.incident_id] = AcceptResult(
                accepted.event_id, len(channels), is_duplicate=False, channels=channels, superseded_channels=superseded
            )
    return [results[each.incoming.incident_id] for each in requests]


def _insert_events(
    transaction: Transaction, new: Sequence[tuple[_AcceptRequest, IncidentState | None, DeliveryPlan]]
) -> list[_PlannedEvent]:
    if not new:
        return []
    ids = [create_id(transaction.now) for _ in new]
    rows = [
        {
            "id": event_id,
            "incident_id": request.incoming.incident_id,
            "receiver": request.incoming.receiver,
            "alertname": clean_for_database(request.incoming.alertname),
            "status": request.incoming.event.status,
            "fingerprint": request.incoming.fingerprint,
            "accepted_at": transaction.now,
            "event": request.event_json,
            "body": request.incoming.body,
        }
        for (request, _, _), event_id in zip(new, ids, strict=True)
    ]
    _INSERT_EVENTS.execute(transaction.connection, rows)
    seqs = dict(_READ_SEQS.fetch_all(transaction.connection, {"ids": ids}))
    planned = [
        _PlannedEvent(request.incoming, state, plan, event_id, seqs[event_id])
        for (request, state, plan), event_id in zip(new, ids, strict=True)
    ]
    _UPDATE_INCIDENTS.execute(transaction.connection, [_build_incident_row(each, transaction.now) for each in planned])
    return planned


def _build_incident_row(new: _PlannedEvent, now: float) -> dict[str, object]:
    """What the incident becomes, with what `context` reads of it."""
    incoming, state, event = new.incoming, new.state, new.incoming.event
    started_at, starts = (state.started_at, state.episode_starts) if state else (now, ())
    if state is None or new.plan.episode != state.episode:
        started_at, starts = now, (*starts, now)
    return {
        "incident": incoming.incident_id,
        "new_episode": new.plan.episode,
        "new_is_open": int(new.plan.is_open),
        "new_latest_event_seq": new.seq,
        "new_repeated_by": None,
        "new_earlier_events": state.encode_earlier_events() if state else "[]",
        "new_severity": find_worst_severity(event) or "",
        "new_service_id": build_service_id(event),
        "new_title": build_title(event),
        "new_alertname": clean_for_database(incoming.alertname),
        "new_service": clean_for_database(find_service(event)),
        "new_started_at": started_at,
        "new_episode_starts": json.dumps(starts[-MAX_EPISODES:]),
        **_encode_escalation(new),
    }


def _build_repeat_row(repeat: _PlannedEvent, now: float) -> dict[str, object]:
    incoming, state = repeat.incoming, repeat.state
    receivers = state.latest_receivers if state else {}
    others = [*receivers.items()][1:]
    if state and incoming.fingerprint == state.fingerprint and incoming.receiver not in receivers:
        others = [*others, (incoming.receiver, now)][-_MAX_RECEIVERS:]
    return {
        "incident": incoming.incident_id,
        "new_repeated_by": json.dumps(dict(others)) if others else None,
        **_encode_escalation(repeat),
    }


def _encode_escalation(planned: _PlannedEvent) -> dict[str, object]:
    """The steps that still add a channel: of the event's route, and of the routes of other receivers of the group."""
    receiver, state, plan = planned.incoming.receiver, planned.state, planned.plan
    steps, reached = [step._replace(receiver=receiver) for step in plan.escalation], {*plan.channels}
    if state is not None and state.is_open:
        steps += [step for step in state.escalation if step.receiver != receiver]
        reached |= state.open_channels
    named = {(step.after, step.channels): step for step in steps if plan.is_open}
    left = sorted(step for step in named.values() if not reached.issuperset(step.channels))
    return {"new_escalation": encode_steps(left), "new_escalation_after": left[0].after if left else None}


def _enqueue_deliveries(transaction: Transaction, planned: Sequence[_PlannedEvent]) -> list[tuple[str, ...]]:
    """Adds the deliveries of events; gives, for each event, the channels of the deliveries that it superseded.

    On channels that this relay has not configured there is no delivery, and so the first message is edited at once.
    """
    deliveries_by_event = [_build_deliveries(transaction, each) for each in planned]
    former = [
        MessageKey(each.incoming.incident_id, each.plan.episode, channel)
        for each in planned
        if not each.plan.is_repeat
        for channel in each.plan.unconfigured_channels
    ]
    if former:
        digests = find_digests(transaction, former)
        request_channel_edits(transaction, {*former, *(each.key for each in digests)})
    channels: dict[str, list[str]] = {}
    for old in enqueue_deliveries(transaction, [*chain.from_iterable(deliveries_by_event)]).superseded_rows:
        channels.setdefault(old.incident_id, []).append(old.channel)
    return [tuple(channels.get(each.incoming.incident_id, ())) for each in planned]


def _build_deliveries(transaction: Transaction, planned: _PlannedEvent) -> list[NewDelivery]:
    """The deliveries of an event.

    Events that wait for a channel that is gone are also delivered on channels that are new to the incident: one of
    them may be that channel under another name, and a resolve alone would make no sense there.
    """
    incident, plan, seq = planned.incoming.incident_id, planned.plan, planned.seq
    is_first, first, open_elsewhere = planned.state is None, seq, frozenset(plan.channels)
    if plan.unconfigured_channels and planned.state is not None:
        open_elsewhere = planned.state.open_channels | transaction.unmerged_channels
        waits = {"incident": incident, "channels": list(plan.unconfigured_channels)}
        first = _FIRST_WAITING_EVENT.fetch_first(transaction.connection, waits) or seq
    starts = {channel: seq if channel in open_elsewhere else first for channel in plan.channels}
    return [
        NewDelivery(seq, start, incident, plan.episode, channel, is_first_of_incident=is_first)
        for channel, start in starts.items()
    ]
