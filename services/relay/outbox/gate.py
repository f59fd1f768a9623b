"""When a channel may be used: its pace, the pause that its provider asked for, and its breaker. Shared by all replicas.

Breaker: after 5 attempts in a row that did not reach the provider, or one that was refused for a reason that only a
person can end, nothing is claimed for a while; then one delivery tries, and its ending opens the gate or closes it for
twice as long. When it opens, what waited for its next attempt is due at once. The pause that the provider asked for is
kept apart from it (`asked_until`): nothing that else happens to the channel shortens that one. But whoever asks for
more than the longest pause refuses everything: that lasts as long as was asked, and a person ends it as any refusal.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, select, update

from services.relay.outbox.dialect import insert_new
from services.relay.outbox.pace import slot_after
from services.relay.outbox.schema import State, channels, deliveries
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

BREAKS_AFTER: Final = 5
"""Attempts in a row that did not reach the provider."""
_BUSY_SECONDS: Final = 0.05
"""When to look again where another replica is just claiming for the channel."""
SET_BACK: Final = 10.0
"""Seconds; a clock that was set back by less only prolongs a wait by as much."""

_of = channels.c
_FIND: Final = select(channels).where(_of.name == bindparam("channel")).with_for_update(skip_locked=True)
_THERE: Final = select(_of.name).where(_of.name == bindparam("channel"))
_FIND_SURELY: Final = select(channels).where(_of.name == bindparam("channel")).with_for_update()
_REFUSED: Final = select(_of.name).where(_of.refused > 0)
_TROUBLED: Final = select(_of.name).where((_of.failures > 0) | (_of.refused > 0))


class Effect(Enum):
    """What an attempt said about its channel."""

    NOTHING = auto()
    REACHED = auto()
    """The provider answered, be it that it will not have this message."""
    FAILED = auto()
    REFUSED = auto()
    """Everything is refused until a person acts."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long a breaker pauses, in seconds, unless the provider asks for more."""

    initial: float
    longest: float


@dataclass(frozen=True, slots=True)
class Admission:
    """How many deliveries may be claimed now."""

    limit: int
    seconds: float | None = None
    """When to ask again, where a delivery that is due has to wait for the gate."""
    refused: bool = False
    probe: bool = False
    """Whether the one that is admitted tries for all the others."""


def admit(transaction: Transaction, channel: str, limit: int) -> tuple[Admission, Row[*tuple[Any, ...]] | None]:
    """Whether and how many of at most `limit` deliveries may be claimed; the gate's row is locked then."""
    row = transaction.connection.execute(_FIND, {"channel": channel}).first()
    if row is None and not transaction.connection.execute(_THERE, {"channel": channel}).first():
        _make(transaction, channel)
        row = transaction.connection.execute(_FIND, {"channel": channel}).first()
    if row is None:  # another replica is just claiming
        return Admission(0, _BUSY_SECONDS), None
    now, refused = transaction.now, bool(row.refused)
    seconds = max(_left(row.open_at, row.set_at, now), _asked(row, now))
    if seconds > 0:
        return Admission(0, seconds, refused), row
    if row.failures >= BREAKS_AFTER:
        return Admission(1, None, refused, probe=True), row
    return Admission(limit, None, refused), row


def took(
    transaction: Transaction,
    row: Row[*tuple[Any, ...]],
    number: int,
    *,
    rate: float | None,
    probe_seconds: float | None,
) -> None:
    """Takes note that deliveries were claimed.

    Args:
        transaction: the one under way.
        row: of the gate, as `admit` gave it.
        number: how many.
        rate: messages in a second; None where there is no pace.
        probe_seconds: how long nothing else is claimed, where it is the one that tries.
    """
    changes: dict[str, float] = {}
    if rate is not None:
        changes["next_slot"] = slot_after(row.next_slot, transaction.now, number, rate)
    if probe_seconds is not None:
        changes |= {"open_at": transaction.now + probe_seconds, "set_at": transaction.now}
    if changes:
        _write(transaction, row.name, **changes)


def untroubled(transaction: Transaction, names: Collection[str]) -> frozenset[str]:
    """Those of some channels to which another success says nothing new: almost always all, and nothing is locked."""
    return frozenset(names).difference(transaction.connection.execute(_TROUBLED).scalars())


def refusing(connection: Connection) -> frozenset[str]:
    """The channels that refuse everything until a person acts."""
    return frozenset(connection.execute(_REFUSED).scalars())


