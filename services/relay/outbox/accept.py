"""The first stride's commit: an event and one delivery for each channel it goes to, or nothing where it is a repeat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from sqlalchemy import Connection, bindparam, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from services.relay.model import Event
from services.relay.outbox.schema import State, deliveries, encode, events, incidents
from services.relay.outbox.store import Store

# Statements are built once: building one costs more than SQLite takes to run it.
_NEW_EVENT: Final = insert(events).returning(events.c.seq)
_KEEP_INCIDENT: Final = upsert(incidents)
_KEEP: Final = _KEEP_INCIDENT.on_conflict_do_update(
    ["id"], set_={name: _KEEP_INCIDENT.excluded[name] for name in ("episode", "open", "latest_event")}
)
_LATEST: Final = (
    select(incidents.c.episode, incidents.c.open, events.c.seq, events.c.id, events.c.fingerprint)
    .add_columns(events.c.accepted_at)
    .join(events, events.c.seq == incidents.c.latest_event)
    .where(incidents.c.id == bindparam("incident"))
)
_STATES: Final = select(deliveries.c.state).where(deliveries.c.event_seq == bindparam("event"))
_OPEN_ON: Final = (
    select(deliveries.c.channel)
    .distinct()
    .where(deliveries.c.incident_id == bindparam("incident"), deliveries.c.episode == bindparam("episode"))
)


@dataclass(frozen=True, slots=True)
class Incoming:
    """An event that asks to be accepted."""

    event: Event
    incident_id: str
    fingerprint: str
    """What another webhook would equal if it told the same."""
    alertname: str
    body: bytes
    """The webhook as it came."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the outbox holds of an incident that has been told of before, and of its latest event."""

    episode: int
    open: bool
    """Whether it still goes on, as far as we were told."""
    open_on: frozenset[str]
    """The channels that were given something of this episode."""
    event_id: str
    fingerprint: str
    accepted_at: float
    deliveries: int
    any_dead: bool
    """Whether a delivery of the latest event was given up."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from an event."""

    episode: int
    open: bool
    channels: tuple[str, ...]


Decide = Callable[[Known | None, float], Plan | None]
"""What is known and the time of acceptance → what to do; None where the event is a repeat of the latest one."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was committed. For a duplicate, `event_id` and `deliveries` are those of the event that it repeats."""

    event_id: str
    deliveries: int
    duplicate: bool
    channels: tuple[str, ...]
    """Those that have something new to deliver."""


async def accept(store: Store, incoming: Incoming, decide: Decide) -> Accepted:
    """Commits an event and its deliveries; they are on the disk when this returns.

    Args:
        store: the outbox.
        incoming: the event.
        decide: pure; asked within the transaction, so that it sees the latest event whatever arrives beside this one.

    Raises:
        StoreUnavailableError: nothing was committed.
    """
    return await store.run(lambda connection: _accept(connection, incoming, decide, store.clock()))


def _accept(connection: Connection, incoming: Incoming, decide: Decide, now: float) -> Accepted:
    known = _known(connection, incoming.incident_id)
    plan = decide(known, now)
    if plan is None:
        if known is None:
            raise ValueError("only what is known can be repeated")
        return Accepted(known.event_id, known.deliveries, duplicate=True, channels=())
    event, event_id = incoming.event, uuid4().hex
    row = {
        "id": event_id,
        "incident_id": incoming.incident_id,
        "receiver": event.receiver,
        "alertname": incoming.alertname,
        "status": event.status,
        "fingerprint": incoming.fingerprint,
        "accepted_at": now,
        "event": encode(event),
        "body": incoming.body,
    }
    seq = connection.execute(_NEW_EVENT, row).scalar_one()
    state = {"id": incoming.incident_id, "episode": plan.episode, "open": int(plan.open), "latest_event": seq}
    connection.execute(_KEEP, state)
    if plan.channels:
        connection.execute(
            insert(deliveries),
            [
                {
                    "id": uuid4().hex,
                    "event_seq": seq,
                    "incident_id": incoming.incident_id,
                    "episode": plan.episode,
                    "channel": channel,
                    "state": State.QUEUED,
                    "attempts": 0,
                    "accepted_at": now,
                    "due_at": 0.0,  # at once, whatever becomes of the clock
                }
                for channel in plan.channels
            ],
        )
    return Accepted(event_id, len(plan.channels), duplicate=False, channels=plan.channels)


def _known(connection: Connection, incident_id: str) -> Known | None:
    latest = connection.execute(_LATEST, {"incident": incident_id}).first()
    if latest is None:
        return None
    states = list(connection.execute(_STATES, {"event": latest.seq}).scalars())
    open_on = connection.execute(_OPEN_ON, {"incident": incident_id, "episode": latest.episode}).scalars()
    return Known(
        episode=latest.episode,
        open=bool(latest.open),
        open_on=frozenset(open_on),
        event_id=latest.id,
        fingerprint=latest.fingerprint,
        accepted_at=latest.accepted_at,
        deliveries=len(states),
        any_dead=State.DEAD in states,
    )
