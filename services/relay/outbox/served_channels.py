"""On which channels a replica delivers now, and what waits for one that is served again."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Final

from sqlalchemy import Connection, bindparam, case, or_, select, update

from services.relay.model import Status
from services.relay.outbox.database import build_insert
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.proofs import UNPROVEN
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import NEW_CHANNEL, channels, deliveries, events, incidents
from shared.sql.rows import select_tuples, select_values

_REPLICA_TIMEOUT: Final = 60.0
"""Seconds after which a relay that recorded nothing no longer counts."""
_REFRESH_STEP: Final = 32
"""How many deliveries are brought up to date in one transaction."""

_delivery = deliveries.c
_SERVED_CHANNELS: Final = select_values(str, channels.c.name).where(channels.c.served_at > bindparam("since"))
_STAY_UNPROVEN: Final = UNPROVEN.where(
    channels.c.served_at.between(bindparam("since"), bindparam("now")),
    channels.c.proof_interval == bindparam("proof_interval"),
)
_CLEAR_OTHERS: Final = (
    update(channels).where(channels.c.name.not_in(bindparam("names", expanding=True))).values(served_at=None)
)
_OUTDATED: Final = (
    select_tuples(
        tuple[int, str, str, int, int, int],
        select(
            _delivery.seq,
            _delivery.incident_id,
            _delivery.channel,
            _delivery.first_event_seq,
            incidents.c.episode,
            incidents.c.latest_event_seq,
        )
        .select_from(deliveries)
        .join(incidents, incidents.c.id == _delivery.incident_id)
        .join(events, events.c.seq == _delivery.event_seq),
    )
    .where(
        _delivery.channel.in_(bindparam("channels", expanding=True)),
        _delivery.finished_at.is_(None),
        events.c.status == Status.FIRING,
        incidents.c.latest_event_seq > _delivery.event_seq,
    )
    .order_by(_delivery.seq)
)
_FIND_OUTDATED: Final = _OUTDATED.where(_delivery.seq > bindparam("after")).limit(_REFRESH_STEP)
_READ_OUTDATED: Final = _OUTDATED.where(_delivery.seq.in_(bindparam("seqs", expanding=True)))


async def record_served_channels(
    store: Store, edit_scopes: Mapping[str, str | None], proof_interval: float = 0.0
) -> None:
    """Records that this relay delivers on these channels now, as it does at its start and every few seconds.

    Configurations differ while one replica after the other is reloaded. What waits for a channel on which nobody
    delivers goes to fallback channels, and an event of an incident goes to the channels of other replicas, too.
    `edit_scopes` has None for a channel whose messages are not edited; `proof_interval` is `proof.every`, since with
    another one the first proof is due later. Raises StoreUnavailableError.
    """

    def commit(transaction: Transaction) -> None:
        new = build_insert(channels, transaction.connection.dialect.name)
        # A restart proves nothing. After a gap longer than an interval proofs are awaited anew, since none could come.
        values = {"since": transaction.now - proof_interval, "now": transaction.now, "proof_interval": proof_interval}
        unproven = dict(_STAY_UNPROVEN.fetch_all(transaction.connection, values))
        is_gap = or_(
            channels.c.served_at.is_(None),
            channels.c.served_at < transaction.now - _REPLICA_TIMEOUT,
            channels.c.served_since > transaction.now,  # the clock was set back
            channels.c.proof_interval.is_distinct_from(proof_interval),
        )
        changes = {
            "served_at": new.excluded.served_at,
            "served_since": case((is_gap, new.excluded.served_since), else_=channels.c.served_since),
            "edit_scope": new.excluded.edit_scope,
            "proof_interval": proof_interval,
        }
        served = new.on_conflict_do_update(index_elements=["name"], set_=changes)
        # Sorted: two replicas that lock the same rows in different orders would wait for each other.
        rows = [
            {
                "name": name,
                **NEW_CHANNEL,
                "served_at": transaction.now,
                "served_since": unproven.get(name) or transaction.now,
                "edit_scope": scope,
                "proof_interval": proof_interval,
            }
            for name, scope in sorted(edit_scopes.items())
        ]
        transaction.connection.execute(served, rows)
        if transaction.connection.dialect.name == "sqlite":  # which no other relay uses
            transaction.connection.execute(_CLEAR_OTHERS, {"names": sorted(edit_scopes)})

    if edit_scopes:
        await store.run(commit)


def read_served_channels(connection: Connection, now: float) -> frozenset[str]:
    """The channels on which any replica delivers."""
    return frozenset(_SERVED_CHANNELS.fetch_all(connection, {"since": now - _REPLICA_TIMEOUT}))


async def refresh_outdated(store: Store, names: Collection[str]) -> None:
    """What waits on these channels with something that fires becomes the current state of its incident.

    A channel got no deliveries of newer events while it was not configured.

    Raises StoreUnavailableError; the steps before it are done.
    """
    after = 0
    values = {"channels": sorted(names)}
    while found := await store.read(partial(_FIND_OUTDATED.fetch_all, values={**values, "after": after})):
        after, *_ = found[-1]
        found_incidents = {seq: incident for seq, incident, *_ in found}
        await store.run(partial(_refresh_outdated, found=found_incidents, names=names))


def _refresh_outdated(transaction: Transaction, found: Mapping[int, str], names: Collection[str]) -> None:
    """`found` has the incidents of deliveries, by their seq."""
    lock_incidents(transaction, {*found.values()})
    values = {"channels": sorted(names), "seqs": [*found]}
    outdated = _READ_OUTDATED.fetch_all(transaction.connection, values)
    new = {
        (incident, channel): NewDelivery(latest, first, incident, episode, channel)
        for _, incident, channel, first, episode, latest in reversed(outdated)
        if channel not in transaction.unmerged_channels
    }
    if new:
        enqueue_deliveries(transaction, list(new.values()))
