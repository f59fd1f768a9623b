"""Checks and tests of channels, and what people read of a channel, on both stores."""

import asyncio
import time
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Column, Connection, update

from services.relay.channel_health import store as channel_checks
from services.relay.channel_health.checks import claim_test
from services.relay.channel_health.store import ChannelCheck, CheckKind, claim_check, prune_checks, record_check
from services.relay.now import overview as channel_overviews
from services.relay.now.overview import BreakerState, ChannelOverview, LastFailure, read_channel_overviews
from services.relay.outbox.breaker import ChannelEffect
from services.relay.outbox.retention import prune_by_age
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, channels, deliveries
from shared.check import CheckOutcome, CheckResult
from shared.http.json_api import RefusedError
from shared.sql.database_url import DatabaseUrl
from shared.sql.rows import RowQuery
from tests.relay.outbox.actions import accept, claim_one
from tests.relay.outbox.channel_breakers import fail
from tests.relay.outbox.rows import Rows
from tests.relay.outbox.test_query_plans import plan
from tests.stores import each_store

PASSED = CheckResult("token", CheckOutcome.PASSED, "bot keypulse")
FAILED = CheckResult("channel", CheckOutcome.FAILED, "it is \x00archived", "unarchive it", 0.5)


def check(*results: CheckResult, kind: CheckKind = CheckKind.CHECK, seconds: float = 0.5) -> ChannelCheck:
    return ChannelCheck(kind, seconds, "anna", results)


async def state(store: Store, channel: str) -> channel_checks.CheckState:
    return await store.read(partial(channel_checks.read_check_state, channel=channel, now=time.time()))


async def overview(store: Store, name: str = "a") -> ChannelOverview:
    (found,) = await store.read(partial(read_channel_overviews, names=[name], now=time.time()))
    return found


async def change(store: Store, **values: object) -> None:
    await store.run(lambda transaction: transaction.connection.execute(update(channels).values(values)))


@each_store
async def test_one_replica_at_a_time_checks_a_channel_and_the_last_checks_are_kept(store: Store) -> None:
    assert [await claim_check(store, "a", 60) for _ in range(2)] == [True, False]
    assert await claim_check(store, "b", 60)
    assert await claim_check(store, "a", 0)
    await change(store, check_started_at=time.time() + 3600)  # the clock was set back
    assert await claim_check(store, "a", 60)
    assert (await state(store, "b"))[1:] == (False, False)
    assert await state(store, "never") == (None, False, False)

    for number in range(channel_checks.MAX_CHECKS + 2):
        await record_check(store, "a", check(PASSED, FAILED, seconds=7200 - number))
    await record_check(store, "a", check(PASSED, kind=CheckKind.TEST))
    checks = await store.read(partial(channel_checks.list_checks, channel="a", kind=CheckKind.CHECK, limit=999))
    assert [each.seconds for each in checks] == [7200 - n for n in reversed(range(2, channel_checks.MAX_CHECKS + 2))]
    assert time.time() - 7200 < checks[0].started_at < time.time() - 7000
    assert (await state(store, "a")).is_failed
    assert (checks[0].problem, checks[0].hint, checks[0].requested_by) == ("it is �archived", "unarchive it", "anna")
    passed, failed = await store.read(partial(channel_checks.read_results, row=checks[0]))
    assert (passed, failed.outcome, failed.hint) == (PASSED, CheckOutcome.FAILED, "unarchive it")
    found = await overview(store)
    assert found.last_check == checks[0]
    assert found.last_test is not None
    assert found.last_test.problem is None

    await prune_by_age(store, 3600, 100, [prune_checks])
    assert await store.read(partial(channel_checks.list_checks, channel="a", kind=CheckKind.CHECK, limit=9)) == []
    assert await store.read(partial(channel_checks.read_results, row=checks[0])) == []
    assert (await overview(store)).last_test == found.last_test


@each_store
async def test_of_two_replicas_one_checks_and_one_tests(database: DatabaseUrl, store: Store) -> None:
    async with open_store(database, time.time) as other:
        assert sorted(await asyncio.gather(claim_check(store, "a", 60), claim_check(other, "a", 60))) == [False, True]
        tests = (claim_test(store, "b", 1.0), claim_test(other, "b", 1.0))
        refused = [each for each in await asyncio.gather(*tests, return_exceptions=True) if each]
    assert [str(each).partition(";")[0] for each in refused] == ["there was a test just now"]


