"""The keyring's tables, the same on SQLite and PostgreSQL: data keys, and beside them all that a rotation leaves."""

from typing import Final

from sqlalchemy import Boolean, Column, Index, Integer, MetaData, Table, text

from shared.keyring.column_types import Id, LenientBytes, LenientText, LenientTimestamp, LenientVersion

TABLES: Final = MetaData()

data_keys: Final = Table(
    "data_keys",
    TABLES,
    Column("id", Id, primary_key=True),
    Column("status", LenientText, nullable=False),
    Column("wrapped", LenientBytes, nullable=False),
    Column("kek", LenientText, nullable=False),
    Column("kek_version", LenientVersion, nullable=False),
    Column("algorithm", LenientText, nullable=False),
    Column("fingerprint", LenientBytes, nullable=False),
    Column("created_at", LenientTimestamp, nullable=False),
)
_ACTIVE: Final = text("status = 'active'")
# The database itself refuses a second active key.
Index("one_active", data_keys.c.status, unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE)

retired_versions: Final = Table(
    "keyring_retired_versions",
    TABLES,
    Column("kek", LenientText, primary_key=True),
    Column("kek_version", LenientVersion, primary_key=True, autoincrement=False),
    Column("retired_at", LenientTimestamp, nullable=False),
)

local_key: Final = Table(
    "keyring_local_key",
    TABLES,
    Column("only", Integer, primary_key=True, autoincrement=False),  # 1: all instances have the same one
    Column("fingerprint", LenientBytes, nullable=False),
)

abandoned_data_keys: Final = Table(
    "keyring_given_up",  # data keys that only a lost local key unwraps; kept, should it turn up
    TABLES,
    Column("id", Id, primary_key=True),
    Column("wrapped", LenientBytes, nullable=False),
    Column("kek", LenientText, nullable=False),
    Column("kek_version", LenientVersion, nullable=False),
    Column("algorithm", LenientText, nullable=False),
    Column("fingerprint", LenientBytes, nullable=False),
    Column("created_at", LenientTimestamp, nullable=False),
    Column("given_up_at", LenientTimestamp, nullable=False),
)

rotation_lease: Final = Table(
    "keyring_lease",
    TABLES,
    Column("only", Integer, primary_key=True, autoincrement=False),  # 1: there is one lease
    Column("holder", LenientText, nullable=False),
    Column("token", LenientBytes, nullable=False),  # its SHA-256: a copy of the database gives nobody the lease
    Column("expires_at", LenientTimestamp, nullable=False),
)

rotations: Final = Table(
    "keyring_rotations",
    TABLES,
    Column("number", Integer, primary_key=True),  # in the order in which they began, whatever the clock did
    Column("id", LenientText, nullable=False, unique=True),
    Column("type", LenientText, nullable=False),
    Column("state", LenientText, nullable=False),
    Column("rolling_back", Boolean, nullable=False),
    Column("target_version", LenientVersion),
    Column("caller", LenientText, nullable=False),
    Column("started_at", LenientTimestamp, nullable=False),
    Column("updated_at", LenientTimestamp, nullable=False),
    Column("total", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("cursor", Id, nullable=False),  # rewrap-kek: the last data key that was looked at in this pass
    Column("added", LenientText),  # new-dek: the new data key
    Column("former", LenientText),  # new-dek: the one that was active before it
)

rewraps: Final = Table(
    "keyring_journal",
    TABLES,
    Column("number", Integer, primary_key=True),
    Column("rotation", Integer, nullable=False),
    Column("data_key_id", LenientText, nullable=False),
    Column("old_wrapped", LenientBytes, nullable=False),
    Column("old_kek", LenientText, nullable=False),
    Column("old_kek_version", LenientVersion, nullable=False),
    Column("new_wrapped", LenientBytes, nullable=False),
    Column("new_kek", LenientText, nullable=False),
    Column("new_kek_version", LenientVersion, nullable=False),
    Column(
        "outcome", LenientText, nullable=False
    ),  # `done`; after a rollback `undone`, or `kept` where that was impossible
)
Index("keyring_journal_of_rotation", rewraps.c.rotation, rewraps.c.number)

problems: Final = Table(
    "keyring_problems",
    TABLES,
    Column("rotation", Integer, primary_key=True, autoincrement=False),
    Column("data_key_id", Id, primary_key=True),
    Column("why", LenientText, nullable=False),
    Column("is_foreign", Boolean, nullable=False),
)

journal_entries: Final = Table(
    "keyring_notes",
    TABLES,
    Column("number", Integer, primary_key=True),
    Column("rotation_id", LenientText, nullable=False, index=True),  # may come before the rotation itself
    Column("step", LenientText, nullable=False),
    Column("noted_at", LenientTimestamp, nullable=False),
)

instances: Final = Table(
    "keyring_instances",
    TABLES,
    Column("id", LenientText, primary_key=True),
    Column("beat_at", LenientTimestamp, nullable=False),
    Column("interval", LenientTimestamp, nullable=False),
    Column(
        "holds", LenientText, nullable=False
    ),  # ids of the pending data keys that it has unwrapped, with spaces between
)
