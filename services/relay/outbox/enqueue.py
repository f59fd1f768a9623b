"""Makes deliveries. What waits for the same channel with something of the same incident is merged into the new one.

So an incident has at most one waiting delivery on a channel that merges, and that one tells everything that was not
told yet: every event from its `first_event` to its `event_seq`. It goes on where its predecessor stood: after as many
attempts, and no sooner than that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import uuid4

from sqlalchemy import Row, bindparam, insert, select, update

from services.relay.outbox.many import Many
from services.relay.outbox.schema import WAITING, State, deliveries
from services.relay.outbox.together import Transaction

_of = deliveries.c
# Statements are built once: building one costs more than a database takes to run it.
_WAITING: Final = (
    select(
        *(_of.seq, _of.channel, _of.incident_id, _of.event_seq, _of.first_event, _of.id),
        *(_of.episode, _of.maybe_sent),
        *(_of.due_at, _of.set_at, _of.attempts, _of.reason, _of.waits_since, _of.note, _of.fell_back, _of.maybe_told),
    )
    .where(
        _of.channel.in_(bindparam("channels", expanding=True)),
        _of.incident_id.in_(bindparam("incidents", expanding=True)),
        _of.finished_at.is_(None),
        _of.state.in_([state.value for state in WAITING]),
    )
    .order_by(_of.seq)
    .with_for_update()
)
_BEHIND: Final = _WAITING.where(_of.seq > bindparam("before"))
_SUPERSEDE: Final = Many(
    update(deliveries)
    .where(_of.seq == bindparam("old"))
    .values(state=State.SUPERSEDED, superseded_by=bindparam("by"), finished_at=bindparam("at"), lease=None)
)
_TAKE_OVER: Final = (
    update(deliveries)
    .where(_of.seq == bindparam("successor"))
    .values(
        state=bindparam("new_state"),
        first_event=bindparam("first"),
        waits_since=bindparam("since"),
        note=bindparam("said"),
        attempts=bindparam("tried"),
        due_at=bindparam("due"),
        set_at=bindparam("at"),
        reason=bindparam("why"),
        fell_back=bindparam("fell"),
        maybe_told=bindparam("told"),
    )
)

_COLUMNS: Final = (
    *("id", "event_seq", "first_event", "incident_id", "episode", "channel", "state", "attempts", "reason"),
    *("accepted_at", "waits_since", "due_at", "set_at", "note", "fell_back", "maybe_told"),
)
_NEW: Final = Many(insert(deliveries), _COLUMNS)
_INHERITED: Final = ("due_at", "set_at", "attempts", "reason", "waits_since", "fell_back", "maybe_told")


class New(NamedTuple):
    """A delivery to be made."""

    event_seq: int
    first_event: int
    """Of the events that it tells; `event_seq` where it is one."""
    incident_id: str
    episode: int
    channel: str
    note: str | None = None
    fresh: bool = False
    """Whether nothing of its incident can be waiting, so that nobody has to look."""


@dataclass(frozen=True, slots=True)
class Waits:
    """When a delivery is tried again, and after how many attempts."""

    attempts: int
    due_at: float
    reason: str | None


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What became of new deliveries."""

    told_by: list[str]
    """For each, the id of the delivery that tells it: of its own, or of one that waits with something newer."""
    superseded: list[Row[*tuple[Any, ...]]]
    """The rows (seq, channel, incident_id, …) of those that were merged into a new one."""


