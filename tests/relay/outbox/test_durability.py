"""What was answered for is found again: the server waits for the disk, and the file is the one that the path names."""

import asyncio
import shutil
import signal
import sqlite3
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.outbox import database as dialect
from services.relay.outbox import tables as schema
from services.relay.outbox.store import Store, StoreUnavailableError, StoreUnusableError, Transaction, open_store
from shared.keyring import database as keyring
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.postgres import Postgres
from tests.relay.outbox import tables
from tests.relay.outbox.store_jobs import bodies, write
from tests.relay.served_relay import Scripted, post, served, settings, until, webhook_of
from tests.stores import each_store


def careless(server: Postgres) -> None:
    """The server answers a commit before it is on its disk, as `synchronous_commit = off` lets it."""
    with psycopg.connect(host=str(server.folder), user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_commit = off")
        connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        connection.execute("SELECT pg_reload_conf()")


async def test_what_postgresql_acknowledged_outlives_its_kill_whatever_its_own_setting_is(
    own_postgres: Postgres,
) -> None:
    database = own_postgres.database("durable")
    await asyncio.to_thread(careless, own_postgres)
    async with open_store(database, lambda: 0.0) as store:
        for number in range(24):
            await store.run(partial(write, body=b"%d" % number))
        own_postgres.process.send_signal(signal.SIGQUIT)  # ends at once, without writing what waits in memory
        await asyncio.to_thread(own_postgres.process.wait, 15)
        await asyncio.to_thread(own_postgres.start)
        await until(lambda: _reads(store))
        assert await bodies(store) == [b"%d" % number for number in range(24)]


async def _reads(store: Store) -> bool:
    try:
        await bodies(store)
    except StoreUnavailableError:
        return False
    return True


@pytest.mark.parametrize("engines", [dialect.create_engines, keyring.create_engines])
def test_each_connection_waits_for_the_disk_and_a_stricter_setting_stays(
    engines: Callable[[DatabaseUrl], tuple[Engine, Engine]], postgres_database: DatabaseUrl
) -> None:
    for requested, expected in (("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")):
        url = postgres_database.update_query_dict({"options": f"-c synchronous_commit={requested}"})
        for engine in engines(url):
            with engine.begin() as connection:
                assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == expected
            engine.dispose()


@pytest.mark.parametrize("engines", [dialect.create_engines, keyring.create_engines])
def test_each_transaction_waits_for_the_disk_whatever_became_of_its_session(
    engines: Callable[[DatabaseUrl], tuple[Engine, Engine]], postgres_database: DatabaseUrl
) -> None:
    for engine in engines(postgres_database):
        with engine.begin() as connection:
            connection.execute(text("SET synchronous_commit = off"))  # as the session that a pooler gives the next one
        with engine.begin() as connection:
            assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == "on"
        engine.dispose()


def copied(file: Path) -> None:
    """Another file of the same content takes its place, and of the old one nothing is left."""
    with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(file.with_suffix(".copy"))) as new:
        old.backup(new)
    removed(file)
    file.with_suffix(".copy").replace(file)


def removed(file: Path) -> None:
    for each in file.parent.glob(f"{file.name}*"):
        each.unlink()


def emptied(file: Path) -> None:
    removed(file)
    file.touch()


def without_its_log(file: Path) -> None:
    file.with_name(f"{file.name}-wal").unlink()


def read_rows(file: Path) -> list[bytes]:
    with closing(sqlite3.connect(file)) as connection:
        return [body for (body,) in connection.execute("SELECT body FROM quarantine ORDER BY seq")]


@pytest.mark.parametrize(
    ("act", "reason"), [(removed, "there is no file"), (emptied, "it contains no tables of an outbox")]
)
async def test_a_file_that_is_removed_or_emptied_takes_nothing_until_it_is_back(
    act: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "relay.db"
    async with open_store(database_url.create_sqlite_url(file), lambda: 0.0) as store:
        await store.run(partial(write, body=b"before"))
        await bodies(store)
        with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(tmp_path / "backup")) as new:
            old.backup(new)
        act(file)
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match=r"relay\.db|no tables"):
                await store.run(partial(write, body=b"lost"))
            with pytest.raises(StoreUnavailableError):
                await bodies(store)
        assert reason in str(store.error)
        assert file.exists() == (act is emptied)
        if act is emptied:
            with closing(sqlite3.connect(file)) as connection:
                assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == []
        removed(file)
        (tmp_path / "backup").rename(file)
        await store.run(partial(write, body=b"after"))
        assert store.error is None
        assert await bodies(store) == [b"before", b"after"]
    assert read_rows(file) == [b"before", b"after"]


