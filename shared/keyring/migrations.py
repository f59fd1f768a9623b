"""Brings the tables of an older keypulse up to date: steps in their order, each once, under the keyring's lock.

The table `keyring_schema` has the number of steps that were done. Tables that are missing are created by `Database`.
"""

import json
from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, Integer, Table, inspect, select, text

from shared.hinted_error import HintedError
from shared.keyring.column_types import LenientVersion, to_printable_text
from shared.keyring.journal.entries import to_columns
from shared.keyring.journal.legacy_text import parse_legacy_text
from shared.keyring.model import UNREADABLE_VERSION
from shared.keyring.rows import SchemaRow, fetch_first, select_rows
from shared.keyring.tables import TABLES, data_keys, journal_entries, rewraps, schema

_TABLES_BEFORE_1: Final = {
    "keyring_notes": "keyring_journal_entries",
    "keyring_journal": "keyring_rewraps",
    "keyring_given_up": "keyring_abandoned_keys",
}
_COLUMNS_BEFORE_1: Final = (
    ("keyring_abandoned_keys", "given_up_at", "abandoned_at"),
    ("keyring_journal_entries", "noted_at", "created_at"),
    ("keyring_rotations", "added", "new_data_key"),
    ("keyring_rotations", "former", "former_data_key"),
    ("keyring_rotations", "rolling_back", "is_rolling_back"),
    ("keyring_problems", "why", "error"),
    ("keyring_instances", "beat_at", "last_seen_at"),
    ("keyring_instances", "holds", "unwrapped_keys"),
    ("keyring_lease", "only", "singleton"),
    ("keyring_local_key", "only", "singleton"),
)
_MAX_NUMBER: Final = 2**31 - 1
"""Of a version, while versions were numbers."""
_INDEXES_BEFORE_1: Final = ("keyring_journal_of_rotation", "ix_keyring_notes_rotation_id")


class NewerKeyringSchemaError(HintedError):
    """A newer keypulse made these tables."""


def read_version(connection: Connection) -> int:
    """How many steps were done; 0 of tables that are older than this count."""
    if not inspect(connection).has_table(schema.name):
        return 0
    row = fetch_first(connection, select_rows(schema, SchemaRow), SchemaRow)
    return row.version if row else 0


def is_current(connection: Connection) -> bool:
    """Whether no step is left, and every table is there."""
    existing = set(inspect(connection).get_table_names())
    return existing.issuperset(TABLES.tables) and read_version(connection) == VERSION


def check_version(connection: Connection) -> int:
    """Return the version of the tables. Raises NewerKeyringSchemaError."""
    done = read_version(connection)
    if done > VERSION:
        raise NewerKeyringSchemaError(
            f"its keyring is of version {done}, and this keypulse knows versions up to {VERSION}", "start a newer one"
        )
    return done


def migrate(connection: Connection) -> None:
    """Runs the pending migrations; the caller holds the keyring's lock. Raises NewerKeyringSchemaError."""
    done = check_version(connection)
    if done == VERSION:
        return
    if _has_table(connection, data_keys.name):  # else the database is new
        for step in _STEPS[done:]:
            step(connection)
    schema.create(connection, checkfirst=True)
    connection.execute(schema.delete())
    connection.execute(schema.insert().values(singleton=1, version=VERSION))


def _rename(connection: Connection) -> None:
    """Tables and columns get the names that the API has."""
    for old, new in _TABLES_BEFORE_1.items():
        if _has_table(connection, old) and not _has_table(connection, new):
            connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
    for table_name, old, new in _COLUMNS_BEFORE_1:
        if old in _list_columns(connection, table_name):
            connection.execute(text(f'ALTER TABLE {table_name} RENAME COLUMN "{old}" TO {new}'))
    for name in _INDEXES_BEFORE_1:
        connection.execute(text(f"DROP INDEX IF EXISTS {name}"))
    for table in (rewraps, journal_entries):
        for index in table.indexes if _has_table(connection, table.name) else ():
            index.create(connection, checkfirst=True)


