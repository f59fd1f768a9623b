"""The first stride's commit: an event and one delivery for each channel it goes to, or nothing where it is a repeat."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import uuid4

from sqlalchemy import bindparam, func, insert, select, update

from services.relay.event_json import encode
from services.relay.model import Event
from services.relay.outbox.enqueue import New, enqueue
from services.relay.outbox.known import Known, known_of
from services.relay.outbox.many import Many
from services.relay.outbox.same_group import group_id, note_ends
from services.relay.outbox.schema import deliveries, events, incidents, plain
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

_LARGE: Final = 64 * 1024  # bytes of a webhook up to which writing its event is quicker than a thread
# Statements are built once: building one costs more than a database takes to run it.
_NEW_EVENTS: Final = Many(insert(events), [column.name for column in events.c if column is not events.c.seq])
_SEQS: Final = select(events.c.id, events.c.seq).where(events.c.id.in_(bindparam("ids", expanding=True)))
_WAITS_FIRST: Final = select(func.min(deliveries.c.first_event)).where(
    deliveries.c.incident_id == bindparam("incident"),
    deliveries.c.channel.in_(bindparam("channels", expanding=True)),
    deliveries.c.finished_at.is_(None),
)
_KEPT: Final = ("episode", "open", "latest_event", "group_id", "earlier")
_KEEP: Final = Many(
    update(incidents)
    .where(incidents.c.id == bindparam("incident"))
    .values({name: bindparam(f"new_{name}") for name in _KEPT})
)


class Incoming(NamedTuple):
    """An event that asks to be accepted."""

    event: Event
    incident_id: str
    fingerprint: str
    """What another webhook would equal if it told the same."""
    alertname: str
    body: bytes
    """The webhook as it came."""


class Plan(NamedTuple):
    """What follows from an event."""

    episode: int
    open: bool
    channels: tuple[str, ...]
    gone: tuple[str, ...] = ()
    """Channels that are not configured here, though the incident is open on them: they may have another name now."""


Decide = Callable[[Known | None, float], Plan | None]
"""What is known and the time of acceptance → what to do; None where the event is no news."""


class Accepted(NamedTuple):
    """What was committed. For a duplicate, `event_id` and `deliveries` are those of the incident's latest event."""

    event_id: str
    deliveries: int
    duplicate: bool
    channels: tuple[str, ...]
    """Those that have something new to deliver."""
    superseded: tuple[str, ...] = ()
    """The channel of each delivery that was merged into a new one."""


class _Asked(NamedTuple):
    incoming: Incoming
    written: bytes
    decide: Decide


class _Planned(NamedTuple):
    asked: _Asked
    known: Known | None
    plan: Plan


