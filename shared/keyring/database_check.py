"""The check of the keyring's database, for the command `doctor`."""

from sqlalchemy import URL, Connection, inspect

from shared.check import CheckError
from shared.keyring import migrations
from shared.keyring.tables import data_keys
from shared.sql.read_only import check_database, describe_empty_database


async def check_keyring_database(url: URL) -> str:
    """Say what the next start of the service would find; nothing is changed. Raises CheckError."""
    return await check_database(url, _describe)


def _describe(connection: Connection) -> str:
    if not inspect(connection).has_table(data_keys.name):
        return describe_empty_database(connection)
    try:
        version = migrations.check_version(connection)
    except migrations.NewerKeyringSchemaError as error:
        raise CheckError(error.error, error.hint) from None
    if migrations.is_current(connection):
        return "its tables are up to date"
    return f"the next start brings its tables from version {version} to {migrations.VERSION}"
