"""Whether the outbox drains: what waits for the channels is delivered in time. The dead man's switch depends on it."""

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import bindparam, func, literal_column, select

from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.rows import RowQuery, select_values
from services.relay.outbox.tables import deliveries


class _OldestRow(NamedTuple):
    """When the oldest event that waits for a channel was accepted."""

    channel: str
    accepted_at: float


_delivery = deliveries.c
_FIND_DELIVERED: Final = (
    select_values(int, _delivery.seq)
    .where(
        # As the index `deliveries_delivered` has it: there may be a hundred thousand of them.
        _delivery.state == literal_column("'delivered'"),
        _delivery.channel == bindparam("on"),
        _delivery.finished_at >= bindparam("since"),
    )
    .limit(1)
)
_OLDEST_WAITING: Final = RowQuery(
    _OldestRow,
    select(_delivery.channel, func.min(_delivery.oldest_accepted_at).label("accepted_at")).group_by(_delivery.channel),
).where(_delivery.finished_at.is_(None), _delivery.channel.in_(bindparam("channels", expanding=True)))


def is_draining(transaction: Transaction, channels: Collection[str], *, within: float, max_age: float) -> bool:
    """Whether nothing waits too long on any of these channels; the alert RelayOutboxStuck uses the same condition.

    Args:
        transaction: the current one.
        channels: those that count.
        within: seconds; what is older is too old where nothing was delivered on its channel within them.
        max_age: seconds; what is older is too old even while others are delivered.
    """
    oldest = _OLDEST_WAITING.fetch_all(transaction.connection, {"channels": list(channels)})
    ages = [(row.channel, transaction.now - row.accepted_at) for row in oldest]
    old = [(channel, age) for channel, age in ages if age > within]
    return all(age <= max_age and _has_delivered(transaction, channel, within) for channel, age in old)


def _has_delivered(transaction: Transaction, channel: str, within: float) -> bool:
    values = {"on": channel, "since": transaction.now - within}
    return _FIND_DELIVERED.fetch_first(transaction.connection, values) is not None