async def test_a_test_takes_tokens_and_waits_for_provider_and_rate_but_not_for_a_breaker(store: Store) -> None:
    await claim_test(store, "a", 1.0)
    with pytest.raises(RefusedError, match=r"there was a test just now; try again in (30|29) s"):
        await claim_test(store, "a", 1.0)
    now = time.time()
    await change(store, test_started_at=None, failures=9, is_down=1, paused_until=now + 99)
    await claim_test(store, "a", 1.0)  # behind its breaker
    await change(store, test_started_at=None)
    await claim_test(store, "a", 1.0)  # five seconds are saved up: four messages, and one more
    await change(store, test_started_at=None)
    with pytest.raises(RefusedError, match="deliveries use up its rate"):
        await claim_test(store, "a", 1.0)
    assert (await state(store, "a")).is_busy
    await claim_test(store, "a", None)
    await change(store, test_started_at=None, next_token_at=0, retry_after_until=now + 50)
    with pytest.raises(RefusedError, match="its provider asked to wait"):
        await claim_test(store, "a", None)
    assert (await state(store, "a")).is_busy


@each_store
async def test_an_overview_says_how_a_channel_is_what_waits_and_what_happened_last(store: Store) -> None:
    never = await overview(store, "never")
    assert (never.is_down, never.breaker, never.waiting, never.oldest_accepted_at) == (
        False,
        BreakerState.CLOSED,
        0,
        None,
    )
    assert (never.last_success, never.last_failure, never.last_check, never.due_at) == (None, None, None, None)

    rows = Rows(store)
    event = await rows.event(age=60)
    now = time.time()
    await rows.delivery(event, "a", finished_at=now - 9)
    newest = await rows.delivery(event, "a", finished_at=now - 5)
    await rows.delivery(event, "b", finished_at=now)
    for number in range(2):
        await accept(store, f"new {number}", "a")
    found = await overview(store)
    assert found.last_success == (newest, now - 5)
    assert (found.waiting, found.sending, found.is_down, found.last_failure) == (2, 0, False, None)
    assert found.due_at is not None
    await fail(
        store, await claim_one(store, "a"), ChannelEffect.REACHED, reason="rejected", detail="no\x00 " + 600 * "x"
    )
    found = await overview(store)
    assert found.last_failure is not None
    assert found.last_failure == LastFailure(found.last_failure.at, "rejected", "no� " + 496 * "x")
    assert (found.is_down, found.breaker, found.retry_after_until, found.reason) == (
        False,
        BreakerState.CLOSED,
        None,
        None,
    )  # nothing is wrong with the channel

    await fail(store, await claim_one(store, "a"), ChannelEffect.DOWN, reason="unauthorized", retry_after=7)
    found = await overview(store)
    assert (found.is_down, found.breaker, found.reason) == (True, BreakerState.OPEN, "unauthorized")
    assert found.paused_until is not None
    assert found.retry_after_until is not None
    await change(store, paused_until=0, retry_after_until=None)
    assert (await overview(store)).breaker is BreakerState.HALF_OPEN
    assert await store.read(channel_overviews.count_delivered) == {"a": 2, "b": 1}


async def test_no_overview_searches_what_was_delivered(store: Store) -> None:
    rows = Rows(store)
    event = await rows.event()
    for _ in range(3):
        await rows.delivery(event, "a", DeliveryState.DELIVERED)
    for query, index, given in (
        (channel_overviews._LAST_SUCCESS, "deliveries_delivered", {}),
        (text_of(channel_overviews._DUE_AT, deliveries.c.id), "deliveries_due", {"waiting": ["queued", "retrying"]}),
        (channel_checks._CHECKS, "channel_checks_of_channel", {"kind": "check", "most": 1}),
    ):
        explain_query = partial(explain, query=query, given={"channel": "a", **given})
        assert index in await store.read(explain_query)


def text_of(query: RowQuery[Any], column: Column[Any]) -> RowQuery[Any]:
    """The same rows; a plan is text, which the driver of PostgreSQL refuses to take for a number."""
    return RowQuery(query.build_row, query.statement.with_only_columns(column))


def explain(connection: Connection, query: RowQuery[Any], given: dict[str, Any]) -> str:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # it would read so few rows as a whole
    return plan(query, given, connection)
