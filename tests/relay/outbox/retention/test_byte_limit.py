"""The outbox's size in bytes: what goes for it, what stays, and what is refused, on both stores."""

import asyncio
import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from sqlalchemy import insert, select

from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.retention import (
    PRUNE_ABOVE,
    PRUNE_DOWN_TO,
    ByteLimit,
    measure_bytes,
    prune_by_age,
    prune_to_size,
)
from services.relay.outbox.store import Store, StoreUnavailableError, Transaction, open_store
from services.relay.outbox.tables import DeliveryState, quarantine
from shared.http.access import AuditEntry
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.rows import Rows
from tests.relay.served_relay import Scripted, metric, post, served, settings, until, webhook_of
from tests.stores import each_store

MIB = 1024 * 1024
DAY = 86400.0
NO_LIMIT = 1_000_000
STAYS = "outbox is full and nothing can be pruned; webhooks are refused"
SMALL: dict[str, Any] = {
    "retention": {"max_bytes": "6MiB"},
    "intake": {"max_body": "1MiB"},
    "delivery": {"duplicate_window": "1ms"},
}


def limited(most: int) -> ByteLimit:
    limit = ByteLimit()
    limit.max_bytes = most
    return limit


async def refused(store: Store, *, age: float, body: bytes = b"") -> None:
    def put(transaction: Transaction) -> None:
        row = {"received_at": transaction.now - age, "source": "", "code": 400, "reason": "", "body": body}
        transaction.connection.execute(insert(quarantine), row)

    await store.run(put)


async def sizes_of_refused(store: Store) -> list[int]:
    query = select(quarantine.c.body).order_by(quarantine.c.seq)
    return await store.read(lambda connection: [len(body) for body in connection.execute(query).scalars()])


async def test_a_refused_webhook_goes_by_its_age_as_a_delivery_does(store: Store) -> None:
    await refused(store, age=2 * DAY, body=b"old")
    await refused(store, age=DAY / 2, body=b"young webhook")
    assert (await prune_by_age(store, DAY, NO_LIMIT)).quarantined == 1
    assert await sizes_of_refused(store) == [len("young webhook")]


@each_store
async def test_near_the_limit_the_oldest_of_what_is_over_goes_and_nothing_that_is_to_be_delivered(
    store: Store, rows: Rows
) -> None:
    over, remaining = [], set()
    for number in range(30):
        content = secrets.token_bytes(200_000)
        event = await rows.event(f"{number}", age=3000 - 100 * number, goes_on=False, event_json=content)
        state = DeliveryState.QUEUED if number % 10 == 0 else DeliveryState.DELIVERED
        delivery = await rows.delivery(event, state=state)
        if state is DeliveryState.QUEUED:
            remaining.add(delivery)
        else:
            over.append(delivery)
    await refused(store, age=2990, body=secrets.token_bytes(100_000))
    limit = limited(4 * MIB)
    await prune_to_size(store, limit, 60.0)
    used = await store.read(measure_bytes)
    assert used <= PRUNE_ABOVE * limit.max_bytes
    assert used > 0.4 * limit.max_bytes, "it dropped more than it had to"
    left = await rows.left()
    assert remaining <= left, "what waits is never dropped"
    newest = [each for each in over if each in left]
    assert over[-len(newest) :] == newest, "the oldest go first"
    assert await sizes_of_refused(store) == []


async def test_what_is_given_up_goes_likewise_and_what_is_young_stays(store: Store, rows: Rows) -> None:
    for number in range(10):
        content = secrets.token_bytes(200_000)
        event = await rows.event(f"old {number}", age=3000, goes_on=False, event_json=content)
        await rows.delivery(event, state=DeliveryState.DEAD)
        event = await rows.event(f"young {number}", age=30, goes_on=False, event_json=content)
        await rows.delivery(event)
    await prune_to_size(store, limited(MIB), 60.0)
    assert len(await rows.left()) == 10
    assert len(await rows.events()) == 10


async def test_who_fills_the_outbox_with_webhooks_erases_nothing_of_the_audit(store: Store) -> None:
    await OutboxAudit(store).add(AuditEntry(0.0, "ben", "::1", "retry", "1"))
    for _ in range(20):
        await refused(store, age=0, body=secrets.token_bytes(200_000))
    await prune_to_size(store, limited(1 * MIB), 0.0)
    assert len(await sizes_of_refused(store)) < 20
    assert len((await OutboxAudit(store).list_entries(10, None))[0]) == 1


