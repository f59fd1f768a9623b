"""Who delivers what, and when: one delivery of one incident on one channel at a time, in the order of acceptance.

A claim is a lease: it ends by itself, so that the claims of a crashed relay return. A clean stop returns its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from uuid import uuid4

from sqlalchemy import Row, and_, bindparam, case, exists, func, select, update

from services.relay.model import Status
from services.relay.outbox import gate
from services.relay.outbox.enqueue import Waits, merge_into_successor
from services.relay.outbox.lock import locked_now
from services.relay.outbox.pace import within_pace
from services.relay.outbox.same_group import open_on
from services.relay.outbox.schema import State, deliveries, events
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

LARGE: Final = 1024 * 1024
"""Bytes of events over which nothing more is claimed with them, so that memory is bounded."""

_of = deliveries.c
_older = deliveries.alias("older")
_HEADS: Final = (
    _of.channel == bindparam("channel"),
    _of.finished_at.is_(None),
    ~exists().where(
        # Not as it stands: PostgreSQL without statistics would look through all of the channel for each row.
        _older.c.channel.concat("") == _of.channel,
        _older.c.incident_id == _of.incident_id,
        _older.c.finished_at.is_(None),
        _older.c.seq < _of.seq,
    ),
)
"""The unfinished deliveries of a channel that no older one of their incident stands before."""
# Statements are built once: building one costs more than a database takes to run it.
_with_size = select(deliveries, func.length(events.c.event).label("size"), events.c.status).join(
    events, events.c.seq == _of.event_seq
)
_DUE: Final = (
    _with_size.where(*_HEADS, _of.due_at <= bindparam("now"), _of.id.not_in(bindparam("held", expanding=True)))
    .order_by(_of.due_at, _of.seq)
    .limit(bindparam("most"))
    .with_for_update(of=deliveries, skip_locked=True)
)
_BY_ID: Final = _with_size.where(_of.id == bindparam("delivery")).with_for_update(of=deliveries)
# Not `min`, for which PostgreSQL looks at every row.
_NEXT_DUE: Final = select(_of.due_at).where(*_HEADS).order_by(_of.due_at, _of.seq).limit(1)
_TAKE: Final = (
    update(deliveries)
    .where(_of.seq.in_(bindparam("taken", expanding=True)))
    .values(
        state=State.SENDING,
        lease=bindparam("proof"),
        due_at=bindparam("ends"),
        set_at=bindparam("now"),
        attempts=_of.attempts + 1,
        # A lease that ended by itself: whoever had it may have sent the message.
        maybe_sent=case((_of.state == State.SENDING, 1), else_=_of.maybe_sent),
    )
)
_EVENTS: Final = select(events.c.seq, events.c.event).where(events.c.seq.in_(bindparam("wanted", expanding=True)))
_told = (
    select(func.min(_of.seq))
    .where(
        _of.incident_id.in_(bindparam("incidents", expanding=True)),
        _of.episode.in_(bindparam("episodes", expanding=True)),
        _of.channel == bindparam("channel"),
        _of.state.concat("") == State.DELIVERED,  # else a database looks through all that was delivered there
    )
    .group_by(_of.incident_id, _of.episode)
)
_FIRST_RECEIPTS: Final = select(_of.incident_id, _of.episode, _of.receipt).where(_of.seq.in_(_told))
_FIRED: Final = (
    select(_of.incident_id, _of.episode, func.max(events.c.seq).label("event"))
    .group_by(_of.incident_id, _of.episode)
    .join(events, and_(events.c.incident_id == _of.incident_id, events.c.seq.between(_of.first_event, _of.event_seq)))
    .where(_of.incident_id.in_(bindparam("incidents", expanding=True)), _of.channel == bindparam("channel"))
    .where(_of.episode.in_(bindparam("episodes", expanding=True)), events.c.status == Status.FIRING)
)
"""The last event that fired. Of what a delivery tells any may have: what falls back late tells the beginning and the
end as one."""


class Claim(NamedTuple):
    """A delivery that is ours until its lease ends."""

    delivery_id: str
    lease: str
    """Proof of this claim; a receipt is written only under it."""
    attempt: int
    """1 for the first."""
    channel: str
    incident_id: str
    episode: int
    accepted_at: datetime
    age: float
    """Seconds since then, by the clock that it was accepted by."""
    first_event: int
    last_event: int
    """It tells the events of its incident from the first to the last."""
    written_event: bytes
    """The last of them."""
    first_receipt: Mapping[str, str] | None
    """Of this episode's first delivery on this channel."""
    untold: bool
    """Whether the incident is over, and this channel was never told that it had begun."""
    maybe_sent: bool
    """Whether an earlier attempt may have arrived without anybody knowing."""
    progress: Mapping[str, str]
    note: str
    probe: bool
    """Whether it tries for all others that a channel's breaker holds back."""
    sharing: tuple[str, ...] = ()
    """Where it tells an end: the channels on which that ends every incident of its group; see `same_group`."""
    others: Mapping[str, int] = MappingProxyType({})
    """The open incidents of its group on these, with their latest event by then."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker asks for."""

    channel: str
    limit: int
    owner: str
    """Whose claims they become; unique to this run of a relay."""
    seconds: float
    """How long the lease lasts."""
    rate: float | None
    """Messages in a second that the channel takes; None where there is no pace."""
    sharing: tuple[str, ...] = ()
    """Where incidents of a group are one on this channel: it, and others that lead to the same place."""
    held: tuple[str, ...] = ()
    """The deliveries that it is just sending: theirs are the leases that it trusts, whatever the clock was set to."""


