"""What all replicas share of a channel: its circuit breaker, its provider's pause, its rate, and who delivers on it.

The circuit breaker opens after 5 attempts in a row that did not reach the provider, or after one that was refused for
a reason that only a person can end: nothing is claimed for a while. Then one delivery tries (half-open), and its
outcome closes the breaker, or opens it for twice as long. When it closes, retries are due at once. The provider's own
pause is stored separately (`retry_after_until`): nothing else that happens to the channel shortens it. A provider that
asks for more than the longest pause takes the channel down: for as long as it asked, or until a person acts.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Final

from sqlalchemy import Connection, bindparam, select, update

from services.relay.model import Status
from services.relay.outbox.database import build_insert
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import (
    CHANNELS,
    NEW_CHANNEL,
    ChannelRow,
    DeliveryState,
    channels,
    clean_for_database,
    deliveries,
    events,
    incidents,
)
from shared.sql.rows import select_tuples, select_values

BURST_SECONDS: Final = 5.0
"""How much of its rate a channel may save up: Slack allows "short bursts", https://docs.slack.dev/apis/web-api/rate-limits"""
_MAX_DEBT_SECONDS: Final = 10.0
"""How much more may be spent than was saved up: a message may take several requests, which is known after it."""


def count_available(next_token_at: float, now: float, limit: int, rate: float | None) -> tuple[int, float | None]:
    """How many messages may be sent now, and in how many seconds the next one, where it is fewer than `limit`.

    A token bucket that fills at `rate` a second and holds the tokens of 5 s, stored as one time: when an empty bucket
    has its next token, as in the Generic Cell Rate Algorithm.
    """
    if rate is None:
        return limit, None
    saved = max(1.0, rate * BURST_SECONDS)
    ahead = max(next_token_at - now, 0.0) * rate  # messages that were sent before their time
    if ahead > saved + 1 + _MAX_DEBT_SECONDS * rate:
        ahead = 0.0  # more than was ever possible: the clock was set back
    available = max(int(saved - ahead + 1e-6), 0)
    if available >= limit:
        return limit, None
    return available, (1 - (saved - ahead - available)) / rate


def spend(next_token_at: float, now: float, count: int, rate: float) -> float:
    """The `next_token_at` after as many messages."""
    most = BURST_SECONDS + 2 / rate + _MAX_DEBT_SECONDS
    start = next_token_at if next_token_at - now <= most else 0.0
    return min(max(start, now) + count / rate, now + most)


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

    NOTHING = auto()
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
    if effect is ChannelEffect.NOTHING and retry_after is None and not is_breaker_trial:
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


_REPLICA_TIMEOUT: Final = 60.0
"""Seconds after which a relay that recorded nothing no longer counts."""
_REFRESH_STEP: Final = 32
"""How many deliveries are brought up to date in one transaction."""

_delivery = deliveries.c
_SERVED_CHANNELS: Final = select_values(str, channels.c.name).where(channels.c.served_at > bindparam("since"))
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


async def record_served_channels(store: Store, edit_scopes: Mapping[str, str | None]) -> None:
    """Records that this relay delivers on these channels now, as it does at its start and every few seconds.

    Configurations differ while one replica after the other is reloaded. What waits for a channel on which nobody
    delivers goes to fallback channels, and an event of an incident goes to the channels of other replicas, too.
    `edit_scopes` has None for a channel whose messages are not edited. Raises StoreUnavailableError.
    """

    def commit(transaction: Transaction) -> None:
        new = build_insert(channels, transaction.connection.dialect.name)
        changes = {"served_at": new.excluded.served_at, "edit_scope": new.excluded.edit_scope}
        served = new.on_conflict_do_update(index_elements=["name"], set_=changes)
        # Sorted: two replicas that lock the same rows in different orders would wait for each other.
        rows = [
            {"name": name, **NEW_CHANNEL, "served_at": transaction.now, "edit_scope": scope}
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
