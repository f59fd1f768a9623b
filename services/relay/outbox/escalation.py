"""An incident that was delivered, and that nobody has acknowledged, goes to further channels after a while.

Each event stores the steps of its route in the incident's row, so that any replica can take them, whatever its own
configuration says. A step is due so many seconds after the first delivery of the episode, on whatever channel, or after
an acknowledgement was withdrawn. One transaction takes all steps that are due: it adds a delivery of the latest event
on each new channel, and leaves only the later steps in the row. From then on the incident is open on these channels,
and all its further events go there.

Before anything was delivered, no step is due: then fallback channels stand in (see `fallback`).
"""

import json
from collections.abc import Collection, Sequence
from functools import partial
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, or_, select, update

from services.relay.model import EscalationStep, encode_steps
from services.relay.outbox.channel_state.served_channels import read_served_channels
from services.relay.outbox.edit_requests import request_edits
from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.operators.audit import insert_entry
from services.relay.outbox.restore_detection import COMPARE_DELAY
from services.relay.outbox.rows import RowQuery, select_columns, select_values
from services.relay.outbox.tables import CLOCK_TOLERANCE, DeliveryState, deliveries, incidents

ACTOR: Final = "keypulse"
"""Who escalates, in the audit."""
_STEP_SIZE: Final = 32
"""How many incidents one transaction escalates."""
_MAX_AHEAD: Final = COMPARE_DELAY + CLOCK_TOLERANCE
"""Seconds from now after which no step can start to count, unless the clock was set back."""


class Escalation(NamedTuple):
    """What was done for one incident."""

    incident_id: str
    channels: tuple[str, ...]
    """Those that were added."""
    skipped_channels: tuple[str, ...]
    """Those on which no replica delivers."""
    edited_channels: frozenset[str] = frozenset()
    """Those whose first message is edited, to show it."""
    superseded_channels: tuple[str, ...] = ()
    """The channel of each delivery, of an earlier episode, that was merged into a new one."""


class _EscalatingRow(NamedTuple):
    """An incident with a step that is due."""

    id: str
    episode: int
    latest_event_seq: int
    escalation: str | None
    escalated_to: str | None
    escalated_at: float | None


_of = incidents.c
_delivery = deliveries.c
_first_delivered_at = (
    select(func.min(_delivery.finished_at))
    .where(
        _delivery.incident_id == _of.id,
        _delivery.episode == _of.episode,
        _delivery.state.concat("") == DeliveryState.DELIVERED,  # so that `deliveries_of_episode` is used
    )
    .scalar_subquery()
)
_starts_at = func.coalesce(_of.escalation_starts_at, _first_delivered_at)
_starts_too_late = _starts_at > bindparam("now") + _MAX_AHEAD
_DUE: Final = RowQuery(_EscalatingRow, select(*select_columns(_EscalatingRow, _of))).where(
    _of.escalation_after.is_not(None),  # as the index `incidents_escalating` has it; null once it is resolved
    _of.acknowledged_at.is_(None),
    or_(_starts_at <= bindparam("now") - _of.escalation_after, _starts_too_late),
)
_FIND_DUE: Final = _DUE.order_by(_of.id).limit(_STEP_SIZE)
_READ_DUE: Final = _DUE.where(_of.id.in_(bindparam("incidents", expanding=True))).order_by(_of.id)
_STARTS_AT: Final = select_values(float, _starts_at).where(_of.id == bindparam("incident"))
_OPEN_CHANNELS: Final = RowQuery(str, select(_delivery.channel).distinct()).where(
    _delivery.incident_id == bindparam("incident"), _delivery.episode == bindparam("episode")
)
_START_NOW: Final = (
    update(incidents).where(_of.id == bindparam("incident")).values(escalation_starts_at=bindparam("at"))
)
_RECORD: Final = (
    update(incidents)
    .where(_of.id == bindparam("incident"))
    .values(
        escalation=bindparam("steps"),
        escalation_after=bindparam("after"),
        escalated_to=bindparam("channels"),
        escalated_at=bindparam("at"),
    )
)


async def escalate_due(store: Store, configured_channels: Collection[str]) -> list[Escalation]:
    """Takes every step that is due, each once, whatever other replicas do.

    Args:
        store: the outbox.
        configured_channels: the channels of this relay.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    escalations: list[Escalation] = []
    while found := await store.read(partial(_find_due, store=store)):
        step = await store.run(partial(_escalate, found=found, configured_channels=configured_channels))
        if not step:  # another replica was faster
            break
        escalations += step
    return escalations


def _find_due(connection: Connection, store: Store) -> list[str]:
    rows = _FIND_DUE.fetch_all(connection, {"now": dialect.read_clock(connection, store.clock)})
    return [row.id for row in rows]


def _escalate(transaction: Transaction, found: Sequence[str], configured_channels: Collection[str]) -> list[Escalation]:
    """One step. What another replica did, or somebody acknowledged, since `found` was read is left out."""
    connection = transaction.connection
    lock_incidents(transaction, found)
    served = read_served_channels(connection, transaction.now).union(configured_channels)
    rows = _READ_DUE.fetch_all(connection, {"incidents": list(found), "now": transaction.now})
    return [_escalate_incident(transaction, row, served) for row in rows]


def _escalate_incident(transaction: Transaction, row: _EscalatingRow, served: Collection[str]) -> Escalation:
    connection, now = transaction.connection, transaction.now
    starts_at = _STARTS_AT.fetch_one(connection, {"incident": row.id})
    if starts_at > now + _MAX_AHEAD:  # the clock was set back since
        connection.execute(_START_NOW, {"incident": row.id, "at": now})
        return Escalation(row.id, (), ())
    steps = [EscalationStep(after, tuple(channels)) for after, channels in json.loads(row.escalation or "[]")]
    count = max(1, sum(starts_at + step.after <= now for step in steps))  # the first one is due, as was read
    due, later = steps[:count], steps[count:]
    named = dict.fromkeys(channel for step in due for channel in step.channels)
    is_open = set(_OPEN_CHANNELS.fetch_all(connection, {"incident": row.id, "episode": row.episode}))
    channels = tuple(name for name in named if name in served and name not in is_open)
    edited: frozenset[str] = frozenset()
    superseded: list[str] = []
    if channels:
        remark = f"Escalated: nobody acknowledged it within {_format_wait(due[-1].after)}."
        seq = row.latest_event_seq
        new = [NewDelivery(seq, seq, row.id, row.episode, channel, remark) for channel in channels]
        superseded = [old.channel for old in enqueue_deliveries(transaction, new).superseded_rows]
        edited = request_edits(transaction, [row.id])
        insert_entry(transaction, ACTOR, None, "escalate", f"{row.id} to {', '.join(channels)}", row.id)
    escalated_to = [*json.loads(row.escalated_to or "[]"), *channels]
    connection.execute(
        _RECORD,
        {
            "incident": row.id,
            "steps": encode_steps(later),
            "after": later[0].after if later else None,
            "channels": json.dumps(escalated_to) if escalated_to else None,
            "at": now if channels else row.escalated_at,
        },
    )
    skipped = tuple(name for name in named if name not in served)
    return Escalation(row.id, channels, skipped, edited, tuple(superseded))


def _format_wait(seconds: float) -> str:
    """Such as `10 min`; exact, since a person set it."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"
