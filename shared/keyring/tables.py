"""The keyring's tables, the same on SQLite and PostgreSQL: data keys, and beside them all that a rotation leaves."""

from typing import Final

from sqlalchemy import Boolean, Column, Index, Integer, MetaData, Table, text

from shared.keyring.columns import Bytes, Id, Seconds, Version, Words

TABLES: Final = MetaData()

data_keys: Final = Table(
    "data_keys",
    TABLES,
    Column("id", Id, primary_key=True),
    Column("status", Words, nullable=False),
    Column("wrapped", Bytes, nullable=False),
    Column("kek", Words, nullable=False),
    Column("kek_version", Version, nullable=False),
    Column("algorithm", Words, nullable=False),
    Column("fingerprint", Bytes, nullable=False),
    Column("created_at", Seconds, nullable=False),
)
_ACTIVE: Final = text("status = 'active'")
# The database itself refuses a second active key.
Index("one_active", data_keys.c.status, unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE)

retired_versions: Final = Table(
    "keyring_retired_versions",
    TABLES,
    Column("kek", Words, primary_key=True),
    Column("kek_version", Version, primary_key=True, autoincrement=False),
    Column("retired_at", Seconds, nullable=False),
)

local_key: Final = Table(
    "keyring_local_key",
    TABLES,
    Column("only", Integer, primary_key=True, autoincrement=False),  # 1: all instances have the same one
    Column("fingerprint", Bytes, nullable=False),
)

given_up: Final = Table(
    "keyring_given_up",  # data keys that only a lost local key unwraps; kept, should it turn up
    TABLES,
    Column("id", Id, primary_key=True),
    Column("wrapped", Bytes, nullable=False),
    Column("kek", Words, nullable=False),
    Column("kek_version", Version, nullable=False),
    Column("algorithm", Words, nullable=False),
    Column("fingerprint", Bytes, nullable=False),
    Column("created_at", Seconds, nullable=False),
    Column("given_up_at", Seconds, nullable=False),
)

lease: Final = Table(
    "keyring_lease",
    TABLES,
    Column("only", Integer, primary_key=True, autoincrement=False),  # 1: there is one lease
    Column("holder", Words, nullable=False),
    Column("token", Bytes, nullable=False),  # its SHA-256: a copy of the database gives nobody the lease
    Column("expires_at", Seconds, nullable=False),
)

rotations: Final = Table(
    "keyring_rotations",
    TABLES,
    Column("number", Integer, primary_key=True),  # in the order in which they began, whatever the clock did
    Column("id", Words, nullable=False, unique=True),
    Column("type", Words, nullable=False),
    Column("state", Words, nullable=False),
    Column("rolling_back", Boolean, nullable=False),
    Column("target_version", Version),
    Column("caller", Words, nullable=False),
    Column("started_at", Seconds, nullable=False),
    Column("updated_at", Seconds, nullable=False),
    Column("total", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("cursor", Id, nullable=False),  # rewrap-kek: the last data key that was looked at in this pass
    Column("added", Words),  # new-dek: the new data key
    Column("former", Words),  # new-dek: the one that was active before it
)

entries: Final = Table(
    "keyring_journal",
    TABLES,
    Column("number", Integer, primary_key=True),
    Column("rotation", Integer, nullable=False),
    Column("data_key_id", Words, nullable=False),
    Column("old_wrapped", Bytes, nullable=False),
    Column("old_kek", Words, nullable=False),
    Column("old_kek_version", Version, nullable=False),
    Column("new_wrapped", Bytes, nullable=False),
    Column("new_kek", Words, nullable=False),
    Column("new_kek_version", Version, nullable=False),
    Column("outcome", Words, nullable=False),  # `done`; after a rollback `undone`, or `kept` where that was impossible
)
Index("keyring_journal_of_rotation", entries.c.rotation, entries.c.number)

problems: Final = Table(
    "keyring_problems",
    TABLES,
    Column("rotation", Integer, primary_key=True, autoincrement=False),
    Column("data_key_id", Id, primary_key=True),
    Column("why", Words, nullable=False),
    Column("is_foreign", Boolean, nullable=False),
)

notes: Final = Table(
    "keyring_notes",
    TABLES,
    Column("number", Integer, primary_key=True),
    Column("rotation_id", Words, nullable=False, index=True),  # may come before the rotation itself
    Column("step", Words, nullable=False),
    Column("noted_at", Seconds, nullable=False),
)

instances: Final = Table(
    "keyring_instances",
    TABLES,
    Column("id", Words, primary_key=True),
    Column("beat_at", Seconds, nullable=False),
    Column("interval", Seconds, nullable=False),
    Column("holds", Words, nullable=False),  # ids of the pending data keys that it has unwrapped, with spaces between
)