class Taken(NamedTuple):
    """What it gets."""

    claims: tuple[Claim, ...]
    seconds: float | None
    """When to ask again; None where nothing waits for a moment that is known."""
    refused: bool
    """Whether the channel refuses everything until a person acts."""


async def claim(store: Store, wanted: Wanted) -> Taken:
    """Deliveries of a channel that are due and whose predecessors of their incident are done, the oldest first.

    Raises:
        StoreUnavailableError: it is not known whether anything was claimed.
    """
    return await store.batch(_claim, wanted)


def _claim(transaction: Transaction, asked: Sequence[Wanted]) -> list[Taken]:
    return [_of_channel(transaction, wanted) for wanted in asked]


def _of_channel(transaction: Transaction, wanted: Wanted) -> Taken:
    admission, row = gate.admit(transaction, wanted.channel, wanted.limit)
    if row is None or not admission.limit:
        return Taken((), admission.seconds, admission.refused)
    room, seconds = within_pace(row.next_slot, transaction.now, admission.limit, wanted.rate)
    due = _due(transaction, wanted, room) if room else []
    if not due:
        return Taken((), seconds if not room else _next(transaction, wanted.channel), admission.refused)
    probe_seconds = wanted.seconds if admission.probe else None
    gate.took(transaction, row, len(due), rate=wanted.rate, probe_seconds=probe_seconds)
    lease = f"{wanted.owner}/{uuid4().hex}"
    taking = {"taken": [each.seq for each in due], "proof": lease, "now": transaction.now}
    transaction.connection.execute(_TAKE, {**taking, "ends": transaction.now + wanted.seconds})
    return Taken(_claims(transaction, wanted, due, lease, admission.probe), 0.0, admission.refused)


def _due(transaction: Transaction, wanted: Wanted, most: int) -> list[Row[*tuple[Any, ...]]]:
    """Rows of deliveries to claim, with the size and status of their event."""
    asked = {"channel": wanted.channel, "now": transaction.now, "most": most, "held": wanted.held}
    found = transaction.connection.execute(_DUE, asked).all()
    due: list[Row[*tuple[Any, ...]]] = []
    size = 0
    for row in found:
        if due and size + row.size > LARGE:
            break
        newest = _newest(transaction, row)
        if newest is not None:
            size += newest.size
            due.append(newest)
    return due


def _newest(transaction: Transaction, row: Row[*tuple[Any, ...]]) -> Row[*tuple[Any, ...]] | None:
    """A delivery whose lease ended waits again, and is merged into what waits behind it.

    None where somebody else is just changing what waits of its incident: it has a moment's time.
    """
    if row.state != State.SENDING:
        return row
    if not locked_now(transaction, row.incident_id):
        return None
    successor = merge_into_successor(transaction, row, Waits(row.attempts, transaction.now, row.reason))
    return transaction.connection.execute(_BY_ID, {"delivery": successor}).one() if successor else row


def _next(transaction: Transaction, channel: str) -> float | None:
    """In how many seconds the next delivery becomes due, or a lease ends."""
    due_at = transaction.connection.execute(_NEXT_DUE, {"channel": channel}).scalar()
    return None if due_at is None else max(due_at - transaction.now, 0.0)


def _claims(
    transaction: Transaction, asked: Wanted, due: Sequence[Row[*tuple[Any, ...]]], lease: str, probe: bool
) -> tuple[Claim, ...]:
    connection, channel = transaction.connection, asked.channel
    episodes = list({row.episode for row in due})
    incidents = {"incidents": [row.incident_id for row in due], "episodes": episodes, "channel": channel}
    wanted = {"wanted": [row.event_seq for row in due]}
    written = {row.seq: row.event for row in connection.execute(_EVENTS, wanted).all()}
    first = connection.execute(_FIRST_RECEIPTS, incidents).all()
    receipts = {(row.incident_id, row.episode): row.receipt for row in first}
    over = any(row.status == Status.RESOLVED and (row.incident_id, row.episode) not in receipts for row in due)
    found = connection.execute(_FIRED, incidents).all() if over else ()
    fired = {(row.incident_id, row.episode): row.event for row in found}

    ends = {row.incident_id for row in due if row.status == Status.RESOLVED} if asked.sharing else set()
    others = open_on(connection, ends, asked.sharing) if ends else {}

    def made(row: Row[*tuple[Any, ...]]) -> Claim:
        episode = (row.incident_id, row.episode)
        receipt = receipts.get(episode)
        return Claim(
            delivery_id=row.id,
            lease=lease,
            attempt=row.attempts + 1,
            channel=channel,
            incident_id=row.incident_id,
            episode=row.episode,
            accepted_at=datetime.fromtimestamp(row.accepted_at, UTC),
            age=transaction.now - row.accepted_at,
            first_event=row.first_event,
            last_event=row.event_seq,
            written_event=written[row.event_seq],
            first_receipt=json.loads(receipt) if receipt else None,
            untold=receipt is None and row.status == Status.RESOLVED and fired.get(episode, 0) > (row.maybe_told or 0),
            maybe_sent=bool(row.maybe_sent) or row.state == State.SENDING,
            progress=json.loads(row.progress) if row.progress else {},
            note=row.note or "",
            probe=probe,
            sharing=asked.sharing if row.incident_id in ends else (),
            others={other.other: other.latest_event for other in others.get(row.incident_id, ())},
        )

    return tuple(made(row) for row in due)