async def test_what_replaces_the_file_is_written_from_then_on(tmp_path: Path) -> None:
    file = tmp_path / "relay.db"
    async with open_store(database_url.create_sqlite_url(file), lambda: 0.0) as store:
        await store.run(partial(write, body=b"before"))
        await bodies(store)
        await asyncio.to_thread(copied, file)
        await store.run(partial(write, body=b"after"))
        assert await bodies(store) == [b"before", b"after"]
    assert read_rows(file) == [b"before", b"after"]


async def test_a_file_that_goes_during_a_transaction_is_noticed_before_its_end_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "relay.db"

    def write_and_remove(transaction: Transaction) -> None:
        write(transaction)
        removed(file)

    async with open_store(database_url.create_sqlite_url(file), lambda: 0.0) as store:
        with pytest.raises(StoreUnavailableError, match="was removed or replaced while it was in use"):
            await store.run(write_and_remove)


async def test_a_log_of_the_file_that_is_removed_takes_nothing_and_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "relay.db"
    async with open_store(database_url.create_sqlite_url(file), lambda: 0.0) as store:
        await store.run(partial(write, body=b"before"))
        await bodies(store)
        without_its_log(file)
        with pytest.raises(StoreUnavailableError, match=r"relay\.db-wal was removed or replaced"):
            await store.run(partial(write, body=b"lost"))
        await store.run(partial(write, body=b"after"))
    assert read_rows(file) == [b"before", b"after"]


async def test_a_log_is_searched_for_where_a_link_leads_which_may_come_to_lead_elsewhere(tmp_path: Path) -> None:
    link, real, other = tmp_path / "relay.db", tmp_path / "data" / "real.db", tmp_path / "data" / "other.db"
    real.parent.mkdir()
    link.symlink_to(real)
    async with open_store(database_url.create_sqlite_url(other), lambda: 0.0):
        pass
    async with open_store(database_url.create_sqlite_url(link), lambda: 0.0) as store:
        await store.run(partial(write, body=b"before"))
        await bodies(store)
        without_its_log(real)
        with pytest.raises(StoreUnavailableError, match=r"real\.db-wal was removed or replaced"):
            await store.run(partial(write, body=b"lost"))
        await store.run(partial(write, body=b"after"))
        link.unlink()
        link.symlink_to(other)
        await store.run(partial(write, body=b"elsewhere"))
        without_its_log(other)
        with pytest.raises(StoreUnavailableError, match=r"other\.db-wal was removed or replaced"):
            await store.run(partial(write, body=b"lost"))
    assert (read_rows(real), read_rows(other)) == ([b"before", b"after"], [b"elsewhere"])


@pytest.mark.parametrize("checkpointed", [False, True])
async def test_a_file_that_is_emptied_but_not_replaced_takes_nothing_until_another_is_there(
    checkpointed: bool, tmp_path: Path
) -> None:
    file, log = tmp_path / "relay.db", tmp_path / "relay.db-wal"

    def write_and_empty(transaction: Transaction) -> None:
        write(transaction)
        file.open("wb").close()

    async with open_store(database_url.create_sqlite_url(file), lambda: 0.0) as store:
        await store.run(partial(write, body=b"before"))
        await bodies(store)
        with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(tmp_path / "backup")) as new:
            old.backup(new)
            if checkpointed:
                old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with pytest.raises(StoreUnavailableError, match=r"relay\.db was emptied while it was in use"):
            await store.run(write_and_empty)
        for act in (lambda: None, lambda: shutil.copyfile(tmp_path / "backup", file)):  # into the same inode
            act()
            with pytest.raises(StoreUnavailableError, match=r"relay\.db was emptied while it was in use"):
                await store.run(partial(write, body=b"lost"))
            with pytest.raises(StoreUnavailableError):
                await bodies(store)
        (tmp_path / "backup").rename(file)
        with pytest.raises(StoreUnavailableError, match=r"relay\.db-wal beside it belongs to the file before"):
            await store.run(partial(write, body=b"lost"))
        log.unlink()
        (tmp_path / "relay.db-shm").unlink()
        await store.run(partial(write, body=b"after"))
    assert read_rows(file) == [b"before", b"after"]


async def test_a_log_of_the_file_before_is_not_mistaken_for_that_of_the_new_one(tmp_path: Path) -> None:
    file, log = tmp_path / "relay.db", tmp_path / "relay.db-wal"
    async with open_store(database_url.create_sqlite_url(tmp_path / "other.db"), lambda: 0.0) as other:
        await other.run(partial(write, body=b"other"))
    async with open_store(database_url.create_sqlite_url(file), lambda: 0.0) as store:
        await store.run(partial(write, body=b"before"))
        (tmp_path / "other.db").replace(file)
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match=r"relay\.db-wal beside it belongs to the file before"):
                await store.run(partial(write, body=b"lost"))
        log.unlink()
        (tmp_path / "relay.db-shm").unlink()
        await store.run(partial(write, body=b"after"))
    assert read_rows(file) == [b"other", b"after"]


