"""Retries many dead letters in the background, one run at a time for all replicas, with progress that everybody sees.

A run advances in small transactions with pauses between them, so that webhooks hardly wait for it. Each step also
records how far the run is; after a run that ended early, another one continues. The relay that started a run does its
steps. If that relay stops, the run counts as interrupted after `LEASE_SECONDS`.

A person sends a delivery to another channel: a new delivery there, of the current state of its incident.

What the channel has already is not repeated: so two clicks send one message, and nothing older follows something newer.
From then on the incident is open on that channel, and all its further events go there.

Tries one delivery again that is dead, or waits for its next attempt.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple
from uuid import uuid4

import structlog
from sqlalchemy import Connection, bindparam, func, or_, select, update

from services.relay.acknowledgement.store import MAX_NAME
from services.relay.deliveries import queries as delivery_list
from services.relay.deliveries.queries import DeliverySummary
from services.relay.outbox.audit import Actor, insert_entry
from services.relay.outbox.database import build_insert, read_clock
from services.relay.outbox.dead_letters import DeadLetterFilter, requeue, requeue_dead_letters
from services.relay.outbox.fallback import find_missing_events
from services.relay.outbox.incidents import read_current_state
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.store import Store, StoreUnavailableError, Transaction
from services.relay.outbox.tables import (
    DELIVERIES,
    DeliveryState,
    RowQuery,
    bulk_retry,
    clean_for_database,
    deliveries,
    select_columns,
)

LEASE_SECONDS: Final = 15.0
"""After so many seconds without a step a run counts as interrupted: a step that takes 8 s has failed."""
STEP: Final = 50
"""Dead letters of one transaction: some tens of milliseconds of the writer's time."""
_PAUSE: Final = 0.05
"""Seconds between two steps, in which the writer belongs to the others."""

log = structlog.get_logger(__name__)


class BulkRetryRunningError(Exception):
    """Another run is not over yet."""


class NothingToRetryError(Exception):
    """There are no such dead letters; the message is a sentence."""


class BulkRetryState(StrEnum):
    """How a run stands."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    """A person ended it."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """The relay that did its steps stopped."""


class _RunRow(NamedTuple):
    """The last run."""

    run: str
    channel: str | None
    reason: str | None
    started_by: str
    started_at: float
    total: int
    retried: int
    advanced_at: float
    ended_at: float | None
    stopped_by: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class BulkRetry:
    """The last run. Times are unix seconds."""

    run: str
    """Which run it is."""
    state: BulkRetryState
    channel: str | None
    """None: all."""
    reason: str | None
    """None: all."""
    started_by: str
    started_at: float
    total: int
    """Dead letters when it started."""
    retried: int
    last_step_at: float
    """When its last step was committed, or it ended."""
    stopped_by: str | None
    error: str | None


_run = bulk_retry.c
_READ: Final = RowQuery(_RunRow, select(*select_columns(_RunRow, _run)))
_IS_RUNNING: Final = (_run.run == bindparam("which"), _run.ended_at.is_(None))
_ADVANCE: Final = (
    update(bulk_retry)
    .where(*_IS_RUNNING)
    .values(retried=_run.retried + bindparam("count"), advanced_at=bindparam("at"))
)
_END: Final = (
    update(bulk_retry)
    .where(*_IS_RUNNING)
    .values(ended_at=bindparam("at"), stopped_by=bindparam("by"), error=bindparam("why"))
)


def read_bulk_retry(connection: Connection, clock: Callable[[], float]) -> BulkRetry | None:
    """The last run; None if there was none. For `Store.read`.

    Args:
        connection: to read with.
        clock: unix seconds, by this machine.
    """
    row = _READ.fetch_first(connection)
    if row is None:
        return None
    return BulkRetry(
        run=row.run,
        state=_find_state(row, read_clock(connection, clock)),
        channel=row.channel,
        reason=row.reason,
        started_by=row.started_by,
        started_at=row.started_at,
        total=row.total,
        retried=row.retried,
        last_step_at=row.ended_at or row.advanced_at,
        stopped_by=row.stopped_by,
        error=row.error,
    )


async def stop_bulk_retry(store: Store, run: str, who: str, peer: str | None = None) -> bool:
    """Ends a run, whichever relay does its steps, with an entry in the audit; whether it was still running.

    Args:
        store: the outbox.
        run: which.
        who: the caller.
        peer: the address that called.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    run, who = clean_for_database(run), clean_for_database(who)

    def work(transaction: Transaction) -> bool:
        is_stopped = _end(transaction, run, stopped_by=who)
        if is_stopped:
            insert_entry(transaction, who, peer, "stop retry", f"retry {run}")
        return is_stopped

    return await store.run(work)


