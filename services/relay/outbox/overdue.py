"""What no single attempt notices: a channel that takes nothing for too long, and a clock that was set back.

While a channel's gate is closed its deliveries are not tried, so nothing else would give them up. And every wait is
written as a moment of the wall clock: where that moment was set in what is now the future, the wait would last for as
long as the clock was set back, so it is over at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import bindparam, or_, select, update

from services.relay.outbox.fallback import fall_back
from services.relay.outbox.gate import BREAKS_AFTER, SET_BACK, refusing
from services.relay.outbox.schema import WAITING, State, channels, deliveries
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

_of = deliveries.c
_closed = select(channels.c.name).where(or_(channels.c.failures >= BREAKS_AFTER, channels.c.refused > 0))
_GIVE_UP: Final = (
    update(deliveries)
    .where(
        _of.channel.in_(_closed),
        _of.finished_at.is_(None),
        _of.state.in_([state.value for state in WAITING]),
        _of.accepted_at < bindparam("before"),
        # Where others stand in, only once they tell it.
        or_(_of.channel.not_in(bindparam("stood_in_for", expanding=True)), _of.fell_back >= _of.event_seq),
    )
    .values(
        state=State.DEAD,
        finished_at=bindparam("at"),
        reason=select(channels.c.reason).where(channels.c.name == _of.channel).scalar_subquery(),
    )
    .returning(_of.channel)
)
_OVER: Final = (
    update(deliveries)
    .where(_of.finished_at.is_(None), _of.set_at > bindparam("at") + SET_BACK)
    .where(or_(_of.lease.is_(None), ~_of.lease.startswith(bindparam("owner"))))
    .values(due_at=bindparam("at"), set_at=bindparam("at"))
)
_OPEN: Final = (
    update(channels)
    .where(channels.c.set_at > bindparam("at") + SET_BACK)
    .values(open_at=bindparam("at"), set_at=bindparam("at"))
)

_FORGET: Final = (
    update(channels).where(channels.c.asked_at > bindparam("at") + SET_BACK).values(asked_until=None, asked_at=None)
)


@dataclass(frozen=True, slots=True)
class Looked:
    """What was done."""

    ended: tuple[tuple[str, State], ...]
    """The channel of each delivery that was given up, or merged into one that tells it instead, and which it was."""
    woken: frozenset[str]
    """The channels that have something new to deliver."""


async def look_after(store: Store, owner: str, give_up_after: float, fallback: Sequence[str]) -> Looked:
    """Gives up what waited too long for a closed gate, and ends waits that a clock set back would prolong.

    Args:
        store: the outbox.
        owner: whose leases last whatever the clock says: the holder is here, and ends them.
        give_up_after: seconds since the event was accepted.
        fallback: channels that tell what another one refuses; nothing of that one is given up before.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    ended: list[tuple[str, State]] = []
    woken: set[str] = set()
    stand_ins = {name: [other for other in fallback if other != name] for name in await store.read(refusing)}
    for name, others in stand_ins.items():  # its worker does so, too, but it has none where it is configured no more
        told = await fall_back(store, name, others)
        ended += [(channel, State.SUPERSEDED) for channel in told.superseded]
        woken.update(told.woken)
    stood_in_for = [name for name, others in stand_ins.items() if others]
    given_up = await store.run(lambda transaction: _look_after(transaction, owner, give_up_after, stood_in_for))
    ended += [(channel, State.DEAD) for channel in given_up]
    return Looked(tuple(ended), frozenset(woken.union(given_up)))


def _look_after(transaction: Transaction, owner: str, give_up_after: float, stood_in_for: Sequence[str]) -> list[str]:
    connection, now = transaction.connection, transaction.now
    connection.execute(_OVER, {"at": now, "owner": owner})
    connection.execute(_OPEN, {"at": now})
    connection.execute(_FORGET, {"at": now})
    overdue = {"before": now - give_up_after, "at": now, "stood_in_for": stood_in_for}
    return list(connection.execute(_GIVE_UP, overdue).scalars())