async def accept(store: Store, incoming: Incoming, decide: Decide) -> Accepted:
    """Commits an event and its deliveries; they are on the disk when this returns.

    Args:
        store: the outbox.
        incoming: the event.
        decide: pure; asked within the transaction, so that it sees the latest event whatever arrives beside this one.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    # Written before its turn comes, so that a large event makes nobody wait.
    large = len(incoming.body) > _LARGE
    written = await asyncio.to_thread(encode, incoming.event) if large else encode(incoming.event)
    return await store.batch(_accept, _Asked(incoming, written, decide), size=len(incoming.body))


def _accept(transaction: Transaction, asked: Sequence[_Asked]) -> list[Accepted]:
    """In rounds: of one incident at most one event in each, so that the next one sees it."""
    rounds: list[dict[str, int]] = []
    for place, each in enumerate(asked):
        incident = each.incoming.incident_id
        free = next((known for known in rounds if incident not in known), None)
        if free is None:
            rounds.append(free := {})
        free[incident] = place
    results: dict[int, Accepted] = {}
    for places in rounds:
        accepted = _round(transaction, [asked[place] for place in places.values()])
        results.update(zip(places.values(), accepted, strict=True))
    return [results[place] for place in range(len(asked))]


def _round(transaction: Transaction, asked: Sequence[_Asked]) -> list[Accepted]:
    known = known_of(transaction, {each.incoming.incident_id: each.incoming.fingerprint for each in asked})
    planned, repeated = [], {}
    for each in asked:
        incident = each.incoming.incident_id
        plan = each.decide(known.get(incident), transaction.now)
        if plan is not None:
            planned.append(_Planned(each, known.get(incident), plan))
        elif incident in known:
            latest = known[incident]
            repeated[incident] = Accepted(latest.event_id, latest.deliveries, duplicate=True, channels=())
        else:
            raise ValueError("only what is known can be repeated")
    new = _commit(transaction, planned)
    return [(repeated | new)[each.incoming.incident_id] for each in asked]


def _commit(transaction: Transaction, planned: Sequence[_Planned]) -> dict[str, Accepted]:
    """Writes what is new; what was accepted of each incident."""
    if not planned:
        return {}
    rows = [_event(each.asked, transaction.now) for each in planned]
    _NEW_EVENTS.execute(transaction.connection, rows)
    numbered = transaction.connection.execute(_SEQS, {"ids": [row["id"] for row in rows]}).all()
    of_ids = {row.id: row.seq for row in numbered}
    seqs = [of_ids[row["id"]] for row in rows]
    _KEEP.execute(
        transaction.connection,
        [
            {
                "incident": each.asked.incoming.incident_id,
                "new_episode": each.plan.episode,
                "new_open": int(each.plan.open),
                "new_latest_event": seq,
                "new_group_id": group_id(each.asked.incoming.event),
                "new_earlier": each.known.remembered() if each.known else None,
            }
            for each, seq in zip(planned, seqs, strict=True)
        ],
    )
    note_ends(transaction, [(seq, each.asked.incoming.event) for each, seq in zip(planned, seqs, strict=True)])
    accepted = {}
    for each, row, made in zip(planned, rows, _enqueue(transaction, planned, seqs), strict=True):
        channels, incident = each.plan.channels, row["incident_id"]
        accepted[incident] = Accepted(row["id"], len(channels), duplicate=False, channels=channels, superseded=made)
    return accepted


def _enqueue(transaction: Transaction, planned: Sequence[_Planned], seqs: Sequence[int]) -> list[tuple[str, ...]]:
    """Makes the deliveries of new events; the channels of those that each of them superseded."""
    news = [_news(transaction, each, seq) for each, seq in zip(planned, seqs, strict=True)]
    channels: dict[str, list[str]] = {}
    for old in enqueue(transaction, [new for of_event in news for new in of_event]).superseded:
        channels.setdefault(old.incident_id, []).append(old.channel)
    return [tuple(channels.get(each.asked.incoming.incident_id, ())) for each in planned]


def _news(transaction: Transaction, planned: _Planned, seq: int) -> list[New]:
    """The deliveries of an event.

    What nobody was told of yet, since it waits for a channel that is gone, is told by those that are new to the
    incident: one of them may be that channel under another name, and an end alone would tell it nothing.
    """
    incident, plan = planned.asked.incoming.incident_id, planned.plan
    first, known_there = seq, frozenset(plan.channels)
    if plan.gone and planned.known is not None:
        known_there = planned.known.open_on | transaction.unmerged
        waits = {"incident": incident, "channels": list(plan.gone)}
        first = transaction.connection.execute(_WAITS_FIRST, waits).scalar() or seq
    fresh = planned.known is None
    return [
        New(seq, seq if channel in known_there else first, incident, plan.episode, channel, fresh=fresh)
        for channel in plan.channels
    ]


def _event(asked: _Asked, now: float) -> dict[str, Any]:
    incoming = asked.incoming
    return {
        "id": uuid4().hex,
        "incident_id": incoming.incident_id,
        "receiver": plain(incoming.event.receiver),
        "alertname": plain(incoming.alertname),
        "status": incoming.event.status,
        "fingerprint": incoming.fingerprint,
        "accepted_at": now,
        "event": asked.written,
        "body": incoming.body,
    }
