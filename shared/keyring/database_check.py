"""The check of the keyring's database, for the command `doctor`."""

from sqlalchemy import URL, Connection

from shared.check import CheckError
from shared.keyring.database import OtherVersionError, has_keyring
from shared.sql.read_only import check_database, describe_empty_database


async def check_keyring_database(url: URL) -> str:
    """Say what the next start of the service would find; nothing is changed. Raises CheckError."""
    return await check_database(url, _describe)


def _describe(connection: Connection) -> str:
    try:
        return "its tables are up to date" if has_keyring(connection) else describe_empty_database(connection)
    except OtherVersionError as error:
        raise CheckError(error.error, error.hint) from None
