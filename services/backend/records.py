"""The records: an id, a data key and bytes go in, sealed rows come out.

The additional authenticated data binds a record to its id and to its data key, so that a row which is copied over
another one does not open.
"""

from typing import Final

from sqlalchemy import Column, Connection, Index, LargeBinary, MetaData, Table
from sqlalchemy.dialects import postgresql, sqlite

from services.backend.sealing import SealBrokenError, UsableKey, seal, unseal
from shared.keyring.columns import Id
from shared.keyring.database import Database
from shared.keyring.records import Record, RecordsTable

TABLES: Final = MetaData()
_records: Final = Table(
    "records",
    TABLES,
    Column("id", Id, primary_key=True),
    Column("data_key_id", Id, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
# What a rotation counts, and pages through.
Index("records_of_data_key", _records.c.data_key_id, _records.c.id)


class CorruptRecordError(ValueError):
    """The record was changed since it was stored, or is not the one that was stored under this id."""


class Records:
    """The records in `database`. Both methods raise DatabaseError where that cannot be read or written."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, record_id: str, plaintext: bytes, key: UsableKey) -> None:
        """Encrypts and stores, over what was there under this id; it is on the disk when this returns."""

        def upsert(connection: Connection) -> None:
            sealed = seal(key.secret, plaintext, _aad(record_id, key.id))
            row = {"data_key_id": key.id, "sealed": sealed}
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            statement = dialect.insert(_records).values(id=record_id, **row)
            connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=row))

        await self._database.write(upsert)

    async def find(self, record_id: str) -> Record | None:
        """The record as it is stored, or None."""

        def select(connection: Connection) -> Record | None:
            row = connection.execute(_records.select().where(_records.c.id == record_id)).one_or_none()
            return Record(row.id, row.data_key_id, row.sealed) if row else None

        return await self._database.read(select)


def decrypt(record: Record, key: UsableKey) -> bytes:
    """What was put. Raises CorruptRecordError."""
    try:
        return unseal(key.secret, record.sealed, _aad(record.id, record.data_key_id))
    except SealBrokenError:
        raise CorruptRecordError from None


def _open(record: Record, secret: bytes) -> bytes:
    return decrypt(record, UsableKey(record.data_key_id, secret))


RECORDS: Final = RecordsTable("records", "data_key_id", opening=_open)
"""As a rotation looks at them."""


def _aad(record_id: str, data_key_id: str) -> bytes:
    return b"keypulse record\0" + record_id.encode() + b"\0" + data_key_id.encode()
