"""Many dead letters are retried in the background: one run at a time, of whichever replica; it can be stopped."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import update

from services.relay.deliveries import retries as bulk_retry
from services.relay.deliveries.retries import (
    LEASE_SECONDS,
    STEP,
    BulkRetries,
    BulkRetry,
    BulkRetryRunningError,
    BulkRetryState,
    NothingToRetryError,
    read_bulk_retry,
    stop_bulk_retry,
)
from services.relay.outbox.dead_letters import DeadLetterFilter, read_dead_letters
from services.relay.outbox.store import Store, StoreUnavailableError, open_store
from services.relay.outbox.tables import DeliveryState
from services.relay.outbox.tables import bulk_retry as table
from shared.sql.database_url import DatabaseUrl
from tests.bench.filled import CHANNEL, fill
from tests.relay.outbox.rows import Rows
from tests.relay.served_relay import until


@pytest.fixture
async def store(database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setattr(bulk_retry, "_PAUSE", 0.0)
    async with open_store(database, time.time) as store:
        yield store


async def read(store: Store) -> BulkRetry:
    found = await store.read(lambda connection: read_bulk_retry(connection, store.clock))
    assert found is not None
    return found


async def run_until(store: Store, retries: BulkRetries, condition: Callable[[BulkRetry], bool]) -> BulkRetry:
    """Does steps until the run is so; gives how it stands then."""
    running = asyncio.create_task(retries.run())

    async def is_true() -> bool:
        return condition(await read(store))

    await until(is_true)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return await read(store)


def is_over(run: BulkRetry) -> bool:
    return run.state is not BulkRetryState.RUNNING


async def test_a_run_takes_what_was_dead_and_everybody_sees_how_far_it_is(store: Store) -> None:
    rows = Rows(store)
    await fill(store, 2 * STEP + 1, DeliveryState.DEAD)
    await rows.delivery(await rows.event("x"), "mail", DeliveryState.DEAD, reason="timeout")
    await rows.delivery(await rows.event("y"), "gone", DeliveryState.DEAD, reason="timeout")
    woken: list[str] = []
    retries, other = BulkRetries(store), BulkRetries(store)
    for each in (retries, other):
        each.configure([CHANNEL, "mail"], woken.extend)
    assert await store.read(lambda connection: read_bulk_retry(connection, store.clock)) is None

    assert await retries.start(None, None, "alice") == 2 * STEP + 2
    for attempt in (other, retries):
        with pytest.raises(BulkRetryRunningError):
            await attempt.start(None, None, "bob")
    begun = await read(store)
    assert (begun.state, begun.total, begun.retried, begun.started_by) == ("running", 2 * STEP + 2, 0, "alice")

    done = await run_until(store, retries, is_over)
    assert (done.run, done.state, done.retried, done.error) == (begun.run, "done", 2 * STEP + 2, None)
    assert set(woken) == {CHANNEL, "mail"}
    left = await store.read(read_dead_letters)
    assert [(group.channel, group.letter_count) for group in left.groups] == [("gone", 1)]  # it is not configured
    for channel, reason in ((None, "timeout"), ("\0", "\0")):
        with pytest.raises(NothingToRetryError):
            await other.start(channel, reason, "bob")
    assert not await stop_bulk_retry(store, "\0", "bob")
    assert await read(store) == done  # nothing was changed


async def test_a_person_stops_a_run_of_any_replica_and_another_one_continues(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store, 3 * STEP, DeliveryState.DEAD)
    retries = BulkRetries(store)
    retries.configure([CHANNEL], lambda _: None)
    await retries.start(CHANNEL, None, "alice")
    monkeypatch.setattr(bulk_retry, "_PAUSE", 30.0)
    first = await run_until(store, retries, lambda run: run.retried > 0)
    assert first.retried == STEP

    assert await stop_bulk_retry(store, first.run, "bob")
    assert not await stop_bulk_retry(store, first.run, "bob")  # it is over
    stopped = await run_until(store, retries, is_over)
    assert (stopped.state, stopped.stopped_by, stopped.retried) == ("stopped", "bob", STEP)

    monkeypatch.setattr(bulk_retry, "_PAUSE", 0.0)
    await retries.start(CHANNEL, "no_attempt", "bob")
    assert not await stop_bulk_retry(store, first.run, "alice")  # of an old page
    done = await run_until(store, retries, is_over)
    assert (done.state, done.retried, done.reason) == ("done", 2 * STEP, "no_attempt")


async def test_a_step_of_a_run_that_somebody_stopped_meanwhile_changes_nothing(store: Store) -> None:
    await fill(store, STEP, DeliveryState.DEAD)
    retries = BulkRetries(store)
    retries.configure([CHANNEL], lambda _: None)
    await retries.start(None, None, "alice")
    await stop_bulk_retry(store, (await read(store)).run, "bob")
    running = asyncio.create_task(retries.run())
    await until(retries._started.empty)
    await store.run(lambda _: None)
    await store.run(lambda _: None)
    running.cancel()
    assert await store.read(DeadLetterFilter(CHANNEL).count) == STEP


async def test_a_run_of_a_relay_that_is_gone_is_interrupted_and_another_one_may_begin(store: Store) -> None:
    await fill(store, 1, DeliveryState.DEAD)
    retries, former = BulkRetries(store), BulkRetries(store)
    retries.configure([CHANNEL], lambda _: None)
    former.configure([CHANNEL], lambda _: None)
    await former.start(None, None, "alice")
    long_ago = update(table).values(advanced_at=table.c.advanced_at - LEASE_SECONDS - 1)
    await store.run(lambda transaction: transaction.connection.execute(long_ago).close())
    assert (await read(store)).state is BulkRetryState.INTERRUPTED
    assert await retries.start(None, None, "bob") == 1
    assert (await run_until(store, retries, is_over)).state is BulkRetryState.DONE


@pytest.mark.parametrize("error", [StoreUnavailableError("the disk is full"), RuntimeError("secret")])
async def test_a_run_that_fails_says_so(store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    await fill(store, 1, DeliveryState.DEAD)
    retries = BulkRetries(store)
    retries.configure([CHANNEL], lambda _: None)
    await retries.start(None, None, "alice")
    monkeypatch.setattr(bulk_retry, "requeue_dead_letters", fails)
    failed = await run_until(store, retries, is_over)
    assert failed.state is BulkRetryState.FAILED
    assert failed.error in ("the disk is full", "a defect of the relay: RuntimeError; see its log")
