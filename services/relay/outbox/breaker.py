"""When a channel may be tried: its circuit breaker, its provider's pause and its rate, which all replicas share.

The circuit breaker opens after 5 attempts in a row that did not reach the provider, or after one that was refused for
a reason that only a person can end: nothing is claimed for a while. Then one delivery tries (half-open), and its
outcome closes the breaker, or opens it for twice as long. When it closes, retries are due at once. The provider's own
pause is stored separately (`retry_after_until`): nothing else that happens to the channel shortens it. A provider that
asks for more than the longest pause takes the channel down: for as long as it asked, or until a person acts.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from sqlalchemy import Connection, bindparam, select, update

from services.relay.outbox.database import build_insert
from services.relay.outbox.rate_limit import count_available, spend
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import (
    CHANNELS,
    NEW_CHANNEL,
    ChannelRow,
    DeliveryState,
    channels,
    clean_for_database,
    deliveries,
)
from shared.sql.rows import select_values

FAILURE_THRESHOLD: Final = 5
"""Attempts in a row that did not reach the provider."""
NO_TOKEN_SECONDS: Final = 1.0
"""Seconds to wait for a token of a channel that is not tried now."""
_LOCKED_RETRY_SECONDS: Final = 0.05
"""Seconds until the next try where another replica is claiming for the channel."""
_MAX_DETAIL: Final = 500
"""Characters that are stored of a failure."""

_channel = channels.c
_READ_CHANNEL: Final = CHANNELS.where(_channel.name == bindparam("channel"))
_LOCK_CHANNEL: Final = _READ_CHANNEL.for_update()
_LOCK_CHANNEL_IF_FREE: Final = _READ_CHANNEL.for_update(skip_locked=True)
_DOWN_CHANNELS: Final = select_values(str, _channel.name).where(_channel.is_down > 0)
_FAILING_CHANNELS: Final = select_values(str, _channel.name).where((_channel.failures > 0) | (_channel.is_down > 0))


class ChannelEffect(Enum):
    """What the outcome of an attempt means for its channel."""

    UNCHANGED = auto()
    """It says nothing of the channel: a defect of ours, or a pause that the provider asked for."""
    REACHED = auto()
    """The provider answered, be it that it will not have this message."""
    FAILED = auto()
    DOWN = auto()
    """Everything is refused until a person acts, or a longer pause than the longest is over."""


@dataclass(frozen=True, slots=True)
class PauseLimits:
    """How long a breaker pauses, in seconds, unless the provider asks for more."""

    initial: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Admission:
    """How many deliveries may be claimed now."""

    limit: int
    retry_in: float | None = None
    """Seconds until a delivery that is due may be claimed."""
    channel_down: bool = False
    is_breaker_trial: bool = False
    """Whether one delivery is admitted, to try a channel behind its circuit breaker."""


def admit(
    transaction: Transaction, channel: str, limit: int, rate: float | None
) -> tuple[Admission, ChannelRow | None]:
    """How many of at most `limit` deliveries may be claimed at `rate` messages a second; the channel is locked then."""
    connection, values = transaction.connection, {"channel": channel}
    row = _LOCK_CHANNEL_IF_FREE.fetch_first(connection, values)
    if row is None and _READ_CHANNEL.fetch_first(connection, values) is None:
        insert_channel(transaction, channel)
        row = _LOCK_CHANNEL_IF_FREE.fetch_first(connection, values)
    if row is None:  # another replica is claiming
        return Admission(0, _LOCKED_RETRY_SECONDS), None
    seconds = max(compute_pauses(row, transaction.now))
    if seconds > 0:
        return Admission(0, seconds, bool(row.is_down)), row
    is_trial = row.failures >= FAILURE_THRESHOLD
    available, token_in = count_available(row.next_token_at, transaction.now, 1 if is_trial else limit, rate)
    return Admission(available, token_in, bool(row.is_down), is_trial), row


def record_claim(
    transaction: Transaction,
    row: ChannelRow,
    count: int,
    *,
    rate: float | None,
    trial_seconds: float | None,
) -> None:
    """Records that deliveries were claimed; nothing else is for `trial_seconds`, where it tries a circuit breaker."""
    changes: dict[str, float] = {}
    if rate is not None:
        changes["next_token_at"] = spend(row.next_token_at, transaction.now, count, rate)
    if trial_seconds is not None:
        changes["paused_until"] = transaction.now + trial_seconds
    if changes:
        update_channel(transaction, row.name, **changes)


def take_token(transaction: Transaction, channel: str, rate: float | None) -> float:
    """Takes a token of a channel's rate for a message that is no delivery; the seconds to wait where there is none."""
    admission, row = admit(transaction, channel, 1, rate)
    if row is None or not admission.limit or admission.is_breaker_trial:
        return admission.retry_in or NO_TOKEN_SECONDS
    record_claim(transaction, row, 1, rate=rate, trial_seconds=None)
    return 0.0


def record_failure(transaction: Transaction, channel: str, reason: str, detail: str) -> None:
    """Shows a person why the last attempt failed."""
    detail = clean_for_database(detail[:_MAX_DETAIL])
    update_channel(transaction, channel, failed_at=transaction.now, failed_reason=reason, failed_detail=detail)


