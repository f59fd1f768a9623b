"""A database of keypulse 0.1 before its tables were renamed: everything is there afterwards, whatever stood in it."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import URL, Connection, create_engine, inspect, text

from shared.keyring import migrations
from shared.keyring.administration import JournalBackup, JournalStep, RotationType, StepOutcome
from shared.keyring.database import Database, DatabaseError
from shared.keyring.journal.entries import find_unreadable_entries, list_backups
from shared.keyring.journal.metrics import read_keyring_metrics
from shared.keyring.journal.progress import read_progress
from shared.keyring.store import list_data_keys, list_retired_versions
from shared.keyring.tables import TABLES
from shared.kms.gcp.client import GcpKmsKey
from tests.shared.keyring.keyring import NEW_DEK, opened

BEFORE = """
CREATE TABLE data_keys (id VARCHAR NOT NULL, status VARCHAR NOT NULL, wrapped BLOB NOT NULL, kek VARCHAR NOT NULL,
    kek_version INTEGER NOT NULL, algorithm VARCHAR NOT NULL, fingerprint BLOB NOT NULL, created_at FLOAT NOT NULL,
    PRIMARY KEY (id));
CREATE UNIQUE INDEX one_active ON data_keys (status) WHERE status = 'active';
CREATE TABLE keyring_retired_versions (kek VARCHAR NOT NULL, kek_version INTEGER NOT NULL, retired_at FLOAT NOT NULL,
    PRIMARY KEY (kek, kek_version));
CREATE TABLE keyring_local_key ("only" INTEGER NOT NULL, fingerprint BLOB NOT NULL, PRIMARY KEY ("only"));
CREATE TABLE keyring_given_up (id VARCHAR NOT NULL, wrapped BLOB NOT NULL, kek VARCHAR NOT NULL,
    kek_version INTEGER NOT NULL, algorithm VARCHAR NOT NULL, fingerprint BLOB NOT NULL, created_at FLOAT NOT NULL,
    given_up_at FLOAT NOT NULL, PRIMARY KEY (id));
CREATE TABLE keyring_lease ("only" INTEGER NOT NULL, holder VARCHAR NOT NULL, token BLOB NOT NULL,
    expires_at FLOAT NOT NULL, PRIMARY KEY ("only"));
CREATE TABLE keyring_rotations (number SERIAL NOT NULL, id VARCHAR NOT NULL, type VARCHAR NOT NULL,
    state VARCHAR NOT NULL, rolling_back BOOLEAN NOT NULL, target_version INTEGER, caller VARCHAR NOT NULL,
    started_at FLOAT NOT NULL, updated_at FLOAT NOT NULL, total INTEGER NOT NULL, done INTEGER NOT NULL,
    cursor VARCHAR NOT NULL, added VARCHAR, former VARCHAR, PRIMARY KEY (number), UNIQUE (id));
CREATE TABLE keyring_journal (number SERIAL NOT NULL, rotation INTEGER NOT NULL, data_key_id VARCHAR NOT NULL,
    old_wrapped BLOB NOT NULL, old_kek VARCHAR NOT NULL, old_kek_version INTEGER NOT NULL, new_wrapped BLOB NOT NULL,
    new_kek VARCHAR NOT NULL, new_kek_version INTEGER NOT NULL, outcome VARCHAR NOT NULL, PRIMARY KEY (number));
CREATE INDEX keyring_journal_of_rotation ON keyring_journal (rotation, number);
CREATE TABLE keyring_problems (rotation INTEGER NOT NULL, data_key_id VARCHAR NOT NULL, why VARCHAR NOT NULL,
    is_foreign BOOLEAN NOT NULL, PRIMARY KEY (rotation, data_key_id));
CREATE TABLE keyring_notes (number SERIAL NOT NULL, rotation_id VARCHAR NOT NULL, step VARCHAR NOT NULL,
    noted_at FLOAT NOT NULL, PRIMARY KEY (number));
CREATE INDEX ix_keyring_notes_rotation_id ON keyring_notes (rotation_id);
CREATE TABLE keyring_instances (id VARCHAR NOT NULL, beat_at FLOAT NOT NULL, interval FLOAT NOT NULL,
    holds VARCHAR NOT NULL, PRIMARY KEY (id));
INSERT INTO keyring_rotations (id, type, state, rolling_back, target_version, caller, started_at, updated_at, total,
    done, cursor, added, former) VALUES ('r1', 'rewrap-kek', 'done', false, 2, 'me', 10, 20, 2, 2, '', 'k1', 'k0');
