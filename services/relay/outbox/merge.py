"""Adds deliveries to the outbox, and merges what waits on a channel for the same incident.

An incident has at most one waiting delivery on a channel that merges, and it has every event that was not delivered
yet, from its `first_event_seq` to its `event_seq`. A new delivery takes the place of the waiting one: it continues
after as many attempts, and no sooner. A delivery that fails is merged into its successor, if one waits.

Every transaction that changes the waiting deliveries of an incident first locks the incident's row. So of two replicas
the second one sees what the first did: PostgreSQL reads a row anew that it had to wait for, but neither joined rows nor
what another statement read before. SQLite has one writer at a time, and nothing to lock.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, case, insert, update

from services.relay.outbox.store import BulkStatement, Transaction
from services.relay.outbox.tables import (
    DELIVERIES,
    WAITING,
    DeliveryRow,
    DeliveryState,
    StandIn,
    create_id,
    deliveries,
    incidents,
)
from shared.sql.rows import select_values

_delivery = deliveries.c
_INCIDENT_IDS: Final = (
    select_values(str, incidents.c.id)
    .where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
    .order_by(incidents.c.id)
)
_LOCK_INCIDENTS: Final = _INCIDENT_IDS.for_update()
_LOCK_INCIDENTS_IF_FREE: Final = _INCIDENT_IDS.for_update(skip_locked=True)
_LOCK_WAITING: Final = (
    DELIVERIES.where(
        _delivery.channel.in_(bindparam("channels", expanding=True)),
        _delivery.incident_id.in_(bindparam("incidents", expanding=True)),
        _delivery.finished_at.is_(None),
        _delivery.state.in_([state.value for state in WAITING]),
    )
    .order_by(_delivery.seq)
    .for_update()
)
_LOCK_SUCCESSOR: Final = _LOCK_WAITING.where(_delivery.seq > bindparam("before"))
_SUPERSEDE: Final = BulkStatement(
    update(deliveries)
    .where(_delivery.seq == bindparam("old"))
    .values(
        state=DeliveryState.SUPERSEDED,
        superseded_by=bindparam("by"),
        finished_at=bindparam("at"),
        lease=None,
        maybe_sent=case((_delivery.state == DeliveryState.SENDING, 1), else_=_delivery.maybe_sent),
    )
)
_UPDATE_SUCCESSOR: Final = (
    update(deliveries)
    .where(_delivery.seq == bindparam("successor"))
    .values(
        state=bindparam("new_state"),
        first_event_seq=bindparam("new_first_event_seq"),
        oldest_accepted_at=bindparam("new_oldest_accepted_at"),
        remark=bindparam("new_remark"),
        attempts=bindparam("new_attempts"),
        due_at=bindparam("new_due_at"),
        reason=bindparam("new_reason"),
        fallback_up_to=bindparam("new_fallback_up_to"),
        maybe_delivered_up_to=bindparam("new_maybe_delivered_up_to"),
    )
)
_INSERT_COLUMNS: Final = (
    *("id", "event_seq", "first_event_seq", "incident_id", "episode", "channel", "state", "attempts", "reason"),
    *("accepted_at", "oldest_accepted_at", "due_at", "remark"),
    *("fallback_up_to", "maybe_delivered_up_to", "stand_in"),
)
_INSERT: Final = BulkStatement(insert(deliveries), _INSERT_COLUMNS)


class NewDelivery(NamedTuple):
    event_seq: int
    first_event_seq: int
    """Of the events in it; `event_seq` where it is one."""
    incident_id: str
    episode: int
    channel: str
    remark: str | None = None
    is_first_of_incident: bool = False
    """Whether nothing of its incident can be waiting, so that no query is needed."""
    stand_in: StandIn = StandIn.NONE


@dataclass(frozen=True, slots=True)
class RetryState:
    """When a delivery is tried again, and after how many attempts."""

    attempts: int
    due_at: float
    reason: str | None


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    delivery_ids: list[str]
    """For each, the id of the delivery that delivers it: its own, or one that waits with something newer."""
    superseded_rows: list[DeliveryRow]
    """The deliveries that were merged into a new one."""


@dataclass(frozen=True, slots=True)
class DeliveryChanges:
    """What a step did to other deliveries."""

    ended: tuple[tuple[str, DeliveryState], ...] = ()
    """The channel of each delivery that ended: SUPERSEDED, since it was merged into another one, or DEAD."""
    channels_to_wake: frozenset[str] = frozenset()
    """The channels that have something new to deliver."""
    has_more: bool = False
    """Whether there may be more to do."""

    def add(self, other: "DeliveryChanges") -> "DeliveryChanges":
        """Both; whether there is more, the other one says."""
        return DeliveryChanges(
            self.ended + other.ended, self.channels_to_wake | other.channels_to_wake, has_more=other.has_more
        )


def list_superseded(channels: Iterable[str]) -> tuple[tuple[str, DeliveryState], ...]:
    """The `ended` of deliveries on these channels that were merged into others."""
    return tuple((channel, DeliveryState.SUPERSEDED) for channel in channels)


def lock_incidents(transaction: Transaction, incident_ids: Collection[str]) -> None:
    """Waits for the incidents, in one order, so that nobody waits in a circle. Before anything else is locked."""
    if incident_ids and transaction.connection.dialect.name != "sqlite":
        _LOCK_INCIDENTS.fetch_all(transaction.connection, {"incidents": sorted(incident_ids)})


def try_lock_incident(transaction: Transaction, incident_id: str) -> bool:
    """Locks an incident where nobody else holds it; for who has locked something else already, and must not wait."""
    if transaction.connection.dialect.name == "sqlite":
        return True
    return _LOCK_INCIDENTS_IF_FREE.fetch_first(transaction.connection, {"incidents": [incident_id]}) is not None


def enqueue_deliveries(transaction: Transaction, new_deliveries: Sequence[NewDelivery]) -> EnqueueResult:
    """Inserts deliveries.

    At most one for each incident and channel may be among `new_deliveries`, but for channels that merge nothing.
    """
    waiting_rows = _lock_waiting(transaction, [new for new in new_deliveries if not new.is_first_of_incident])
    rows, superseded = [], []
    result = EnqueueResult([], [])
    for new in new_deliveries:
        old = waiting_rows.get((new.channel, new.incident_id))
        if old is not None and old.event_seq >= new.event_seq:
            if old.first_event_seq <= new.first_event_seq or not (old.attempts or old.maybe_sent):
                _extend_to_event(transaction, old, new.first_event_seq)
                result.delivery_ids.append(old.id)
                continue
            # It may have arrived without the older events: another message has to deliver them.
            new = new._replace(event_seq=old.event_seq, episode=old.episode)  # noqa: PLW2901
        row = _build_row(new, transaction.now)
        if old is not None:
            row |= _inherit(new, old, transaction.now)
            superseded.append({"old": old.seq, "by": row["id"], "at": transaction.now})
            result.superseded_rows.append(old)
        result.delivery_ids.append(row["id"])
        rows.append(row)
    if superseded:
        _SUPERSEDE.execute(transaction.connection, superseded)
    if rows:
        _INSERT.execute(transaction.connection, rows)
    return result


def merge_into_successor(transaction: Transaction, delivery: DeliveryRow, retry: RetryState) -> str | None:
    """Merges a delivery that was being sent, and has to be sent again, into its successor, which is tried in its place.

    Gives the successor's id; None if nothing waits, and nothing was changed.
    """
    if delivery.channel in transaction.unmerged_channels:
        return None
    values = {"channels": [delivery.channel], "incidents": [delivery.incident_id], "before": delivery.seq}
    successor = _LOCK_SUCCESSOR.fetch_first(transaction.connection, values)
    if successor is None:
        return None
    _SUPERSEDE.execute(transaction.connection, [{"old": delivery.seq, "by": successor.id, "at": transaction.now}])
    is_older = delivery.first_event_seq <= successor.first_event_seq
    transaction.connection.execute(
        _UPDATE_SUCCESSOR,
        {
            "successor": successor.seq,
            "new_state": DeliveryState.RETRYING,
            "new_first_event_seq": min(delivery.first_event_seq, successor.first_event_seq),
            "new_oldest_accepted_at": min(delivery.oldest_accepted_at, successor.oldest_accepted_at),
            "new_remark": successor.remark or delivery.remark,
            "new_attempts": retry.attempts,
            "new_due_at": retry.due_at,
            "new_reason": retry.reason,
            "new_maybe_delivered_up_to": successor.maybe_delivered_up_to or delivery.maybe_delivered_up_to,
            # Of events before its own nobody knows how far they fell back.
            "new_fallback_up_to": delivery.fallback_up_to if is_older else None,
        },
    )
    return successor.id


def _lock_waiting(
    transaction: Transaction, new_deliveries: Sequence[NewDelivery]
) -> dict[tuple[str, str], DeliveryRow]:
    merged_deliveries = [new for new in new_deliveries if new.channel not in transaction.unmerged_channels]
    if not merged_deliveries:
        return {}
    values = {
        "channels": sorted({new.channel for new in merged_deliveries}),
        "incidents": sorted({new.incident_id for new in merged_deliveries}),
    }
    return {(row.channel, row.incident_id): row for row in _LOCK_WAITING.fetch_all(transaction.connection, values)}


def _extend_to_event(transaction: Transaction, waiting: DeliveryRow, first_event_seq: int) -> None:
    """What waits is newer, and was never sent: it delivers the older events, too."""
    if first_event_seq < waiting.first_event_seq:
        extended = update(deliveries).where(_delivery.seq == waiting.seq)
        transaction.connection.execute(extended.values(first_event_seq=first_event_seq, fallback_up_to=None))


def _build_row(new: NewDelivery, now: float) -> dict[str, Any]:
    return {
        "id": create_id(now),
        "event_seq": new.event_seq,
        "first_event_seq": new.first_event_seq,
        "incident_id": new.incident_id,
        "episode": new.episode,
        "channel": new.channel,
        "state": DeliveryState.QUEUED,
        "attempts": 0,
        "reason": None,
        "accepted_at": now,
        "oldest_accepted_at": now,
        "due_at": now,
        "remark": new.remark,
        "fallback_up_to": None,
        "maybe_delivered_up_to": None,
        "stand_in": new.stand_in,
    }


def _inherit(new: NewDelivery, old: DeliveryRow, now: float) -> dict[str, Any]:
    is_restored = old.maybe_delivered_up_to is not None  # only older deliveries wait
    return {
        "first_event_seq": min(old.first_event_seq, new.first_event_seq),
        "state": DeliveryState.RETRYING if old.attempts else DeliveryState.QUEUED,
        "attempts": old.attempts,
        "reason": old.reason,
        "oldest_accepted_at": old.oldest_accepted_at,
        "due_at": now if is_restored else old.due_at,
        "remark": new.remark or old.remark,
        # Of events before its own nobody knows how far they fell back.
        "fallback_up_to": None if new.first_event_seq < old.first_event_seq else old.fallback_up_to,
        "maybe_delivered_up_to": old.maybe_delivered_up_to,
        "stand_in": StandIn.NONE,  # the channel had the incident before
    }
