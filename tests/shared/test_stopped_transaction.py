"""A client that stops in the middle of many rows: PostgreSQL releases what it has locked."""

import threading
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, exc, text

from shared.sql import engine as engines
from shared.sql.database_url import DatabaseUrl
from shared.sql.engine import AnswerTimeout

OPTIONS = "-c idle_in_transaction_session_timeout=1s"


def create(url: DatabaseUrl) -> Engine:
    return engines.create_postgresql_engine(
        url,
        2,
        application_name="test",
        options=OPTIONS,
        checks_connections=False,
        create_answer_timeout=AnswerTimeout,
    )


def stop_and_update(url: DatabaseUrl) -> None:
    """One client stops between the second and the third row of a statement; another needs the first row."""
    engine, other = create(url), create_engine(url)  # the other one's transactions have no limit of their own
    stopped, thawed = threading.Event(), threading.Event()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE rows (id int PRIMARY KEY, value int)"))
        connection.execute(text("INSERT INTO rows SELECT id, 0 FROM generate_series(1, 3) id"))

    def rows() -> Iterator[tuple[int]]:
        yield (1,)
        yield (2,)
        stopped.set()
        assert thawed.wait(60)
        yield (3,)

    def update() -> None:
        try:
            with engine.begin() as connection:
                cursor = connection.connection.cursor()
                cursor.execute("SELECT 1 FROM rows WHERE id = 1 FOR UPDATE")
                cursor.executemany("UPDATE rows SET value = 1 WHERE id = %s", rows())  # type: ignore[arg-type]  # lazily
        except (exc.DBAPIError, psycopg.Error):
            failed.set()

    failed = threading.Event()
    client = threading.Thread(target=update)
    client.start()
    try:
        assert stopped.wait(60)
        with other.begin() as connection:  # waits for the row, for five seconds more than it may take
            connection.execute(text("SET LOCAL lock_timeout = '6s'"))
            connection.execute(text("UPDATE rows SET value = 2 WHERE id = 1"))
    finally:
        thawed.set()
        client.join()
    assert failed.is_set()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT value FROM rows ORDER BY id")).scalars().all() == [2, 0, 0]
    engine.dispose()
    other.dispose()


def test_in_the_middle_of_a_pipeline(postgres_database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_LIMIT_TRANSACTION", ", set_config('transaction_timeout', '1s', true)")
    stop_and_update(postgres_database)


def test_before_postgresql_17_one_row_after_the_other(
    postgres_database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_HAS_TRANSACTION_TIMEOUT", 99)
    stop_and_update(postgres_database)