async def test_below_the_limit_nothing_goes(store: Store, rows: Rows) -> None:
    await rows.delivery(await rows.event(age=DAY, goes_on=False, event_json=bytes(200_000)))
    limit = limited(8 * MIB)
    assert await prune_to_size(store, limit, 0.0) == (0, 0, 0)
    assert 0 < limit.used_bytes < PRUNE_DOWN_TO * limit.max_bytes


def on_disk(database: DatabaseUrl) -> int:
    """Of a file; PostgreSQL frees what was dropped when its autovacuum comes."""
    return Path(str(database.database)).stat().st_size if database.drivername == "sqlite" else 0


async def accepted(client: aiohttp.ClientSession, body: bytes) -> bool:
    """Whether it was; Alertmanager asks again until it is."""
    return (await post(client, body))[0] == 202


def large(group: str, status: str = "firing") -> bytes:
    return webhook_of(status, group=group, commonAnnotations={"description": secrets.token_hex(150_000)})


async def test_what_is_still_to_be_delivered_fills_it_to_the_limit_and_no_further(
    database: DatabaseUrl, tmp_path: Path
) -> None:
    waiting = asyncio.Event()

    async def hang() -> None:
        await waiting.wait()

    channel = Scripted(hang, hang)
    configuration = settings(tmp_path, {"one": channel}, **SMALL)
    async with served(configuration.model_copy(update={"database": database})) as client:
        codes: list[int] = []

        async def refuses() -> bool:
            code, answer = await post(client, large(f"{len(codes)}"))
            codes.append(code)
            return (
                code == 503
                and "the outbox is full: it holds " in answer["error"]
                and any(line["event"] == STAYS for line in logs)
            )

        with structlog.testing.capture_logs() as logs:
            await until(refuses)
        assert (await post(client, large("one more")))[0] == 503
        used, most = await metric(client, "relay_outbox_bytes"), await metric(client, "relay_outbox_max_bytes")
        assert used is not None
        assert most == 6 * MIB
        assert used <= 1.1 * most
        assert (await post(client, webhook_of("resolved", group="0")))[0] == 202, "the end of an incident still fits"
        assert on_disk(database) <= 1.25 * most
        waiting.set()
        await until(lambda: len(channel.sent) >= codes.count(202), 30)


async def test_what_was_delivered_makes_space_for_the_next(database: DatabaseUrl, tmp_path: Path) -> None:
    channel = Scripted()
    configuration = settings(tmp_path, {"one": channel}, **SMALL)
    async with served(configuration.model_copy(update={"database": database})) as client:
        for number in range(14):
            for status in ("firing", "resolved"):
                body = large(f"{number}", status)
                await until(partial(accepted, client, body), 20)
        used = await metric(client, "relay_outbox_bytes")
        assert used is not None
        assert used <= 1.25 * 6 * MIB
        assert on_disk(database) <= 1.5 * 6 * MIB


async def test_an_outbox_far_over_its_limit_accepts_at_once_where_what_is_over_can_go(
    database: DatabaseUrl, tmp_path: Path
) -> None:
    async with open_store(database, time.time) as store:
        await Rows(store).create_deliveries(400, age=DAY, event_json=secrets.token_bytes(40_000))
    configuration = settings(tmp_path, {"one": Scripted()}, **SMALL)
    with structlog.testing.capture_logs() as logs:
        async with served(configuration.model_copy(update={"database": database})) as client:
            sizes: list[float] = []

            async def shrunk() -> bool:
                assert (await post(client, webhook_of(group=f"{len(sizes)}")))[0] == 202
                sizes.append(await metric(client, "relay_outbox_bytes") or 0)
                return max(sizes) > 10 * MIB and sizes[-1] < 6 * MIB * PRUNE_ABOVE

            await until(shrunk, 20)
    assert not [line for line in logs if line["event"].startswith("the outbox")]


async def test_until_a_round_has_ended_it_takes_little_beyond_its_limit_and_says_why_no_more() -> None:
    limit = limited(100 * MIB)
    with structlog.testing.capture_logs() as logs:
        for _ in range(53):  # two MiB each, and some for their rows
            with limit.reserve(MIB, resolved=False):
                pass
        with limit.reserve(MIB, resolved=False):
            pass
        with pytest.raises(StoreUnavailableError), limit.reserve(MIB, resolved=False):
            pass
        with limit.reserve(MIB, resolved=True):
            pass
        limit.record_pruning(nothing_to_prune=True)
        with pytest.raises(StoreUnavailableError), limit.reserve(1, resolved=False):
            pass
        with limit.reserve(MIB, resolved=True):
            pass
    assert [line["event"] for line in logs] == [
        "outbox grows faster than retention prunes it; webhooks are refused",
        STAYS,
    ]