def enqueue(transaction: Transaction, news: Sequence[New]) -> Enqueued:
    """Inserts deliveries.

    At most one for each incident and channel may be among `news`, but for channels that merge nothing.
    """
    waiting = _waiting(transaction, [new for new in news if not new.fresh])
    rows, changes = [], []
    result = Enqueued([], [])
    for new in news:
        old = waiting.get((new.channel, new.incident_id))
        if old is not None and old.event_seq >= new.event_seq:
            if old.first_event <= new.first_event or not (old.attempts or old.maybe_sent):
                _widen(transaction, old, new.first_event)
                result.told_by.append(old.id)
                continue
            # It may have arrived without the older events: a message of its own has to tell those.
            new = new._replace(event_seq=old.event_seq, episode=old.episode)  # noqa: PLW2901
        row = _row(new, transaction.now)
        if old is not None:
            row |= {name: getattr(old, name) for name in _INHERITED}
            row |= {
                "first_event": min(old.first_event, new.first_event),
                "state": State.RETRYING if old.attempts else State.QUEUED,
                "note": new.note or old.note,
            }
            if old.maybe_told is not None:
                row |= {"due_at": transaction.now, "set_at": transaction.now}  # held back is only what is old
            if new.first_event < old.first_event:
                row["fell_back"] = None  # of the older events that is not known
            changes.append({"old": old.seq, "by": row["id"], "at": transaction.now})
            result.superseded.append(old)
        result.told_by.append(row["id"])
        rows.append(row)
    if changes:
        _SUPERSEDE.execute(transaction.connection, changes)
    if rows:
        _NEW.execute(transaction.connection, rows)
    return result


def merge_into_successor(transaction: Transaction, old: Row[*tuple[Any, ...]], waits: Waits) -> str | None:
    """Merges a delivery that was being sent, and has to be sent again, into the one that waits behind it.

    Args:
        transaction: the one under way.
        old: its row, with seq, channel, incident_id, first_event, waits_since, note, fell_back and maybe_told.
        waits: when it would be tried again; the successor then is.

    Returns:
        The id of the successor; None where nothing waits behind it, and nothing was changed.
    """
    if old.channel in transaction.unmerged:
        return None
    found = transaction.connection.execute(
        _BEHIND, {"channels": [old.channel], "incidents": [old.incident_id], "before": old.seq}
    ).first()
    if found is None:
        return None
    _SUPERSEDE.execute(transaction.connection, [{"old": old.seq, "by": found.id, "at": transaction.now}])
    transaction.connection.execute(
        _TAKE_OVER,
        {
            "successor": found.seq,
            "new_state": State.RETRYING,
            "first": min(old.first_event, found.first_event),
            "since": min(old.waits_since, found.waits_since),
            "said": found.note or old.note,
            "tried": waits.attempts,
            "due": waits.due_at,
            "at": transaction.now,
            "why": waits.reason,
            # Of events before its own nobody knows how far they were handed on.
            "told": found.maybe_told or old.maybe_told,
            "fell": old.fell_back if old.first_event <= found.first_event else None,
        },
    )
    successor: str = found.id
    return successor


def _waiting(transaction: Transaction, news: Sequence[New]) -> dict[tuple[str, str], Row[*tuple[Any, ...]]]:
    wanted = [new for new in news if new.channel not in transaction.unmerged]
    if not wanted:
        return {}
    channels = sorted({new.channel for new in wanted})
    incidents = sorted({new.incident_id for new in wanted})
    rows = transaction.connection.execute(_WAITING, {"channels": channels, "incidents": incidents})
    return {(row.channel, row.incident_id): row for row in rows}


def _widen(transaction: Transaction, waiting: Row[*tuple[Any, ...]], first_event: int) -> None:
    """What waits tells something newer already, and was never sent: it tells of the older, too."""
    if first_event < waiting.first_event:
        widened = update(deliveries).where(_of.seq == waiting.seq).values(first_event=first_event, fell_back=None)
        transaction.connection.execute(widened)


def _row(new: New, now: float) -> dict[str, Any]:
    return {
        "id": uuid4().hex,
        "event_seq": new.event_seq,
        "first_event": new.first_event,
        "incident_id": new.incident_id,
        "episode": new.episode,
        "channel": new.channel,
        "state": State.QUEUED,
        "attempts": 0,
        "reason": None,
        "accepted_at": now,
        "waits_since": now,
        "due_at": now,
        "set_at": now,
        "note": new.note,
        "fell_back": None,
        "maybe_told": None,
    }