def note(
    transaction: Transaction,
    channel: str,
    effect: Effect,
    *,
    reason: str,
    probe: bool,
    retry_after: float | None,
    pauses: Pauses,
) -> None:
    """Takes note of how an attempt ended.

    Args:
        transaction: the one under way.
        channel: its name.
        effect: what the attempt said.
        reason: how it ended.
        probe: whether it was the one that tried for all.
        retry_after: seconds that the provider asked to wait.
        pauses: how long a breaker pauses.
    """
    if effect is Effect.NOTHING and retry_after is None and not probe:
        return
    row = transaction.connection.execute(_FIND_SURELY, {"channel": channel}).first()
    if row is None:
        return
    now, asked = transaction.now, retry_after or 0.0
    # A longer pause than the longest was asked for; what was under way by then says nothing against it.
    left = 0.0 if probe else _left(row.open_at, row.set_at, now)
    if 0 < asked <= pauses.longest:
        _write(transaction, channel, asked_until=now + max(_asked(row, now), asked), asked_at=now)
    if effect is Effect.REACHED and (row.failures or row.refused) and left <= pauses.longest:
        _open(transaction, row)
    elif effect is Effect.REFUSED:
        failures, pause = max(row.failures, BREAKS_AFTER), max(pauses.longest, asked, left)
        _close(transaction, channel, now + pause, failures=failures, refused=1, reason=reason)
    elif effect is Effect.FAILED and (probe or row.failures < BREAKS_AFTER):
        failures = row.failures + 1
        doublings = min(failures - BREAKS_AFTER, 64)
        pause = min(pauses.longest, pauses.initial * 2.0**doublings) if doublings >= 0 else 0.0
        _close(transaction, channel, now + pause, failures=failures, reason=reason)
    elif probe:
        _close(transaction, channel, now, failures=row.failures)  # it said nothing: the next one tries


def reopen(transaction: Transaction, names: Iterable[str]) -> None:
    """Lets channels behind their breaker be tried at once: a secret changed, somebody asked, or the relay was started.

    The pause that a provider asked for stays.
    """
    for name in names:
        row = transaction.connection.execute(_FIND_SURELY, {"channel": name}).first()
        if row is not None and (row.refused or row.failures >= BREAKS_AFTER):
            _close(transaction, name, transaction.now)
            _release(transaction, name)


async def reopened(store: Store, names: Iterable[str]) -> None:
    """`reopen`, committed. Raises StoreUnavailableError."""
    names = tuple(names)
    await store.run(lambda transaction: reopen(transaction, names))


def _left(until: float, written_at: float, now: float) -> float:
    """Seconds of a pause that are left; none of one that was written by a clock that has been set back since."""
    return max(until - now, 0.0) if written_at <= now + SET_BACK else 0.0


def _asked(row: Row[*tuple[Any, ...]], now: float) -> float:
    """Seconds that are left of the pause that the provider asked for."""
    return 0.0 if row.asked_until is None else _left(row.asked_until, row.asked_at, now)


def _open(transaction: Transaction, row: Row[*tuple[Any, ...]]) -> None:
    was_closed = row.failures >= BREAKS_AFTER or row.refused
    _write(transaction, row.name, failures=0, refused=0, reason=None)
    if was_closed:
        _close(transaction, row.name, transaction.now)
        _release(transaction, row.name)


def _release(transaction: Transaction, channel: str) -> None:
    """What waits for its next attempt is due at once, as far as its provider did not ask for a pause: `admit` knows."""
    of = deliveries.c
    waiting = (of.channel == channel, of.finished_at.is_(None), of.state == State.RETRYING, of.due_at > transaction.now)
    # Those that somebody else is just merging are due when he says.
    free = select(of.seq).where(*waiting).order_by(of.seq).with_for_update(skip_locked=True)
    due = update(deliveries).where(of.seq.in_(free))
    transaction.connection.execute(due.values(due_at=transaction.now, set_at=transaction.now))


def _close(transaction: Transaction, channel: str, until: float, **changes: object) -> None:
    _write(transaction, channel, open_at=until, set_at=transaction.now, **changes)


def _write(transaction: Transaction, channel: str, **changes: object) -> None:
    transaction.connection.execute(update(channels).where(_of.name == channel).values(**changes))


def _make(transaction: Transaction, channel: str) -> None:
    row = {"name": channel, "open_at": 0.0, "set_at": 0.0, "next_slot": 0.0, "failures": 0, "refused": 0}
    connection = transaction.connection
    connection.execute(insert_new(channels, connection.dialect.name).on_conflict_do_nothing(), row)
