"""What waits for a channel on which no replica delivers any more goes, after a while, to fallback channels.

A webhook may have been accepted under the former configuration, and nobody else would ever deliver it. The replicas
record in `served_channels` on which channels they deliver.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, bindparam, exists, select

from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.store import Store
from services.relay.outbox.fallback import fall_back
from services.relay.outbox.merge import DeliveryChanges
from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import channels, deliveries

UNSERVED_AFTER: Final = 300.0
"""Seconds for which such a channel is left to other replicas: one may have been reloaded before this one."""

_delivery = deliveries.c
_UNSERVED_CHANNELS: Final = RowQuery(str, select(_delivery.channel).distinct()).where(
    _delivery.finished_at.is_(None),
    _delivery.channel.not_in(bindparam("configured", expanding=True)),
    _delivery.oldest_accepted_at < bindparam("before"),
    ~exists().where(channels.c.name == _delivery.channel, channels.c.served_at >= bindparam("before")),
)


async def fall_back_unserved(
    store: Store, configured_channels: Collection[str], fallback_channels: Sequence[str]
) -> DeliveryChanges:
    """Gives all of what has waited for `UNSERVED_AFTER` for channels that no replica has served for as long to others.

    Args:
        store: the outbox.
        configured_channels: the channels of this relay.
        fallback_channels: the channels that deliver in their place.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    changes = DeliveryChanges()
    for channel in await store.read(partial(_read_unserved_channels, configured=configured_channels, store=store)):
        has_more = True
        while has_more:
            changes = changes.add(await fall_back(store, channel, fallback_channels))
            has_more = changes.has_more
    return changes


def _read_unserved_channels(connection: Connection, configured: Collection[str], store: Store) -> list[str]:
    before = dialect.read_clock(connection, store.clock) - UNSERVED_AFTER
    return _UNSERVED_CHANNELS.fetch_all(connection, {"configured": sorted(configured), "before": before})