class BulkRetries:
    """Starts runs, and does the steps of those that it started.

    Args:
        store: the outbox.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._channels: Collection[str] = ()
        self._wake_channels: Callable[[Iterable[str]], None] = lambda _: None
        self._started: asyncio.Queue[tuple[str, Sequence[DeadLetterFilter]]] = asyncio.Queue()

    def configure(self, channels: Collection[str], wake_channels: Callable[[Iterable[str]], None]) -> None:
        """From now on, these settings apply; a run goes on.

        Args:
            channels: the configured names: what was given up on another one stays dead.
            wake_channels: called with the channels that have something new to deliver.
        """
        self._channels, self._wake_channels = channels, wake_channels

    async def start(self, channel: str | None, reason: str | None, who: str, peer: str | None = None) -> int:
        """Starts a run over the dead letters of a channel, or of all, with an entry in the audit; gives how many.

        Args:
            channel: its name; None takes all that are configured.
            reason: of the last attempt, or `NO_ATTEMPT`; None takes all.
            who: the caller.
            peer: the address that called.

        Raises:
            BulkRetryRunningError: nothing was changed.
            NothingToRetryError: nothing was changed.
            StoreUnavailableError: it is not known to be started.
        """
        channel, reason = channel and clean_for_database(channel), reason and clean_for_database(reason)
        chosen = [
            DeadLetterFilter(name, reason) for name in sorted(self._channels) if channel is None or name == channel
        ]
        run = uuid4().hex

        def work(transaction: Transaction) -> int:
            connection, now = transaction.connection, transaction.now
            total = sum(letters.count(connection) for letters in chosen)
            row: dict[str, object] = {
                "run": run,
                "channel": channel,
                "reason": reason,
                "started_by": clean_for_database(who),
            }
            row |= {"started_at": now, "total": total, "retried": 0, "advanced_at": now}
            row |= dict.fromkeys(("ended_at", "stopped_by", "error"))
            is_over = or_(_run.ended_at.is_not(None), func.abs(now - _run.advanced_at) > LEASE_SECONDS)
            insert = build_insert(bulk_retry, connection.dialect.name).values(id=1, **row)
            begin = insert.on_conflict_do_update(index_elements=["id"], set_=row, where=is_over).returning(_run.id)
            if connection.execute(begin).first() is None:
                raise BulkRetryRunningError("another retry is running; wait for its end, or stop it")
            if not total:
                raise NothingToRetryError("there is nothing to retry: no such dead letter is on a configured channel")
            on = " ".join(filter(None, ("dead letters", channel, reason)))
            insert_entry(transaction, who, peer, "retry all", on)
            return total

        total = await self._store.run(work)
        self._started.put_nowait((run, chosen))
        return total

    async def run(self) -> None:
        """Does the steps of the runs that are started, until it is cancelled."""
        while True:
            run, chosen = await self._started.get()
            try:
                await self._take_steps(run, chosen)
            except _RunIsOverError:
                continue
            except StoreUnavailableError as error:
                log.warning("retry of dead letters failed", error=str(error))
                await self._record_failure(run, str(error))
            except Exception as error:
                log.exception("retry of dead letters failed")
                await self._record_failure(run, f"a defect of the relay: {type(error).__name__}; see its log")

    async def _take_steps(self, run: str, chosen: Sequence[DeadLetterFilter]) -> None:
        for letters in chosen:
            left = await self._store.read(letters.count)  # what dies again meanwhile is left alone
            while left > 0:
                step = partial(_advance, run=run, letters=letters, limit=min(left, STEP))
                count = await self._store.run(step)
                if not count:
                    break
                left -= count
                self._wake_channels([letters.channel])
                await asyncio.sleep(_PAUSE)
        await self._store.run(partial(_end, run=run))

    async def _record_failure(self, run: str, error: str) -> None:
        try:
            await self._store.run(partial(_end, run=run, error=error))
        except StoreUnavailableError:
            log.warning("end of a retry of dead letters not recorded", error=error)


class _RunIsOverError(Exception):
    """Somebody stopped the run, or it took so long that another one began."""


def _advance(transaction: Transaction, run: str, letters: DeadLetterFilter, limit: int) -> int:
    """One step; gives how many dead letters it took. Raises _RunIsOverError, and then nothing was changed."""
    count = requeue_dead_letters(transaction, letters, limit)
    values = {"which": run, "count": count, "at": transaction.now}
    if not transaction.connection.execute(_ADVANCE, values).rowcount:
        raise _RunIsOverError
    return count


def _end(transaction: Transaction, run: str, *, stopped_by: str | None = None, error: str | None = None) -> bool:
    """Whether it was running."""
    values = {"which": run, "at": transaction.now, "by": stopped_by, "why": error}
    return bool(transaction.connection.execute(_END, values).rowcount)


def _find_state(row: _RunRow, now: float) -> BulkRetryState:
    if row.ended_at is None:
        return BulkRetryState.INTERRUPTED if abs(now - row.advanced_at) > LEASE_SECONDS else BulkRetryState.RUNNING
    if row.stopped_by is not None:
        return BulkRetryState.STOPPED
    return BulkRetryState.DONE if row.error is None else BulkRetryState.FAILED


_NOT_RETRYABLE: Final = {
    DeliveryState.SENDING: "it is being sent",
    DeliveryState.DELIVERED: "it was delivered",
    DeliveryState.SUPERSEDED: "another delivery supersedes it",
}


class UnknownDeliveryError(Exception):
    """There is no such delivery, or not any more."""


class NotRetryableError(Exception):
    """The message is a sentence that says why."""


async def retry_delivery(
    store: Store, delivery_id: str, channels: Collection[str], actor: Actor | None = None
) -> DeliverySummary:
    """Tries a delivery again that is dead, or waits for its next attempt; gives it as it stands then.

    Args:
        store: the outbox.
        delivery_id: which.
        channels: the configured names.
        actor: with an entry in the audit; both are committed, or neither is.

    Raises:
        UnknownDeliveryError: nothing was changed.
        NotRetryableError: nothing was changed.
        StoreUnavailableError: nothing was changed, or it cannot be read how it stands.
    """
    before = await _read_delivery(store, delivery_id)
    if before.channel not in channels:
        raise NotRetryableError(f"its channel, {before.channel}, is not configured any more")
    state = await requeue(store, delivery_id, actor)
    if state in _NOT_RETRYABLE:
        raise NotRetryableError(f"there is nothing to try again: {_NOT_RETRYABLE[state]}")
    return await _read_delivery(store, delivery_id)


async def _read_delivery(store: Store, delivery_id: str) -> DeliverySummary:
    details = await delivery_list.read_delivery(store, delivery_id)
    if details is None:
        raise UnknownDeliveryError("no such delivery")
    return details.delivery


ACTION: Final = "send elsewhere"
"""In the audit."""
_delivery = deliveries.c
_FIND_DELIVERY: Final = DELIVERIES.where(_delivery.id == bindparam("delivery"))
_FIND_LATEST: Final = (
    DELIVERIES.where(
        _delivery.incident_id == bindparam("incident"),
        _delivery.channel.concat("") == bindparam("channel"),  # so that `deliveries_of_episode` is used
    )
    .order_by((_delivery.seq + 0).desc())
    .limit(1)
)


class NotSendableError(Exception):
    """The message is a sentence that says why."""


class SentElsewhere(NamedTuple):
    """What was committed."""

    delivery_id: str
    """Of the delivery on the other channel."""
    superseded_count: int
    """How many deliveries on that channel were merged into it."""


async def send_elsewhere(
    store: Store, delivery_id: str, channel: str, *, who: str, peer: str | None = None
) -> SentElsewhere:
    """Adds the delivery on another channel, with an entry in the audit; both are committed, or neither is.

    Args:
        store: the outbox.
        delivery_id: which delivery.
        channel: the other channel, which is configured.
        who: the person, or the credential.
        peer: the address that called, for the audit.

    Raises:
        UnknownDeliveryError: nothing was changed.
        NotSendableError: nothing was changed.
        StoreUnavailableError: it is not known to be committed.
    """
    who = clean_for_database(who)[:MAX_NAME]

    def work(transaction: Transaction) -> SentElsewhere:
        row = _FIND_DELIVERY.fetch_first(transaction.connection, {"delivery": delivery_id})
        if row is None:
            raise UnknownDeliveryError("no such delivery")
        if row.channel == channel:
            raise NotSendableError(f"it is for {channel} already; expected another channel, or retry it")
        lock_incidents(transaction, [row.incident_id])
        remark = f"Sent elsewhere by {who}; it was for {row.channel}."
        new = _build_delivery(transaction, row.incident_id, row.first_event_seq, channel, remark)
        enqueued = enqueue_deliveries(transaction, [new])
        insert_entry(transaction, who, peer, ACTION, f"{delivery_id} to {channel}", row.incident_id)
        return SentElsewhere(enqueued.delivery_ids[0], len(enqueued.superseded_rows))

    return await store.run(work)


def _build_delivery(
    transaction: Transaction, incident_id: str, first_event_seq: int, channel: str, remark: str
) -> NewDelivery:
    """The current state of an incident, with all events since the first one that the channel does not have."""
    current = read_current_state(transaction.connection, incident_id)
    if current is None:
        raise NotSendableError("its incident is not stored any more")
    latest = current.latest_event_seq
    missing = find_missing_events(transaction, incident_id, channel, first_event_seq, latest)
    if latest not in missing:
        there = _FIND_LATEST.fetch_one(transaction.connection, {"incident": incident_id, "channel": channel})
        if there.state == DeliveryState.DEAD:
            raise NotSendableError(f"the current state was given up on {channel}: retry delivery {there.id}")
        raise NotSendableError(f"{channel} has the current state of its incident: delivery {there.id}, {there.state}")
    # On a channel that merges nothing, an older event would follow newer ones.
    first = latest if channel in transaction.unmerged_channels else missing[0]
    return NewDelivery(latest, first, incident_id, current.episode, channel, remark)
