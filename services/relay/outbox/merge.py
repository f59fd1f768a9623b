"""Whoever changes what waits of an incident holds the incident's row until the transaction ends.

So of two replicas the second one sees what the first did: PostgreSQL reads a row that it had to wait for anew, but not
what is joined to it, nor what another statement read before. SQLite has one writer at a time, and nothing to lock.

Makes deliveries. What waits for the same channel with something of the same incident is merged into the new one.

So an incident has at most one waiting delivery on a channel that merges, and it delivers every event that was not
delivered yet, from its `first_event_seq` to its `event_seq`. It continues where its predecessor stood: after as many
attempts, and no sooner.

"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import uuid4

from sqlalchemy import Row, bindparam, insert, select, update

from services.relay.outbox.engine.batching import BulkStatement, Transaction
from services.relay.outbox.tables import WAITING, State, deliveries, incidents

_SELECT_INCIDENTS: Final = (
    select(incidents.c.id).where(incidents.c.id.in_(bindparam("incidents", expanding=True))).order_by(incidents.c.id)
)
_LOCK_INCIDENTS: Final = _SELECT_INCIDENTS.with_for_update()
_LOCK_INCIDENTS_IF_FREE: Final = _SELECT_INCIDENTS.with_for_update(skip_locked=True)


def lock_incidents(transaction: Transaction, incident_ids: Collection[str]) -> None:
    """Waits for the incidents, in one order, so that nobody waits in a circle. Before anything else is locked."""
    if incident_ids and transaction.connection.dialect.name != "sqlite":
        transaction.connection.execute(_LOCK_INCIDENTS, {"incidents": sorted(incident_ids)})


def try_lock_incident(transaction: Transaction, incident_id: str) -> bool:
    """Locks an incident where nobody else holds it; for who has locked something else already, and must not wait."""
    if transaction.connection.dialect.name == "sqlite":
        return True
    return transaction.connection.execute(_LOCK_INCIDENTS_IF_FREE, {"incidents": [incident_id]}).first() is not None


_delivery = deliveries.c
# Statements are built once: building one costs more than a database takes to run it.
_LOCK_WAITING: Final = (
    select(
        *(
            _delivery.seq,
            _delivery.channel,
            _delivery.incident_id,
            _delivery.event_seq,
            _delivery.first_event_seq,
            _delivery.id,
        ),
        *(_delivery.episode, _delivery.maybe_sent),
        *(
            _delivery.due_at,
            _delivery.due_set_at,
            _delivery.attempts,
            _delivery.reason,
            _delivery.oldest_accepted_at,
            _delivery.remark,
            _delivery.fallback_up_to,
            _delivery.maybe_delivered_up_to,
        ),
    )
    .where(
        _delivery.channel.in_(bindparam("channels", expanding=True)),
        _delivery.incident_id.in_(bindparam("incidents", expanding=True)),
        _delivery.finished_at.is_(None),
        _delivery.state.in_([state.value for state in WAITING]),
    )
    .order_by(_delivery.seq)
    .with_for_update()
)
_LOCK_SUCCESSOR: Final = _LOCK_WAITING.where(_delivery.seq > bindparam("before"))
_SUPERSEDE: Final = BulkStatement(
    update(deliveries)
    .where(_delivery.seq == bindparam("old"))
    .values(state=State.SUPERSEDED, superseded_by=bindparam("by"), finished_at=bindparam("at"), lease=None)
)
_UPDATE_SUCCESSOR: Final = (
    update(deliveries)
    .where(_delivery.seq == bindparam("successor"))
    .values(
        state=bindparam("new_state"),
        first_event_seq=bindparam("first"),
        oldest_accepted_at=bindparam("since"),
        remark=bindparam("said"),
        attempts=bindparam("tried"),
        due_at=bindparam("due"),
        due_set_at=bindparam("at"),
        reason=bindparam("why"),
        fallback_up_to=bindparam("fell"),
        maybe_delivered_up_to=bindparam("told"),
    )
)

_INSERT_COLUMNS: Final = (
    *("id", "event_seq", "first_event_seq", "incident_id", "episode", "channel", "state", "attempts", "reason"),
    *("accepted_at", "oldest_accepted_at", "due_at", "due_set_at", "remark", "fallback_up_to", "maybe_delivered_up_to"),
)
_INSERT: Final = BulkStatement(insert(deliveries), _INSERT_COLUMNS)
_INHERITED_COLUMNS: Final = (
    "due_at",
    "due_set_at",
    "attempts",
    "reason",
    "oldest_accepted_at",
    "fallback_up_to",
    "maybe_delivered_up_to",
)


class NewDelivery(NamedTuple):
    """A delivery to be made."""

    event_seq: int
    first_event_seq: int
    """Of the events that it tells; `event_seq` where it is one."""
    incident_id: str
    episode: int
    channel: str
    remark: str | None = None
    is_first_of_incident: bool = False
    """Whether nothing of its incident can be waiting, so that nobody has to look."""


@dataclass(frozen=True, slots=True)
class RetryState:
    """When a delivery is tried again, and after how many attempts."""

    attempts: int
    due_at: float
    reason: str | None


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    """What became of new deliveries."""

    delivery_ids: list[str]
    """For each, the id of the delivery that tells it: of its own, or of one that waits with something newer."""
    superseded_rows: list[Row[*tuple[Any, ...]]]
    """The rows (seq, channel, incident_id, …) of those that were merged into a new one."""


def enqueue_deliveries(transaction: Transaction, new_deliveries: Sequence[NewDelivery]) -> EnqueueResult:
    """Inserts deliveries.

    At most one for each incident and channel may be among `new_deliveries`, but for channels that merge nothing.
    """
    waiting = _lock_waiting(transaction, [new for new in new_deliveries if not new.is_first_of_incident])
    rows, changes = [], []
    result = EnqueueResult([], [])
    for new in new_deliveries:
        old = waiting.get((new.channel, new.incident_id))
        if old is not None and old.event_seq >= new.event_seq:
            if old.first_event_seq <= new.first_event_seq or not (old.attempts or old.maybe_sent):
                _extend_to_event(transaction, old, new.first_event_seq)
                result.delivery_ids.append(old.id)
                continue
            # It may have arrived without the older events: a message of its own has to tell those.
            new = new._replace(event_seq=old.event_seq, episode=old.episode)  # noqa: PLW2901
        row = _build_row(new, transaction.now)
        if old is not None:
            row |= {name: getattr(old, name) for name in _INHERITED_COLUMNS}
            row |= {
                "first_event_seq": min(old.first_event_seq, new.first_event_seq),
                "state": State.RETRYING if old.attempts else State.QUEUED,
                "remark": new.remark or old.remark,
            }
            if old.maybe_delivered_up_to is not None:
                row |= {"due_at": transaction.now, "due_set_at": transaction.now}  # held back is only what is old
            if new.first_event_seq < old.first_event_seq:
                row["fallback_up_to"] = None  # of the older events that is not known
            changes.append({"old": old.seq, "by": row["id"], "at": transaction.now})
            result.superseded_rows.append(old)
        result.delivery_ids.append(row["id"])
        rows.append(row)
    if changes:
        _SUPERSEDE.execute(transaction.connection, changes)
    if rows:
        _INSERT.execute(transaction.connection, rows)
    return result


def merge_into_successor(transaction: Transaction, delivery: Row[*tuple[Any, ...]], retry: RetryState) -> str | None:
    """Merges a delivery that was being sent, and has to be sent again, into the one that waits behind it.

    Args:
        transaction: the one under way.
        delivery: its row, with seq, channel, incident_id, first_event_seq, oldest_accepted_at, note, fallback_up_to and maybe_delivered_up_to.
        retry: when it would be tried again; the successor then is.

    Returns:
        The id of the successor; None where nothing waits behind it, and nothing was changed.
    """
    if delivery.channel in transaction.unmerged_channels:
        return None
    found = transaction.connection.execute(
        _LOCK_SUCCESSOR, {"channels": [delivery.channel], "incidents": [delivery.incident_id], "before": delivery.seq}
    ).first()
    if found is None:
        return None
    _SUPERSEDE.execute(transaction.connection, [{"old": delivery.seq, "by": found.id, "at": transaction.now}])
    transaction.connection.execute(
        _UPDATE_SUCCESSOR,
        {
            "successor": found.seq,
            "new_state": State.RETRYING,
            "first": min(delivery.first_event_seq, found.first_event_seq),
            "since": min(delivery.oldest_accepted_at, found.oldest_accepted_at),
            "said": found.remark or delivery.remark,
            "tried": retry.attempts,
            "due": retry.due_at,
            "at": transaction.now,
            "why": retry.reason,
            # Of events before its own nobody knows how far they were handed on.
            "told": found.maybe_delivered_up_to or delivery.maybe_delivered_up_to,
            "fell": delivery.fallback_up_to if delivery.first_event_seq <= found.first_event_seq else None,
        },
    )
    successor: str = found.id
    return successor


def _lock_waiting(
    transaction: Transaction, new_deliveries: Sequence[NewDelivery]
) -> dict[tuple[str, str], Row[*tuple[Any, ...]]]:
    wanted = [new for new in new_deliveries if new.channel not in transaction.unmerged_channels]
    if not wanted:
        return {}
    channels = sorted({new.channel for new in wanted})
    incidents = sorted({new.incident_id for new in wanted})
    rows = transaction.connection.execute(_LOCK_WAITING, {"channels": channels, "incidents": incidents})
    return {(row.channel, row.incident_id): row for row in rows}


def _extend_to_event(transaction: Transaction, waiting: Row[*tuple[Any, ...]], first_event_seq: int) -> None:
    """What waits tells something newer already, and was never sent: it tells of the older, too."""
    if first_event_seq < waiting.first_event_seq:
        widened = (
            update(deliveries)
            .where(_delivery.seq == waiting.seq)
            .values(first_event_seq=first_event_seq, fallback_up_to=None)
        )
        transaction.connection.execute(widened)


def _build_row(new: NewDelivery, now: float) -> dict[str, Any]:
    return {
        "id": uuid4().hex,
        "event_seq": new.event_seq,
        "first_event_seq": new.first_event_seq,
        "incident_id": new.incident_id,
        "episode": new.episode,
        "channel": new.channel,
        "state": State.QUEUED,
        "attempts": 0,
        "reason": None,
        "accepted_at": now,
        "oldest_accepted_at": now,
        "due_at": now,
        "due_set_at": now,
        "remark": new.remark,
        "fallback_up_to": None,
        "maybe_delivered_up_to": None,
    }
