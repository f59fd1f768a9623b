"""The keyring's tables, the same on SQLite and PostgreSQL: data keys, and all that a rotation writes."""

from typing import Final

from sqlalchemy import Boolean, Column, Index, Integer, MetaData, Table, text

from shared.keyring.column_types import Id, LenientBytes, LenientText, LenientTimestamp, LenientVersion

TABLES: Final = MetaData()
VERSION: Final = 1
"""Of these tables; a service of another version refuses them."""

schema: Final = Table(
    "keyring_schema",
    TABLES,
    Column("singleton", Integer, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("version", Integer, nullable=False),
)

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
    Column("singleton", Integer, primary_key=True, autoincrement=False),  # 1: all instances have the same one
    Column("fingerprint", LenientBytes, nullable=False),
)

abandoned_data_keys: Final = Table(
    "keyring_abandoned_keys",  # data keys that only a lost local key unwraps; stored in case it is found
    TABLES,
    Column("id", Id, primary_key=True),
    Column("wrapped", LenientBytes, nullable=False),
    Column("kek", LenientText, nullable=False),
    Column("kek_version", LenientVersion, nullable=False),
    Column("algorithm", LenientText, nullable=False),
    Column("fingerprint", LenientBytes, nullable=False),
    Column("created_at", LenientTimestamp, nullable=False),
    Column("abandoned_at", LenientTimestamp, nullable=False),
)

rotation_lease: Final = Table(
    "keyring_lease",
    TABLES,
    Column("singleton", Integer, primary_key=True, autoincrement=False),  # 1: there is one lease
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
    Column("is_rolling_back", Boolean, nullable=False),
    Column("target_version", LenientVersion),
    Column("caller", LenientText, nullable=False),
    Column("started_at", LenientTimestamp, nullable=False),
    Column("updated_at", LenientTimestamp, nullable=False),
    Column("total", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("cursor", Id, nullable=False),  # rewrap-kek: the last data key that this pass has read
    Column("new_data_key", LenientText),  # new-dek: the new data key
    Column("former_data_key", LenientText),  # new-dek: the one that was active before it
)

rewraps: Final = Table(
    "keyring_rewraps",
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
    ),  # `done`; after a rollback `undone`, `kept` where that failed; `restored`
)
Index("keyring_rewraps_by_rotation", rewraps.c.rotation, rewraps.c.number)

problems: Final = Table(
    "keyring_problems",
    TABLES,
    Column("rotation", Integer, primary_key=True, autoincrement=False),
    Column("data_key_id", Id, primary_key=True),
    Column("error", LenientText, nullable=False),
    Column("is_foreign", Boolean, nullable=False),
)

journal_entries: Final = Table(
    "keyring_journal_entries",
    TABLES,
    Column("number", Integer, primary_key=True),
    Column("rotation_id", LenientText, nullable=False, index=True),  # may come before the rotation itself
    Column("step", LenientText, nullable=False),
    Column("outcome", LenientText, nullable=False, server_default="unreadable"),
    Column("rotation_type", LenientText),
    Column("backup_name", LenientText),  # of a backup that was made, as are the next two
    Column("sha256", LenientText),
    Column("needs", LenientText),  # JSON, the versions of the KMS key that the backup needs; NULL: it may need any
    Column("detail", LenientText, nullable=False, server_default=""),  # for a person
    Column("created_at", LenientTimestamp, nullable=False),
)

instances: Final = Table(
    "keyring_instances",
    TABLES,
    Column("id", LenientText, primary_key=True),
    Column("last_seen_at", LenientTimestamp, nullable=False),
    Column("interval", LenientTimestamp, nullable=False),
    Column("unwrapped_keys", LenientText, nullable=False),  # ids of pending data keys, with spaces between
)
