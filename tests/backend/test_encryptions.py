"""Encryptions by data key are counted in its row, without a write for each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from ops.kms_emulator.emulator import Emulator
from services.backend.config import BackendSettings
from services.backend.records import TABLES as RECORDS_TABLES
from services.backend.records import store_record
from shared.keyring.database import Database, DatabaseError
from shared.keyring.rotation_metrics import read_keyring_metrics
from shared.keyring.tables import TABLES
from shared.sql.database_url import create_sqlite_url
from tests.backend.conftest import Open
from tests.backend.served_backend import serve_backend


async def count(database: Database) -> int | None:
    return (await database.read(read_keyring_metrics)).encryptions


async def test_two_instances_add_up_and_what_a_heartbeat_cannot_write_the_next_one_does(
    open_backend: Open, emulator: Emulator, tmp_path: Path
) -> None:
    address = str(emulator.address)
    async with open_backend(tmp_path, address) as first, open_backend(tmp_path, address) as second:
        database = await Database.open(create_sqlite_url(tmp_path / "backend.db"), TABLES, RECORDS_TABLES)

        async def execute(statement: str) -> None:
            await database.write(lambda connection: connection.execute(text(statement)))

        for instance, number in (first, 2), (second, 3):
            await instance.checker.check()
            for record in range(number):
                await store_record(instance.keyring, instance.records, f"r{record}", b"x")
        assert await count(database) == 0
        await second.keyring.send_heartbeat()
        await execute("ALTER TABLE keyring_instances RENAME TO elsewhere")
        with pytest.raises(DatabaseError):
            await first.keyring.send_heartbeat()
        assert await count(database) == 3
        await execute("ALTER TABLE elsewhere RENAME TO keyring_instances")
        for _ in range(2):
            await first.keyring.send_heartbeat()
        assert await count(database) == 5
        await execute("UPDATE data_keys SET encryptions = 'many'")
        assert await count(database) is None
        await database.close()


async def test_rows_are_counted_in_the_order_of_their_ids_so_that_two_instances_never_wait_for_each_other(
    open_backend: Open, emulator: Emulator, tmp_path: Path
) -> None:
    written: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if "encryptions" in statement:
            written.append(values[-1])

    async with open_backend(tmp_path, str(emulator.address)) as instance:
        for data_key_id in ("b", "c", "a"):
            instance.keyring.count_encryption(data_key_id)
        event.listen(Engine, "before_cursor_execute", note)
        try:
            await instance.keyring.send_heartbeat()
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    assert written == ["a", "b", "c"]


async def test_an_instance_that_stops_writes_what_it_has_counted(
    settings: Callable[..., BackendSettings], emulator: Emulator, tmp_path: Path
) -> None:
    async with serve_backend(settings(str(emulator.address), kms_check_interval="1h")) as client:
        for record in range(3):
            assert (await client.put(f"/v1/records/{record}", content=b"x")).status_code == 204
    database = await Database.open(create_sqlite_url(tmp_path / "backend.db"), TABLES, RECORDS_TABLES)
    assert await count(database) == 3
    await database.close()