async def test_a_start_without_the_file_whose_log_is_there_makes_no_new_one(tmp_path: Path) -> None:
    file, log = tmp_path / "relay.db", tmp_path / "relay.db-wal"
    async with open_store(database_url.create_sqlite_url(file), lambda: 0.0) as store:
        await store.run(write)
        shutil.copyfile(log, tmp_path / "kept")
    file.unlink()
    (tmp_path / "kept").rename(log)
    before = log.read_bytes()
    with pytest.raises(StoreUnusableError, match=r"relay\.db-wal beside it holds what was committed last"):
        async with open_store(database_url.create_sqlite_url(file), lambda: 0.0):
            pass
    assert not file.exists()
    assert log.read_bytes() == before


def modes_in(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


async def test_the_file_and_those_beside_it_are_for_their_owner_alone(tmp_path: Path) -> None:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), lambda: 0.0) as store:
        await store.run(write)
        modes = modes_in(tmp_path)
    assert modes == dict.fromkeys(("relay.db", "relay.db-wal", "relay.db-shm"), 0o600)


def drop_all(engine: Engine) -> None:
    for _ in range(10):
        with suppress(OperationalError), engine.begin() as connection:  # in PostgreSQL a deadlock with the relay
            schema.metadata.drop_all(connection)
            connection.execute(text("DROP TABLE alembic_version"))
            return
    raise AssertionError("the tables could not be dropped")


@each_store
async def test_an_emptied_database_is_503_with_the_reason_and_no_tables_are_made(
    database: DatabaseUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.delivery.worker.STOP_SECONDS", 0.1)
    configuration = settings(tmp_path, {"one": Scripted()}).model_copy(update={"database": database})
    async with served(configuration) as client:
        assert (await post(client, webhook_of()))[0] == 202
        with tables.opened(database) as engine:
            drop_all(engine)
        for _ in range(3):
            code, answer = await post(client, webhook_of())
            assert code == 503, answer
        assert "it contains no tables of an outbox" in answer["error"]
        async with client.get("/-/ready") as ready:
            assert ready.status == 503
            assert "it contains no tables of an outbox" in await ready.text()
        async with client.get("/api/deliveries") as response:
            assert response.status == 503


@contextmanager
def damaged(database: DatabaseUrl) -> Iterator[None]:
    """What was accepted first cannot be read while the body runs, or of PostgreSQL not be claimed."""
    if database.get_backend_name() == "postgresql":
        engine = create_engine(database)
        try:
            with engine.begin() as connection:
                connection.execute(text(_DAMAGE))
            yield
            with engine.begin() as connection:
                connection.execute(text("DROP TRIGGER damage ON deliveries"))
        finally:
            engine.dispose()
        return
    file = Path(str(database.database))
    with closing(sqlite3.connect(file)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with file.open("r+b") as disk:
        disk.seek((root - 1) * size + 12)
        (cell,) = struct.unpack(">H", disk.read(2))
        disk.seek((root - 1) * size + cell)
        (first_leaf,) = struct.unpack(">I", disk.read(4))  # https://sqlite.org/fileformat2.html#b_tree_pages
        disk.seek((first_leaf - 1) * size)
        page = disk.read(size)
        disk.seek((first_leaf - 1) * size)
        disk.write(b"\xff" * size)
        disk.flush()
        yield
        disk.seek((first_leaf - 1) * size)
        disk.write(page)


_DAMAGE = """
    CREATE FUNCTION damage() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = 'XX001'; END $$;
    CREATE TRIGGER damage BEFORE UPDATE ON deliveries FOR EACH ROW EXECUTE FUNCTION damage()
"""


@each_store
async def test_what_the_workers_cannot_read_the_intake_does_not_accept(
    tmp_path: Path, database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.outbox.store._DAMAGE_SECONDS", 1.0)
    monkeypatch.setattr("services.relay.delivery.worker.RETRY_SECONDS", 0.05)  # so that it is met all the time
    refused = SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, "HTTP 500")
    given = settings(tmp_path, {"one": Scripted(*[refused] * 99)}, delivery={"backoff_initial": "1ms"})
    given = given.model_copy(update={"database": database})
    async with served(given) as client:
        for number in range(30):
            assert (await post(client, webhook_of(group=f"{number}")))[0] == 202
    healthy = Scripted()
    given = settings(tmp_path, {"one": healthy}).model_copy(update={"database": database})
    with ExitStack() as damage:
        damage.enter_context(damaged(database))
        async with served(given) as client:

            async def is_unready() -> bool:
                async with client.get("/-/ready") as answer:
                    return answer.status == 503 and "it is damaged, restore a backup" in await answer.text()

            async def is_accepted() -> bool:
                return (await post(client, webhook_of(group="new")))[0] == 202

            await until(is_unready)
            assert not await is_accepted()
            damage.close()
            await until(is_accepted)
            await until(lambda: len({message.event.group_key for message in healthy.sent}) == 31)
