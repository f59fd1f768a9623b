"""A table of a program of somebody else's, in each kind of database, and a KMS key in memory."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL

from tests import memory_kms, ram_disk
from tests.iterations import LONG
from tests.mariadb import MariaDb
from tests.rotator.table.tenants import Tenants

KEY = "vault/tenants"
_FIXTURES = {"sqlite": "sqlite_url", "postgresql": "postgres_database", "mariadb": "mariadb_database"}
each_database = pytest.mark.parametrize("any_database", _FIXTURES, indirect=True)


@pytest.fixture(scope="session")
def shared_mariadb() -> Iterator[MariaDb]:
    """One MariaDB for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="mariadb-", dir=ram_disk.find_ram_disk()))
    try:
        server = MariaDb(folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def mariadb_database(shared_mariadb: MariaDb) -> Iterator[URL]:
    """An empty database in MariaDB."""
    database = shared_mariadb.database(f"test_{uuid4().hex}")
    yield database
    shared_mariadb.drop(database)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> URL:
    """An empty database in a file."""
    (tmp_path / "app.db").touch()
    return URL.create("sqlite", database=str(tmp_path / "app.db"))


@pytest.fixture(params=list(_FIXTURES) if LONG else ["sqlite"])
def any_database(request: pytest.FixtureRequest) -> URL:
    """An empty database: of each kind where the test is marked so."""
    found: URL = request.getfixturevalue(_FIXTURES[request.param])
    return found


@pytest.fixture
def kms_key() -> Iterator[memory_kms.StoredKey]:
    """A key with one version, `elm`."""
    with memory_kms.registered():
        yield memory_kms.create_key(KEY, "elm")


@pytest.fixture
def build(kms_key: memory_kms.StoredKey, tmp_path: Path) -> Callable[[URL], Tenants]:
    """The table in a database."""
    return lambda url: Tenants(url, {"provider": "memory", "key": KEY}, tmp_path)


@pytest.fixture
async def tenants(build: Callable[[URL], Tenants], any_database: URL) -> Tenants:
    """Three tenants, in each kind of database."""
    table = build(any_database)
    await table.create()
    await table.add(["acme", "beta", "Ümläut 'quoted'"])
    return table


@pytest.fixture
async def in_a_file(build: Callable[[URL], Tenants], sqlite_url: URL) -> Tenants:
    """Three tenants in SQLite alone: what does not depend on the store."""
    table = build(sqlite_url)
    await table.create()
    await table.add(["acme", "beta", "gamma"])
    return table


@pytest.fixture
def due(build: Callable[[URL], Tenants], sqlite_url: URL, kms_key: memory_kms.StoredKey) -> Tenants:
    """Two tenants in SQLite, whose keys the former version `elm` wraps: `oak` is the primary one; for commands."""

    async def fill() -> None:
        await table.create()
        await table.add(["acme", "beta"])

    table = build(sqlite_url)
    asyncio.run(fill())
    kms_key.add_version("oak")
    return table