def _split_journal_text(connection: Connection) -> None:
    """What one text said is in columns; a text that cannot be read stays, as an entry that blocks."""
    columns = _list_columns(connection, journal_entries.name)
    if not columns or "outcome" in columns:
        return
    connection.execute(
        text(f"ALTER TABLE {journal_entries.name} ADD COLUMN outcome VARCHAR NOT NULL DEFAULT 'unreadable'")
    )
    for column in ("rotation_type", "backup_name", "sha256", "needs"):
        connection.execute(text(f"ALTER TABLE {journal_entries.name} ADD COLUMN {column} VARCHAR"))
    connection.execute(text(f"ALTER TABLE {journal_entries.name} ADD COLUMN detail VARCHAR NOT NULL DEFAULT ''"))
    number, step = journal_entries.c.number, journal_entries.c.step
    for row in connection.execute(select(number, step)).all():
        entry = parse_legacy_text(to_printable_text(row.step))
        connection.execute(journal_entries.update().where(number == row.number).values(to_columns(entry)))


def _name_versions_by_text(connection: Connection) -> None:
    """Versions of KMS keys were numbers; one that could not be read was none from 0 to 2147483647."""
    is_sqlite = connection.dialect.name == "sqlite"
    for table in TABLES.tables.values():
        versions = [column.name for column in table.c if isinstance(column.type, LenientVersion)]
        if not versions or not _has_table(connection, table.name):
            continue
        types = {column["name"]: column["type"] for column in inspect(connection).get_columns(table.name)}
        if not isinstance(types.get(versions[0]), Integer):
            continue
        if is_sqlite:
            _rebuild_with_text_versions(connection, table, versions)
        else:
            for name in versions:
                value = f"CASE WHEN {name} BETWEEN 0 AND {_MAX_NUMBER} THEN {name}::text ELSE '' END"
                new = f"CASE WHEN {name} IS NULL THEN NULL ELSE {value} END"
                connection.execute(text(f"ALTER TABLE {table.name} ALTER COLUMN {name} TYPE VARCHAR USING {new}"))
    if not _has_table(connection, journal_entries.name):
        return
    number, needs = journal_entries.c.number, journal_entries.c.needs
    for row in connection.execute(select(number, needs).where(needs.is_not(None))).all():
        if named := _name_needs_by_text(row.needs):
            connection.execute(journal_entries.update().where(number == row.number).values(needs=named))


def _rebuild_with_text_versions(connection: Connection, table: Table, versions: list[str]) -> None:
    """SQLite cannot change the type of a column: the rows move into a new table."""
    columns = [column["name"] for column in inspect(connection).get_columns(table.name)]
    for index in inspect(connection).get_indexes(table.name):
        connection.execute(text(f'DROP INDEX IF EXISTS "{index["name"]}"'))
    old = f"{table.name}_before_3"
    connection.execute(text(f"ALTER TABLE {table.name} RENAME TO {old}"))
    table.create(connection)
    values = ", ".join(
        f"CASE WHEN {name} IS NULL THEN NULL WHEN typeof({name}) = 'integer' AND {name} BETWEEN 0 AND {_MAX_NUMBER} "
        f"THEN CAST({name} AS TEXT) ELSE '' END"
        if name in versions
        else f'"{name}"'
        for name in columns
    )
    names = ", ".join(f'"{name}"' for name in columns)
    connection.execute(text(f"INSERT INTO {table.name} ({names}) SELECT {values} FROM {old}"))  # noqa: S608  own names
    connection.execute(text(f"DROP TABLE {old}"))


def _name_needs_by_text(needs: str) -> str | None:
    """The versions that a backup needs, as texts; None if they are no list of numbers."""
    try:
        numbers = json.loads(needs)
    except ValueError:
        return None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        return None
    return json.dumps([UNREADABLE_VERSION if number < 0 else str(number) for number in numbers])


def _has_table(connection: Connection, name: str) -> bool:
    return inspect(connection).has_table(name)


def _list_columns(connection: Connection, table: str) -> set[str]:
    found = inspect(connection)
    return {column["name"] for column in found.get_columns(table)} if found.has_table(table) else set()


_STEPS: Final[tuple[Callable[[Connection], None], ...]] = (
    _rename,
    _split_journal_text,
    _name_versions_by_text,
)
VERSION: Final = len(_STEPS)
"""Of the tables that this keypulse reads and writes."""
