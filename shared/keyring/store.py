"""The keyring's table. Every change names what it expects to find, so that two runners never undo each other.

A change that finds something else does nothing and says so (compare-and-swap); its caller reads again and decides anew.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Column, Connection, Float, Index, Integer, LargeBinary, MetaData, Row, String, Table, text
from sqlalchemy.exc import IntegrityError

from shared.keyring.database import Database
from shared.keyring.model import DataKey, Status, Wrapped

TABLES: Final = MetaData()
_keys: Final = Table(
    "data_keys",
    TABLES,
    Column("id", String, primary_key=True),
    Column("status", String, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("kek", String, nullable=False),
    Column("kek_version", Integer, nullable=False),
    Column("proof", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),  # unix seconds
)
# The database itself refuses a second active key.
Index("one_active", _keys.c.status, unique=True, sqlite_where=text("status = 'active'"))


class KeyStore:
    """The data keys in `database`. Every method raises DatabaseError where that cannot be read or written."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> tuple[DataKey, ...]:
        """Every data key, oldest first."""

        def select(connection: Connection) -> tuple[DataKey, ...]:
            rows = connection.execute(_keys.select().order_by(_keys.c.created_at, _keys.c.id))
            return tuple(_data_key(row) for row in rows)

        return await self._database.read(select)

    async def activate(self, new: DataKey, *, instead_of: DataKey | None) -> bool:
        """Stores `new` as the active key, and retires the one that was active, in one step.

        Args:
            new: a key that is not stored yet; its own status does not matter.
            instead_of: the key that is expected to be active, or None where none is.

        Returns:
            False, and nothing is changed, where another key is active.
        """
        new = replace(new, status=Status.ACTIVE)

        def swap(connection: Connection) -> bool:
            if instead_of is not None:
                expected = (_keys.c.id == instead_of.id) & (_keys.c.status == Status.ACTIVE)
                retired = connection.execute(_keys.update().where(expected).values(status=Status.RETIRED.value))
                if retired.rowcount == 0:
                    return False
            connection.execute(_keys.insert().values(**_columns(new)))
            return True

        try:
            return await self._database.write(swap)
        except IntegrityError:
            return False

    async def rewrap(self, key: DataKey, wrapped: Wrapped) -> bool:
        """Replaces the wrapped form of `key`; False, and nothing is changed, where it is no longer the one in `key`."""

        def swap(connection: Connection) -> bool:
            expected = (_keys.c.id == key.id) & (_keys.c.wrapped == key.wrapped.ciphertext)
            changed = connection.execute(_keys.update().where(expected).values(**_wrapped_columns(wrapped)))
            return changed.rowcount == 1

        return await self._database.write(swap)


def _columns(key: DataKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "status": key.status.value,
        "proof": key.proof,
        "created_at": key.created_at.timestamp(),
        **_wrapped_columns(key.wrapped),
    }


def _wrapped_columns(wrapped: Wrapped) -> dict[str, Any]:
    return {"wrapped": wrapped.ciphertext, "kek": wrapped.kek, "kek_version": wrapped.kek_version}


def _data_key(row: Row[Any]) -> DataKey:
    return DataKey(
        id=row.id,
        status=Status(row.status),
        wrapped=Wrapped(row.wrapped, row.kek, row.kek_version),
        proof=row.proof,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
    )
