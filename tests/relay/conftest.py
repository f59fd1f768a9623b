"""A real Prometheus, as the tests of ops start it; and an outbox by the real clock.

A test that needs another clock, or channels, opens its own outbox.
"""

import time
from collections.abc import AsyncIterator

import pytest

from services.relay.outbox.store import Store, open_store
from shared.sql.database_url import DatabaseUrl
from tests.ops.conftest import running
from tests.relay.outbox.channel_breakers import Clock
from tests.relay.outbox.rows import Rows

__all__ = ["running"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, time.time) as store:
        yield store


@pytest.fixture
def short_lock_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction waits for SQLite's lock for a tenth of its time."""
    monkeypatch.setattr("shared.sql.engine.LOCK_SECONDS", 0.2)


@pytest.fixture
def rows(store: Store) -> Rows:
    return Rows(store)
