"""The store on a PostgreSQL that hangs, whose rows others hold, and that a person configures."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import psycopg
import pytest
from sqlalchemy import select

from services.relay.outbox.store import Store, StoreUnavailableError, Transaction, open_store
from services.relay.outbox.tables import quarantine
from shared.sql.database_url import DatabaseUrl
from tests.postgres import Postgres
from tests.relay.outbox.actions import accept
from tests.relay.outbox.frozen_postgresql import frozen
from tests.relay.outbox.store_jobs import bodies, write
from tests.relay.served_relay import until
from tests.stopwatch import Stopwatch


@pytest.fixture
async def store(postgres_database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(postgres_database, lambda: 0.0) as store:
        yield store


def show(setting: str, transaction: Transaction) -> object:
    return transaction.connection.exec_driver_sql(f"SHOW {setting}").scalar()


async def test_postgresql_flushes_at_each_commit_and_bounds_every_wait(postgres_database: DatabaseUrl) -> None:
    async with open_store(postgres_database, lambda: 0.0) as store:
        settings = {
            name: await store.run(partial(show, name))
            for name in ("synchronous_commit", "lock_timeout", "statement_timeout")
        }
    assert settings == {"synchronous_commit": "on", "lock_timeout": "1100ms", "statement_timeout": "6500ms"}


async def test_a_deadlock_is_retried_at_once(postgres_database: DatabaseUrl) -> None:
    async with open_store(postgres_database, lambda: 0.0) as one, open_store(postgres_database, lambda: 0.0) as other:
        await asyncio.gather(*(one.run(partial(write, body=body)) for body in (b"a", b"b")))
        meet = threading.Barrier(2)

        def both(first: bytes, second: bytes, transaction: Transaction) -> None:
            lock = "UPDATE quarantine SET code = code + 1 WHERE body = %s"
            transaction.connection.exec_driver_sql(lock, (first,))
            with suppress(threading.BrokenBarrierError):
                meet.wait(2)
                meet.abort()  # the second time there is nobody to meet
            transaction.connection.exec_driver_sql(lock, (second,))

        await asyncio.gather(one.run(partial(both, b"a", b"b")), other.run(partial(both, b"b", b"a")))
        codes = await one.read(lambda connection: list(connection.execute(select(quarantine.c.code)).scalars()))
    assert codes == [402, 402]


async def test_what_a_person_wrote_into_the_url_wins(postgres_database: DatabaseUrl) -> None:
    options = {
        "application_name": "relay-of-mine",
        "connect_timeout": "9",
        "options": "-c search_path=mine,public -c statement_timeout=9s",
    }
    async with open_store(postgres_database.update_query_dict(options), lambda: 0.0) as store:
        names = ("application_name", "search_path", "statement_timeout", "lock_timeout")
        settings = {name: await store.run(partial(show, name)) for name in names}
        timeout = await store.run(_connect_timeout)
    assert settings == {
        "application_name": "relay-of-mine",
        "search_path": "mine,public",
        "statement_timeout": "9s",
        "lock_timeout": "1100ms",
    }
    assert timeout == "9"


def _connect_timeout(transaction: Transaction) -> str:
    connection = transaction.connection.connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    return connection.info.get_parameters()["connect_timeout"]


async def test_a_server_that_hangs_is_left_alone_and_asked_again(own_postgres: Postgres) -> None:
    async with open_store(own_postgres.database("relay"), lambda: 0.0) as store:
        await store.run(partial(write, body=b"before"))
        assert await bodies(store) == [b"before"]
        store._answer_timeout.seconds = 0.3
        with frozen(own_postgres):
            watch = Stopwatch()
            with pytest.raises(StoreUnavailableError, match=r"PostgreSQL gave no answer within 0\.3 s"):
                await store.run(partial(write, body=b"lost"))
            with pytest.raises(StoreUnavailableError):
                await bodies(store)
            assert watch.seconds < 7  # the reader also tries a new connection, which waits 3 s
            assert store.error == "PostgreSQL gave no answer within 0.3 s"
        store._answer_timeout.seconds = 7.5
        await store.run(partial(write, body=b"after"))
        assert store.error is None
        assert (await bodies(store))[-1] == b"after"


@asynccontextmanager
async def hanging(store: Store, server: Postgres) -> AsyncIterator[asyncio.Task[None]]:
    """A transaction that has begun on a server that hangs."""
    with frozen(server):
        transaction = asyncio.create_task(store.run(write))
        await until(lambda: store._transaction_started is not None)
        yield transaction


async def test_a_transaction_that_hangs_is_a_problem_before_it_fails(own_postgres: Postgres) -> None:
    seconds = 0.0
    async with open_store(own_postgres.database("relay"), lambda: 0.0, monotonic=lambda: seconds) as store:
        await store.run(write)
        async with hanging(store, own_postgres) as task:
            assert store.error is None
            seconds = 3.1
            assert store.error == "a transaction has been running for more than 3 s"
            assert not task.done()
        await task
        assert store.error is None


async def test_after_a_stop_nobody_waits_for_a_server_that_hangs(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.outbox.store._STOP_SECONDS", 0.1)
    seconds = 0.0
    async with open_store(own_postgres.database("relay"), lambda: 0.0, monotonic=lambda: seconds) as store:
        await store.run(write)
        async with hanging(store, own_postgres) as begun:
            queued = asyncio.create_task(store.run(write))
            await asyncio.sleep(0)
            seconds = 3.1
            watch = Stopwatch()
            store.stop()
            answers = await asyncio.gather(begun, queued, return_exceptions=True)
            assert [type(answer) for answer in answers] == [StoreUnavailableError] * 2
            assert watch.seconds < 5, "which is less than a webhook may wait"


async def test_what_a_scrape_asks_is_answered_or_refused_in_time(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.outbox.store._SCRAPE_TIMEOUT", 0.5)
    async with open_store(own_postgres.database("relay"), lambda: 0.0) as store:
        assert await asyncio.to_thread(store.read_blocking, lambda _: 1) == 1
        with frozen(own_postgres):
            watch = Stopwatch()
            with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.5 s"):
                await asyncio.to_thread(store.read_blocking, lambda _: 1)
            assert watch.seconds < 1.5


async def test_a_store_is_closed_though_the_server_hangs(own_postgres: Postgres) -> None:
    database = own_postgres.database("relay")
    async with open_store(database, lambda: 0.0) as store:
        await store.run(partial(write, body=b"before"))
        await bodies(store)
        with frozen(own_postgres):
            tasks = [asyncio.create_task(store.run(write)), asyncio.create_task(bodies(store))]
            await until(lambda: store._transaction_started is not None)
            watch = Stopwatch()
            await asyncio.to_thread(store.close)
            assert watch.seconds < 2
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [StoreUnavailableError] * 2
    async with open_store(database, lambda: 0.0) as second:
        assert await bodies(second) == [b"before"]


async def test_an_incident_that_another_replica_leases_costs_the_others_little(
    store: Store, postgres_database: DatabaseUrl
) -> None:
    await accept(store, "held")
    url = postgres_database.render_as_string(hide_password=False)
    with psycopg.connect(url) as other:
        other.execute("SELECT * FROM incidents WHERE id = 'held' FOR UPDATE")
        pending = [asyncio.create_task(accept(store, "held")) for _ in range(2)]
        free = [asyncio.create_task(accept(store, f"free {number}")) for number in range(20)]
        assert [(await task).delivery_count for task in free] == [1] * 20
        assert store.error is None
        assert not any(task.done() for task in pending)
    assert [(await task).delivery_count for task in pending] == [1, 1]
