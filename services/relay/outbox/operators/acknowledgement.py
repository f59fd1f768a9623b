"""Who takes care of an incident: its episode is acknowledged, or no longer. The next episode begins without.

A person acknowledges the episode that they see: where another one has begun since, nothing is changed.
An acknowledgement ends mentions, broadcasts and escalation, and never a delivery. The first one counts, whichever
replica and however many persons there are; the next ones change nothing. Where its provider can be told, a delivery of
the current state on that channel carries it there (see `provider_acknowledgement`).
"""

from collections.abc import Collection
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, select, update

from services.relay.outbox.edit_requests import request_edits
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.operators.audit import insert_entry
from services.relay.outbox.queries.incident_list import UnknownIncidentError
from services.relay.outbox.rows import RowQuery, select_columns
from services.relay.outbox.tables import UNFINISHED, DeliveryState, clean_for_database, deliveries, incidents

MAX_NAME: Final = 200
"""Characters of a name that are stored."""


class EpisodeOverError(Exception):
    """The episode is over; the message is a sentence that says so, and how the incident stands."""


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
    """What an action needs to know of an incident."""

    episode: int
    is_open: int
    latest_event_seq: int
    acknowledged_by: str | None
    acknowledged_at: float | None


_delivery = deliveries.c
_READ_STATE: Final = RowQuery(_StateRow, select(*select_columns(_StateRow, incidents.c))).where(
    incidents.c.id == bindparam("incident")
)
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
        episode: the one that the person has seen; None for the current one.
        who: the person, or the credential.
        via: `api`, `command line`, `console`, `mail` or `slack`.
        peer: the address that called, for the audit; None stores `via`.
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
