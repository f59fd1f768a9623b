"""Who takes care of an incident, and where it goes if nobody does.

A person acknowledges the episode that they see: where another one has begun since, nothing is changed. That ends
mentions, broadcasts and escalation, and never a delivery. The first acknowledgement counts, whichever replica and
however many persons there are. Where its provider can be told, a delivery of the current state on that channel carries
it there (see `context`).

Each event stores the steps of its route in the incident's row, so that any replica can take them, whatever its own
configuration says. A step is due so many seconds after the first delivery of the episode, on whatever channel, or after
an acknowledgement was withdrawn. One transaction takes all steps that are due: it adds a delivery of the latest event
on each new channel, where the incident is open from then on, and leaves only the later steps in the row. What no
channel of its route has taken for two minutes makes the next step due at once (see `fallback`).
"""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, exists, func, or_, select, update

from services.relay.incidents.queries import UnknownIncidentError
from services.relay.metrics import Metrics
from services.relay.model import decode_steps, encode_steps
from services.relay.outbox import database as dialect
from services.relay.outbox.audit import insert_entry
from services.relay.outbox.edits import request_edits
from services.relay.outbox.fallback import IS_UNTAKEN, UNTAKEN_AFTER
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.recovery import COMPARE_DELAY
from services.relay.outbox.served_channels import read_served_channels
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import (
    CLOCK_TOLERANCE,
    UNFINISHED,
    DeliveryState,
    StandIn,
    clean_for_database,
    deliveries,
    incidents,
)
from shared.http.json_api import RefusedError
from shared.sql.rows import RowQuery, select_rows, select_values

ACTOR: Final = "keypulse"
"""Who escalates, in the audit."""
_STEP_SIZE: Final = 32
"""How many incidents one transaction escalates."""
_MAX_AHEAD: Final = COMPARE_DELAY + CLOCK_TOLERANCE
"""Seconds from now after which no step can start to count, unless the clock was set back."""


class Escalation(NamedTuple):
    incident_id: str
    channels: tuple[str, ...]
    """The channels that were added."""
    skipped_channels: tuple[str, ...]
    """Channels on which no replica delivers."""
    edited_channels: frozenset[str] = frozenset()
    """Channels whose first message is edited, to show it."""
    superseded_channels: tuple[str, ...] = ()
    """The channel of each delivery, of an earlier episode, that was merged into a new one."""


