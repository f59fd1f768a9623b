"""A store, as a file or on both kinds of database, whose clock stands still."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.relay.outbox.store import Store, open_store
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), lambda: 0.0) as store:
        yield store


@pytest.fixture
async def either(database: DatabaseUrl) -> AsyncIterator[Store]:
    """One of each kind."""
    async with open_store(database, lambda: 0.0) as store:
        yield store
