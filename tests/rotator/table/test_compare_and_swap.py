"""A row is changed only where its database still holds, byte by byte, what was read."""

from collections.abc import Callable

import pytest
from sqlalchemy import URL

from shared.keyring.database import Database
from shared.keyring.external.table import Encoding, Row, TableLayout, open_table
from tests.memory_kms import StoredKey
from tests.rotator.table.conftest import each_database
from tests.rotator.table.tenants import Tenants

LAYOUT = TableLayout("t", ("id",), "dek", Encoding.HEX, where="gone IS NULL")
COLLATIONS = {"sqlite": " COLLATE NOCASE", "mariadb": " COLLATE utf8mb4_general_ci"}


@pytest.mark.parametrize(
    ("change", "is_changed"),
    [
        (None, True),
        ("UPDATE t SET dek = 'ABCD'", False),
        ("UPDATE t SET dek = 'abcd00'", False),
        ("UPDATE t SET dek = NULL", False),
        ("UPDATE t SET gone = 1", False),
        ("DELETE FROM t", False),
    ],
)
@each_database
async def test_a_row_that_was_changed_since_it_was_read_stays_as_it_is(
    build: Callable[[URL], Tenants], kms_key: StoredKey, any_database: URL, change: str | None, is_changed: bool
) -> None:
    tenants = build(any_database)
    column = f"VARCHAR(400){COLLATIONS.get(any_database.drivername, '')}"
    await tenants.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, dek {column}, gone INTEGER)")
    await tenants.execute("INSERT INTO t VALUES (1, 'abcd', NULL)")
    database = Database(any_database)
    try:
        table = await database.read(lambda connection: open_table(connection, LAYOUT))
        row = await database.read(lambda connection: table.find(connection, "1"))
        assert isinstance(row, Row)
        if change:
            await tenants.execute(change)
        before = await tenants.execute("SELECT dek FROM t")
        done = await database.write(lambda connection: table.replace(connection, row, b"new", None))
        assert done is is_changed
        after = await tenants.execute("SELECT dek FROM t")
        assert after == ([(b"new".hex(),)] if is_changed else before)
    finally:
        await database.close()