class _EscalatingRow(NamedTuple):
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
_is_untaken = and_(
    func.coalesce(_of.escalated_at, 0.0) <= bindparam("untaken_since"),  # a step has as long as the route
    exists()
    .where(_delivery.incident_id == _of.id, _delivery.episode == _of.episode, IS_UNTAKEN)
    .correlate_except(deliveries),
)
_DUE: Final = select_rows(_EscalatingRow, _of).where(
    _of.escalation_after.is_not(None),  # as the index `incidents_escalating` has it; null once it is resolved
    _of.acknowledged_at.is_(None),
    or_(_starts_at <= bindparam("now") - _of.escalation_after, _starts_too_late, _is_untaken),
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
    now = dialect.read_clock(connection, store.clock)
    rows = _FIND_DUE.fetch_all(connection, compute_times(now))
    return [row.id for row in rows]


def compute_times(now: float) -> dict[str, float]:
    """The values of the statements that find what is due."""
    return {"now": now, "untaken_since": now - UNTAKEN_AFTER, "stand_in": StandIn.FALLBACK}


def _escalate(transaction: Transaction, found: Sequence[str], configured_channels: Collection[str]) -> list[Escalation]:
    """One step. What another replica did, or somebody acknowledged, since `found` was read is left out."""
    connection = transaction.connection
    lock_incidents(transaction, found)
    served = read_served_channels(connection, transaction.now).union(configured_channels)
    now = transaction.now
    rows = _READ_DUE.fetch_all(connection, {"incidents": list(found), **compute_times(now)})
    return [_escalate_incident(transaction, row, served) for row in rows]


def _escalate_incident(transaction: Transaction, row: _EscalatingRow, served: Collection[str]) -> Escalation:
    connection, now = transaction.connection, transaction.now
    starts_at = _STARTS_AT.fetch_first(connection, {"incident": row.id})
    if starts_at is not None and starts_at > now + _MAX_AHEAD:  # the clock was set back since
        connection.execute(_START_NOW, {"incident": row.id, "at": now})
        return Escalation(row.id, (), ())
    steps = decode_steps(row.escalation)
    count = 0 if starts_at is None else sum(starts_at <= now - step.after for step in steps)
    why = f"nobody acknowledged it within {_format_wait(steps[count - 1].after)}"
    if not count:
        count, why = 1, f"no channel of its route has taken it for {_format_wait(UNTAKEN_AFTER)}"
    due, later = steps[:count], steps[count:]
    named = dict.fromkeys(channel for step in due for channel in step.channels)
    is_open = set(_OPEN_CHANNELS.fetch_all(connection, {"incident": row.id, "episode": row.episode}))
    channels = tuple(name for name in named if name in served and name not in is_open)
    edited: frozenset[str] = frozenset()
    superseded: list[str] = []
    if channels:
        remark = f"Escalated: {why}."
        seq = row.latest_event_seq
        new = [NewDelivery(seq, seq, row.id, row.episode, name, remark, stand_in=StandIn.STEP) for name in channels]
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


MAX_NAME: Final = 200
"""Characters of a name that are stored."""


class EpisodeOverError(RefusedError):
    """The episode is over; the message is a sentence that says so, and how the incident stands."""

    status = 409


class Acknowledgement(NamedTuple):
    """How an incident stands after an action."""

    incident_id: str
    by: str | None
    """Who acknowledged it; None if nobody has."""
    at: float | None
    """When, unix seconds."""
    is_changed: bool
    """Whether the action changed it: it may have been acknowledged before, or not at all."""
    channels_to_wake: tuple[str, ...] = ()
    """The channels that have something new to deliver."""


class _StateRow(NamedTuple):
    episode: int
    is_open: int
    latest_event_seq: int
    acknowledged_by: str | None
    acknowledged_at: float | None


_READ_STATE: Final = select_rows(_StateRow, incidents.c).where(incidents.c.id == bindparam("incident"))
_FIND_CHANNELS: Final = RowQuery(str, select(_delivery.channel).distinct()).where(
    _delivery.incident_id == bindparam("incident"),
    _delivery.episode == bindparam("episode"),
    _delivery.channel.in_(bindparam("channels", expanding=True)),
    _delivery.state.in_([DeliveryState.DELIVERED.value, *(state.value for state in UNFINISHED)]),
)
_WRITE: Final = (
    update(incidents)
    .where(incidents.c.id == bindparam("incident"))
    .values(
        acknowledged_by=bindparam("by"),
        acknowledged_at=bindparam("at"),
        acknowledged_via=bindparam("via"),
        escalation_starts_at=bindparam("starts_at"),
    )
)


async def acknowledge(
    store: Store,
    incident_id: str,
    *,
    episode: int | None = None,
    who: str,
    via: str,
    peer: str | None = None,
    acknowledging_channels: Collection[str],
) -> Acknowledgement:
    """Acknowledges an episode of an incident, with an entry in the audit; both are committed, or neither is.

    Args:
        store: the outbox.
        incident_id: which incident.
        episode: which the person has seen; None for the current one.
        who: the person, or the credential.
        via: `api`, `command line`, `console`, `mail` or `slack`; stands in the audit for an unknown `peer`.
        peer: the address that called.
        acknowledging_channels: the channels whose provider knows acknowledgements.

    Raises:
        UnknownIncidentError: nothing was changed.
        EpisodeOverError: nothing was changed.
        StoreUnavailableError: it is not known to be committed.
    """
    who = clean_for_database(who)[:MAX_NAME]

    def work(transaction: Transaction) -> Acknowledgement:
        row = _lock_open(transaction, incident_id, episode)
        if row.acknowledged_at is not None:
            return Acknowledgement(incident_id, row.acknowledged_by, row.acknowledged_at, is_changed=False)
        _write(transaction, incident_id, {"by": who, "at": transaction.now, "via": via, "starts_at": None})
        insert_entry(transaction, who, peer or via, "acknowledge", incident_id, incident_id)
        values = {"incident": incident_id, "episode": row.episode, "channels": sorted(acknowledging_channels)}
        channels = sorted(_FIND_CHANNELS.fetch_all(transaction.connection, values))
        seq, remark = row.latest_event_seq, f"Acknowledged by {who}."
        new = [NewDelivery(seq, seq, incident_id, row.episode, channel, remark) for channel in channels]
        enqueue_deliveries(transaction, new)
        channels_to_wake = request_edits(transaction, [incident_id]).union(channels)
        return Acknowledgement(
            incident_id, who, transaction.now, is_changed=True, channels_to_wake=tuple(sorted(channels_to_wake))
        )

    return await store.run(work)


async def unacknowledge(
    store: Store, incident_id: str, *, episode: int | None = None, who: str, via: str, peer: str | None = None
) -> Acknowledgement:
    """Withdraws the acknowledgement; see `acknowledge`. Escalation begins again, as if it were delivered now."""

    def work(transaction: Transaction) -> Acknowledgement:
        row = _lock_open(transaction, incident_id, episode)
        if row.acknowledged_at is None:
            return Acknowledgement(incident_id, None, None, is_changed=False)
        values = {"by": None, "at": None, "via": None, "starts_at": transaction.now}
        _write(transaction, incident_id, values)
        name = clean_for_database(who)[:MAX_NAME]
        insert_entry(transaction, name, peer or via, "unacknowledge", incident_id, incident_id)
        channels_to_wake = request_edits(transaction, [incident_id])
        return Acknowledgement(
            incident_id, None, None, is_changed=True, channels_to_wake=tuple(sorted(channels_to_wake))
        )

    return await store.run(work)


class Acknowledging:
    """Acknowledges and withdraws for people, wherever they do it; counts it, and wakes the channels that show it."""

    def __init__(
        self,
        store: Store,
        acknowledging_channels: Collection[str],
        metrics: Metrics,
        wake_channels: Callable[[Iterable[str]], None],
    ) -> None:
        self._store = store
        self._acknowledging_channels = acknowledging_channels
        self._metrics = metrics
        self._wake_channels = wake_channels

    async def change(
        self, incident_id: str, *, withdraws: bool = False, episode: int | None, who: str, via: str, peer: str | None
    ) -> Acknowledgement:
        """See `acknowledge` and `unacknowledge`."""
        if withdraws:
            done = await unacknowledge(self._store, incident_id, episode=episode, who=who, via=via, peer=peer)
        else:
            done = await acknowledge(
                self._store,
                incident_id,
                episode=episode,
                who=who,
                via=via,
                peer=peer,
                acknowledging_channels=self._acknowledging_channels,
            )
            if done.is_changed:
                self._metrics.acknowledgements.labels(via).inc()
        self._wake_channels(done.channels_to_wake)
        return done


def check_open(connection: Connection, incident_id: str, episode: int | None) -> None:
    """Checks that an episode is open; None is the current one. Raises UnknownIncidentError, EpisodeOverError."""
    _read_open(connection, incident_id, episode)


def _lock_open(transaction: Transaction, incident_id: str, episode: int | None) -> _StateRow:
    lock_incidents(transaction, [incident_id])
    return _read_open(transaction.connection, incident_id, episode)


def _read_open(connection: Connection, incident_id: str, episode: int | None) -> _StateRow:
    row = _READ_STATE.fetch_first(connection, {"incident": incident_id})
    if row is None:
        raise UnknownIncidentError("no such incident")
    episode = row.episode if episode is None else episode
    if episode > row.episode:
        raise UnknownIncidentError(f"the incident has no episode {episode}; its last one is {row.episode}")
    if not row.is_open:
        raise EpisodeOverError(f"episode {episode} is over; the incident is resolved")
    if episode < row.episode:
        raise EpisodeOverError(f"episode {episode} is over; the incident fires again as episode {row.episode}")
    return row


def _write(transaction: Transaction, incident_id: str, values: dict[str, Any]) -> None:
    transaction.connection.execute(_WRITE, {"incident": incident_id, **values})
