"""The driver `sql` beyond the contract: databases that hold no keyring, and settings that lead nowhere."""

import asyncio
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from ops.kms_emulator.emulator import Emulator
from services.rotator.drivers.registry import DriverSettings, open_driver
from services.rotator.drivers.sql import SqlDriverSettings
from shared.keyring.administration import RefusedError, RotateRequest, RotationType, UnreachableError
from shared.keyring.database import Database
from shared.kms.gcp.settings import GcpKeySettings
from shared.sql.database_url import create_sqlite_url
from tests.key_versions import KEY
from tests.rotator.drivers.conftest import Backend, Serve
from tests.stores import each_empty_database

KMS = GcpKeySettings(key=KEY)


def settings(database: URL | str, **overrides: object) -> SqlDriverSettings:
    text = database if isinstance(database, str) else database.render_as_string(hide_password=False)
    return SqlDriverSettings.model_validate({"kind": "sql", "database": text, **overrides})


async def test_a_file_that_is_not_there_is_never_made(tmp_path: Path) -> None:
    file = tmp_path / "typo.db"
    with pytest.raises(RefusedError, match="there is no such file; expected the database of the service"):
        async with open_driver(settings(create_sqlite_url(file)), KMS):
            pytest.fail("it was opened")
    assert not await asyncio.to_thread(file.exists)


@each_empty_database
async def test_a_database_without_a_keyring_is_refused(empty_database: URL) -> None:
    await (await Database.open(empty_database)).close()
    with pytest.raises(RefusedError, match=r"no table data_keys .*; expected the database of the service"):
        async with open_driver(settings(empty_database), KMS):
            pytest.fail("it was opened")


async def test_a_database_that_does_not_answer_may_be_retried() -> None:
    with pytest.raises(UnreachableError, match="expected the database of the service") as raised:
        async with open_driver(settings("postgresql://me:hunter2@127.0.0.1:1/backend"), KMS):
            pytest.fail("it was opened")
    assert "hunter2" not in str(raised.value)


@each_empty_database
async def test_records_that_are_not_there_are_named(backend: Backend) -> None:
    records = {"table": "letters", "data_key_column": "key"}
    with pytest.raises(RefusedError, match=r"no table letters with a column key; correct driver.records"):
        async with backend.connected("sql", records=records):
            pytest.fail("it was opened")


@pytest.mark.parametrize(
    "statement", ["DROP TABLE keyring_schema", "DROP TABLE keyring_local_key", "UPDATE keyring_schema SET version = 99"]
)
@each_empty_database
async def test_a_keyring_of_another_version_is_refused_and_left_as_it_is(backend: Backend, statement: str) -> None:
    await backend.execute(statement)
    with pytest.raises(RefusedError, match="the keyring's tables are of another version; run the rotator in the ver"):
        async with backend.connected("sql"):
            pytest.fail("it was opened")
    if statement.startswith("DROP"):  # it was not created again
        with pytest.raises(DBAPIError):
            await backend.execute(statement)


@each_empty_database
async def test_without_records_none_are_counted(backend: Backend) -> None:
    await backend.put("a", b"x")
    async with backend.connected("sql", records=None) as keyring:
        assert [version.records for version in (await keyring.count_key_usage()).versions] == [0]
    async with backend.connected("sql") as keyring:
        assert [version.records for version in (await keyring.count_key_usage()).versions] == [1]


@each_empty_database
async def test_what_the_local_key_wraps_is_named_and_left_as_it_is(
    serve: Serve, empty_database: URL, emulator: Emulator
) -> None:
    nowhere = {"key": KEY, "endpoint": "127.0.0.1:1", "insecure": True}
    async with serve(empty_database, kms=nowhere) as backend, backend.connected("sql") as keyring:
        (row,) = await keyring.list_backup_rows()
        assert row.kek == "local"
        lease = await keyring.acquire_lease("a test", 60)
        rewrap = RotateRequest(
            rotation_id="r", type=RotationType.REWRAP_KEK, token=lease.token, caller="a test", target_version="1"
        )
        while (progress := await keyring.rotate(rewrap)).state == "running":
            pass
        assert progress.state == "failed"
        assert "local key" in progress.problems[0].error
        assert list(await keyring.list_backup_rows()) == [row]


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        ({"kind": "telnet"}, "'admin_api', 'command', 'sql'"),
        ({"kind": "command", "argv": []}, "at least 1"),
        ({"kind": "command", "argv": [""]}, "at least 1"),
        ({"kind": "command", "argv": ["ssh"], "token_file": "x"}, "Extra inputs"),
        ({"kind": "sql", "database": "mysql://x/y"}, "expected sqlite:///FILE"),
        ({"kind": "sql", "database": "sqlite:////x", "records": {"table": "records"}}, "data_key_column"),
    ],
)
def test_an_error_in_the_settings_is_named(driver: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        TypeAdapter(DriverSettings).validate_python(driver)