INSERT INTO keyring_problems VALUES (1, 'k9', 'it is wrapped by another key', true);
INSERT INTO keyring_instances VALUES ('i', 5, 10, 'k1 k2');
"""
ENTRIES = (
    "smoke a round trip is right",
    "backup a.backup 0123 needs 1,2",
    "backup old.backup 4567",
    "rotate 2 of 2, done",
    "failed verify: problems: 1",
    "verify all is well",
)


def _create(url: URL, *entries: str) -> None:
    engine = create_engine(url)
    is_sqlite = url.drivername == "sqlite"
    tables = BEFORE.replace("SERIAL NOT NULL", "INTEGER NOT NULL") if is_sqlite else BEFORE.replace("BLOB", "BYTEA")
    with engine.begin() as connection:
        for statement in tables.split(";\n"):
            if statement.strip():
                connection.execute(text(statement))
        add = text("INSERT INTO keyring_notes (rotation_id, step, noted_at) VALUES ('r1', :step, 30)")
        for entry in entries:
            connection.execute(add, {"step": entry})
    engine.dispose()


async def _migrate(url: URL, *entries: str) -> Database:
    await asyncio.to_thread(_create, url, *entries)
    return await Database.open(url, TABLES)


async def test_everything_is_read_as_before_and_the_journals_text_is_in_columns(url: URL) -> None:
    database = await _migrate(url, *ENTRIES)
    try:
        found = await database.read(lambda connection: read_progress(connection, None))
        assert found
        assert [(entry.step, entry.outcome) for entry in found.journal] == [
            (JournalStep.SMOKE, StepOutcome.SUCCEEDED),
            (JournalStep.BACKUP, StepOutcome.SUCCEEDED),
            (JournalStep.BACKUP, StepOutcome.SUCCEEDED),
            (JournalStep.ROTATE, StepOutcome.SUCCEEDED),
            (JournalStep.VERIFY, StepOutcome.PROBLEMS),
            (JournalStep.VERIFY, StepOutcome.SUCCEEDED),
        ]
        assert {entry.created_at and entry.created_at.timestamp() for entry in found.journal} == {30.0}
        assert [(each.id, each.error, each.is_foreign) for each in found.problems] == [
            ("k9", "it is wrapped by another key", True)
        ]
        assert await database.read(list_backups) == (
            JournalBackup(name="a.backup", sha256="0123", needs=("1", "2")),
            JournalBackup(name="old.backup", sha256="4567", needs=None),  # may need any, as before
        )
        assert await database.read(find_unreadable_entries) == ()
        metrics = await database.read(read_keyring_metrics)
        assert metrics.last_success == {RotationType.REWRAP_KEK: 30.0}
        assert (metrics.failures_by_step["verify"], metrics.is_in_progress) == (1, False)
    finally:
        await database.close()


async def test_versions_that_were_numbers_are_texts_and_what_was_none_is_unreadable(url: URL) -> None:
    rows = [("a", 3), ("b", -7), ("c", 0)]
    await asyncio.to_thread(_create, url, *ENTRIES)
    engine = create_engine(url)
    with engine.begin() as connection:
        for name, number in rows:
            of_key = f"('{name}', 'retired', :bytes, 'k', {number}, 'AES', :bytes, 1)"
            connection.execute(text(f"INSERT INTO data_keys VALUES {of_key}"), {"bytes": b"x"})  # noqa: S608
        connection.execute(text("INSERT INTO keyring_retired_versions VALUES ('k', 2, 5), ('k', 11, 6)"))
        rewrap = "INSERT INTO keyring_journal VALUES (1, 1, 'a', :bytes, 'k', 2, :bytes, 'k', 3, 'done')"
        connection.execute(text(rewrap), {"bytes": b"x"})
    engine.dispose()
    database = await Database.open(url, TABLES)
    try:
        keys = await database.read(lambda connection: list_data_keys(connection, "", 10))
        assert [(key.id, key.wrapped.kek_version) for key in keys] == [("a", "3"), ("b", ""), ("c", "0")]
        assert await database.read(lambda it: list_retired_versions(it, "k")) == {"2": 5.0, "11": 6.0}
        found = await database.read(lambda connection: read_progress(connection, None))
        assert found
        assert found.target_version == "2"
        moved = text("SELECT old_kek_version, new_kek_version FROM keyring_rewraps")
        assert [tuple(row) for row in await database.read(lambda it: it.execute(moved).all())] == [("2", "3")]
        indexes = await database.read(lambda it: {each["name"] for each in inspect(it).get_indexes("data_keys")})
        assert "one_active" in indexes
        left = await database.read(lambda it: [name for name in inspect(it).get_table_names() if "before" in name])
        assert left == []
    finally:
        await database.close()
    await (await Database.open(url, TABLES)).close()  # a second time nothing is left to do


async def test_a_text_that_cannot_be_read_is_never_dropped(url: URL) -> None:
    unread = ("backup x.backup", "by hand", "failed frobnicate: x", "nothing to do: at all", "backup y 1 needs one")
    database = await _migrate(url, *ENTRIES, *unread)
    try:
        assert await database.read(find_unreadable_entries) == (7, 8, 9, 10, 11)
        found = await database.read(lambda connection: read_progress(connection, "r1"))
        assert found
        assert [entry.detail for entry in found.journal[6:]] == list(unread)
        assert {entry.outcome for entry in found.journal[6:]} == {StepOutcome.UNREADABLE}
        assert len(await database.read(list_backups)) == 2
        assert (await database.read(read_keyring_metrics)).failures_by_step["other"] == 1
    finally:
        await database.close()


async def test_no_old_name_is_left_and_the_tables_are_those_of_a_new_database(url: URL) -> None:
    def describe(connection: Connection) -> dict[str, set[str]]:
        found = inspect(connection)
        return {name: {column["name"] for column in found.get_columns(name)} for name in found.get_table_names()}

    database = await _migrate(url, *ENTRIES)
    try:
        expected = {name: {column.name for column in table.columns} for name, table in TABLES.tables.items()}
        assert await database.read(describe) == expected
        indexes = await database.read(
            lambda connection: {
                str(index["name"])
                for table in ("keyring_rewraps", "keyring_journal_entries")
                for index in inspect(connection).get_indexes(table)
            }
        )
        assert indexes == {"keyring_rewraps_by_rotation", "ix_keyring_journal_entries_rotation_id"}
    finally:
        await database.close()


async def test_a_rotation_goes_on_where_the_old_version_left_it(url: URL, kms: GcpKmsKey) -> None:
    await (await _migrate(url, *ENTRIES)).close()
    async with opened(url, kms) as keyring:
        await keyring.take_lease()
        done = await keyring.rotate(NEW_DEK, "r2")
        assert (done.state, len(await keyring.keys())) == ("done", 1)
        assert (await keyring.administration.rollback("r2", keyring.token)).state == "rolled_back"


async def test_each_step_is_done_once_and_two_that_start_at_the_same_time_do_it_one_after_the_other(url: URL) -> None:
    await asyncio.to_thread(_create, url, *ENTRIES)
    both = await asyncio.gather(Database.open(url, TABLES), Database.open(url, TABLES))
    third = await Database.open(url, TABLES)
    try:
        assert await third.read(migrations.read_version) == migrations.VERSION
        assert len(await third.read(list_backups)) == 2
        assert await third.is_keyring_current()
    finally:
        for database in (*both, third):
            await database.close()


async def test_a_new_database_is_of_the_latest_version(url: URL) -> None:
    database = await Database.open(url, TABLES)
    try:
        assert await database.read(migrations.read_version) == migrations.VERSION
        assert await database.is_keyring_current()
    finally:
        await database.close()


async def test_a_migration_that_fails_leaves_everything_as_it_was(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_text: str) -> None:
        raise OSError("the disk is full")

    await asyncio.to_thread(_create, url, *ENTRIES)
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "parse_legacy_text", fail)
        with pytest.raises(OSError, match="disk is full"):
            await Database.open(url, TABLES)
    database = await Database.open(url, TABLES)
    try:
        assert len(await database.read(list_backups)) == 2
    finally:
        await database.close()


async def test_tables_of_a_newer_keypulse_are_left_alone(url: URL) -> None:
    database = await Database.open(url, TABLES)
    newer = text("UPDATE keyring_schema SET version = 99")
    await database.write(lambda connection: connection.execute(newer))
    await database.close()
    with pytest.raises(DatabaseError, match="its keyring is of version 99, and this keypulse knows versions up to 3"):
        await Database.open(url, TABLES)


async def test_an_old_text_that_is_not_utf8_is_unreadable(tmp_path: Path) -> None:
    url = URL.create("sqlite", database=str(tmp_path / "keyring.db"))
    await asyncio.to_thread(_create, url, "verify all is well")

    def spoil() -> None:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("UPDATE keyring_notes SET step = CAST(X'6261636b7570ff' AS TEXT)"))
        engine.dispose()

    await asyncio.to_thread(spoil)
    database = await Database.open(url, TABLES)
    try:
        assert await database.read(find_unreadable_entries) == (1,)
    finally:
        await database.close()