def compute_pauses(row: ChannelRow, now: float) -> tuple[float, float]:
    """Seconds that are left: of the circuit breaker's pause, and of the provider's."""
    return max(row.paused_until - now, 0.0), max((row.retry_after_until or 0.0) - now, 0.0)


def spend_further(transaction: Transaction, channel: str, count: int, rate: float) -> None:
    """Takes tokens for the requests of a message beyond its first."""
    row = _LOCK_CHANNEL.fetch_first(transaction.connection, {"channel": channel})
    if row is not None:
        next_token_at = spend(row.next_token_at, transaction.now, count, rate)
        update_channel(transaction, channel, next_token_at=next_token_at)


def find_healthy(transaction: Transaction, names: Collection[str]) -> frozenset[str]:
    """The channels without a failure to forget: almost always all of them, and nothing is locked."""
    return frozenset(names).difference(_FAILING_CHANNELS.fetch_all(transaction.connection))


def read_down_channels(connection: Connection) -> frozenset[str]:
    """The channels that are down until a person acts."""
    return frozenset(_DOWN_CHANNELS.fetch_all(connection))


def record_effect(
    transaction: Transaction,
    channel: str,
    effect: ChannelEffect,
    *,
    reason: str,
    is_breaker_trial: bool,
    retry_after: float | None,
    pauses: PauseLimits,
) -> None:
    """Records how an attempt ended; `retry_after` are the seconds that the provider asked to wait."""
    if effect is ChannelEffect.UNCHANGED and retry_after is None and not is_breaker_trial:
        return
    row = _LOCK_CHANNEL.fetch_first(transaction.connection, {"channel": channel})
    if row is None:
        return
    now, requested = transaction.now, retry_after or 0.0
    # A provider may have asked for a longer pause than the longest; attempts that have started by then do not end it.
    left = 0.0 if is_breaker_trial else row.paused_until - now
    if 0 < requested <= pauses.maximum:
        update_channel(transaction, channel, retry_after_until=max(row.retry_after_until or 0.0, now + requested))
    if effect is ChannelEffect.REACHED and (row.failures or row.is_down) and left <= pauses.maximum:
        update_channel(transaction, channel, failures=0, is_down=0, reason=None, paused_until=0.0)
        if row.failures >= FAILURE_THRESHOLD or row.is_down:
            _make_retries_due(transaction, channel)
    elif effect is ChannelEffect.DOWN:
        failures, pause = max(row.failures, FAILURE_THRESHOLD), max(pauses.maximum, requested)
        if left > pause:  # by the reason the sweeper knows that its provider asked for so much
            pause, reason = left, row.reason or reason
        update_channel(transaction, channel, paused_until=now + pause, failures=failures, is_down=1, reason=reason)
    elif effect is ChannelEffect.FAILED and (is_breaker_trial or row.failures < FAILURE_THRESHOLD):
        failures = row.failures + 1
        doublings = min(failures - FAILURE_THRESHOLD, 64)
        pause = min(pauses.maximum, pauses.initial * 2.0**doublings)
        until = now + pause if doublings >= 0 else 0.0
        update_channel(transaction, channel, paused_until=until, failures=failures, reason=reason)
    elif is_breaker_trial:
        update_channel(transaction, channel, paused_until=0.0)  # nothing is known: the next one tries


def allow_trial(transaction: Transaction, names: Iterable[str]) -> None:
    """Lets channels behind their breaker be tried at once: a secret changed, a person asked, or the relay was started.

    The pause that a provider asked for stays.
    """
    for name in names:
        row = _LOCK_CHANNEL.fetch_first(transaction.connection, {"channel": name})
        if row is not None and (row.is_down or row.failures >= FAILURE_THRESHOLD):
            update_channel(transaction, name, paused_until=0.0)
            _make_retries_due(transaction, name)


async def commit_allow_trial(store: Store, names: Iterable[str]) -> None:
    """`allow_trial`, committed. Raises StoreUnavailableError."""
    names = tuple(names)
    await store.run(lambda transaction: allow_trial(transaction, names))


def lock_or_insert(transaction: Transaction, channel: str) -> ChannelRow:
    """The row of a channel, locked; a new one where it had none."""
    insert_channel(transaction, channel)
    return _LOCK_CHANNEL.fetch_one(transaction.connection, {"channel": channel})


def insert_channel(transaction: Transaction, channel: str) -> None:
    """Adds the row of a channel that has none."""
    insert = build_insert(channels, transaction.connection.dialect.name).on_conflict_do_nothing()
    transaction.connection.execute(insert, {"name": channel, **NEW_CHANNEL})


def update_channel(transaction: Transaction, channel: str, **changes: object) -> None:
    """Changes columns of the row of a channel."""
    transaction.connection.execute(update(channels).where(_channel.name == channel).values(**changes))


def _make_retries_due(transaction: Transaction, channel: str) -> None:
    """A pause that the provider asked for stays, see `admit`."""
    of = deliveries.c
    waiting = (
        of.channel == channel,
        of.finished_at.is_(None),
        of.state == DeliveryState.RETRYING,
        of.due_at > transaction.now,
    )
    # What somebody else is merging gets its time from that.
    free = select(of.seq).where(*waiting).order_by(of.seq).with_for_update(skip_locked=True)
    due = update(deliveries).where(of.seq.in_(free))
    transaction.connection.execute(due.values(due_at=transaction.now))
