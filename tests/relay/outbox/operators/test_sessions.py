"""Sessions in the outbox: their end by time, by logout and by number, in either database."""

import asyncio
from functools import partial

from sqlalchemy import Connection, update

from services.relay.login import sessions
from services.relay.login.sessions import (
    _PRUNE_STEP,
    IDLE_SECONDS,
    MAX_SESSIONS_OF_NAME,
    SessionRow,
    find_session,
    prune_sessions,
    start_session,
)
from services.relay.outbox import tables
from services.relay.outbox.retention import prune_by_age
from services.relay.outbox.store import Store, Transaction, open_store
from shared.sql.database_url import DatabaseUrl
from tests.relay.console.test_api import Clock
from tests.relay.login.served_login import count_sessions
from tests.stores import each_store


def row(session_id: str, name: str = "anna") -> SessionRow:
    return SessionRow(session_id, name, "password", "proof", "[]", 0.0, 0.0)


async def find(store: Store, session_id: str) -> SessionRow | None:
    return await store.read(partial(find_session, session_id=session_id))


async def test_the_number_of_sessions_is_bounded_and_the_retention_removes_those_that_have_ended(
    database: DatabaseUrl,
) -> None:
    async with open_store(database, Clock()) as store:
        await start_session(store, row("of ben", "ben"), None, None)
        for first in range(0, MAX_SESSIONS_OF_NAME, 20):
            some = range(first, first + 20)
            await asyncio.gather(*(start_session(store, row(f"{n:03}"), None, None) for n in some))
        for n in range(MAX_SESSIONS_OF_NAME, MAX_SESSIONS_OF_NAME + 3):
            await start_session(store, row(f"{n:03}"), None, None)
        assert await store.read(count_sessions) == MAX_SESSIONS_OF_NAME + 1
        assert await find(store, f"{MAX_SESSIONS_OF_NAME + 2:03}") is not None
        assert await find(store, "of ben") is not None

        def end(transaction: Transaction) -> None:
            idle = update(tables.sessions).where(tables.sessions.c.name == "anna")
            transaction.connection.execute(idle.values(used_at=transaction.now - IDLE_SECONDS))

        await prune_by_age(store, 1000, 1000, [prune_sessions])
        assert await store.read(count_sessions) == MAX_SESSIONS_OF_NAME + 1
        await store.run(end)
        assert MAX_SESSIONS_OF_NAME >= _PRUNE_STEP  # so that it takes more than one step
        await prune_by_age(store, 1000, 1000, [prune_sessions])
        assert await store.read(count_sessions) == 1


@each_store
async def test_a_request_finds_its_session_and_a_login_the_others_of_its_holder_by_an_index(
    database: DatabaseUrl,
) -> None:
    def explain(connection: Connection) -> str:
        is_sqlite = connection.dialect.name == "sqlite"
        if not is_sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # of a table that is almost empty
        plans = []
        for query, values in (
            (sessions._FIND, {"session": "one"}),
            (sessions._OLDEST_OF_NAME, {"holder": "anna"}),
        ):
            compiled = query.statement.params(values).compile(connection, compile_kwargs={"literal_binds": True})
            plans.append(
                str(connection.exec_driver_sql(f"EXPLAIN {'QUERY PLAN ' if is_sqlite else ''}{compiled}").fetchall())
            )
        return " ".join(plans)

    async with open_store(database, Clock()) as store:
        plan = await store.read(explain)
    assert "sessions_of_name" in plan
    assert "PRIMARY KEY" in plan or "sessions_pkey" in plan
    assert "SCAN sessions" not in plan
    assert "Seq Scan" not in plan
