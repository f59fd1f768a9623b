"""The check of the outbox's database, for the command `doctor`."""

import asyncio
from pathlib import Path

from sqlalchemy import Connection

from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.lost_outbox import describe_lost_outbox
from services.relay.outbox.engine.revision import UnknownDatabaseError, describe_tables
from shared.check import CheckError
from shared.sql.database_url import DatabaseUrl
from shared.sql.read_only import check_database


async def check_outbox(database: DatabaseUrl) -> str:
    """Say what the next start would find; nothing is changed. Raises CheckError if it would refuse the database."""
    await asyncio.to_thread(_refuse_lost_file, database)
    return await check_database(database, _describe)


def _refuse_lost_file(database: DatabaseUrl) -> None:
    is_missing = dialect.is_sqlite(database) and not Path(str(database.database)).exists()
    if is_missing and (problem := describe_lost_outbox(database)):
        raise CheckError(*problem)


def _describe(connection: Connection) -> str:
    try:
        return describe_tables(connection)
    except UnknownDatabaseError as error:
        raise CheckError(error.error, error.hint) from None
