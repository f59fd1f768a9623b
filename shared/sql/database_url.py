"""The URL of a database: parsed, checked, and as a type of settings."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Final

from pydantic import PlainSerializer, PlainValidator
from pydantic_settings import NoDecode
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from shared.config.file_checks import FileCheck, FileCheckError, check_readable, check_writable_folder
from shared.config.settings import resolve_path
from shared.sql.engine import SqliteFile

DatabaseUrl = URL
"""Of an SQLite file, or of a PostgreSQL database. Its text shows no password."""

FILE_PARAMETERS: Final = ("passfile", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir")
"""The keys of a PostgreSQL URL whose values are paths."""
_EXPECTED: Final = (
    "expected sqlite:///FILE, with four slashes for an absolute path, or postgresql://USER@HOST/NAME, whose password "
    "may stand in a file: ?passfile=/run/secrets/pgpass"
)
_EXPECTED_MARIADB: Final = (
    "or mariadb://USER@HOST/NAME, whose password may stand in an option file: ?read_default_file=/run/secrets/my.cnf"
)
MARIADB_FILE_PARAMETERS: Final = ("read_default_file", "ssl_ca", "ssl_cert", "ssl_key")
"""The keys of a MariaDB URL whose values are paths."""
_MARIADB_PARAMETERS: Final = {*MARIADB_FILE_PARAMETERS, "unix_socket"}
_ADDRESS_PARAMETERS: Final = {"host", "hostaddr", "port"}
"""The keys that may be repeated: one server is the standby of another."""
_NUMERIC_PARAMETERS: Final = {"connect_timeout", "tcp_user_timeout"} | {
    f"keepalives{which}" for which in ("", "_idle", "_interval", "_count")
}
"""The keys whose values libpq checks only when it connects."""
_PARAMETERS_HINT: Final = "see https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"
_UNREACHABLE_HOST: Final = "/dev/null"
"""A host that cannot exist: libpq validates all parameters, and connects to nothing."""


def create_sqlite_url(file: Path) -> DatabaseUrl:
    return URL.create("sqlite", database=str(file))


def parse_database_url(text: str, *, allows_mariadb: bool = False) -> DatabaseUrl:
    """Parse a URL. Raises ValueError with what was expected, without `text`, which may contain a password."""
    expected = f"{_EXPECTED}; {_EXPECTED_MARIADB}" if allows_mariadb else _EXPECTED
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(expected) from None
    fit = {"sqlite": not url.host and "?" not in text, "postgresql": True, "mariadb": allows_mariadb}
    if not fit.get(url.drivername) or not url.database:
        raise ValueError(expected)
    if url.drivername == "mariadb" and (unknown := set(url.query) - _MARIADB_PARAMETERS):
        raise ValueError(f"{min(unknown)} is no parameter; expected one of {', '.join(sorted(_MARIADB_PARAMETERS))}")
    if url.drivername == "postgresql":
        _check_parameters(url)
    return url


def _check_parameters(url: DatabaseUrl) -> None:
    """Let libpq validate the parameters, so that an error is reported without a connection."""
    from psycopg import pq  # noqa: PLC0415  # 0.1 s that a file does not need
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    parameters = {option.keyword.decode(): option.dispchar for option in pq.Conninfo.get_defaults()}
    values = {}
    for key, value in url.query.items():
        if key not in parameters:
            raise ValueError(f"{key} is no connection parameter of PostgreSQL; {_PARAMETERS_HINT}")
        if parameters[key] == b"*" or key.startswith("scram_"):  # libpq marks secrets, except these two
            raise ValueError(
                f"{key} would stand there for everybody to read; expected the password in a file: "
                "?passfile=/run/secrets/pgpass, or the environment variable PGPASSFILE"
            )
        if key in _ADDRESS_PARAMETERS:
            continue
        if not isinstance(value, str):
            raise ValueError(f"{key} stands there twice; expected it once")  # noqa: TRY004  # the value is wrong
        if "\0" in value:
            raise ValueError(f"{key} holds a NUL character; expected text without")
        if key in _NUMERIC_PARAMETERS and not value.isdecimal():
            raise ValueError(f"{key} is no number; {_PARAMETERS_HINT}")
        values[key] = value
    values |= {"host": _UNREACHABLE_HOST, "passfile": f"{_UNREACHABLE_HOST}/none"}
    connection = pq.PGconn.connect_start(make_conninfo(**values).encode())
    message = connection.error_message.decode()
    connection.finish()
    if _UNREACHABLE_HOST not in message:
        raise ValueError(f"{message.partition(':')[0]}; {_PARAMETERS_HINT}")  # as in: invalid sslmode value: "x"


_SECRET_PARAMETERS: Final = {"passfile", "sslkey", "read_default_file", "ssl_key"}
_NO_FILE_VALUES: Final = {"", "system"}  # libpq's values for none, and for the operating system's certificates


def _parse_setting(value: object, *, allows_mariadb: bool = False) -> DatabaseUrl:
    url = parse_database_url(value if isinstance(value, str) else "", allows_mariadb=allows_mariadb)
    if url.drivername == "sqlite":
        return create_sqlite_url(resolve_path(Path(url.database or "")))
    paths = {key: url.query.get(key) for key in (*FILE_PARAMETERS, *MARIADB_FILE_PARAMETERS)}
    files = {
        key: resolve_path(Path(name))
        for key, name in paths.items()
        if isinstance(name, str) and name not in _NO_FILE_VALUES
    }
    return url.update_query_dict({key: str(file) for key, file in files.items()})


def _check_database_files(url: DatabaseUrl) -> list[Path]:
    """The files of a database that hold secrets: itself, or the password and the key for it. Raises FileCheckError."""
    if url.drivername == "sqlite":
        file = Path(url.database or "")
        SqliteFile(url).check()
        check_writable_folder(file.parent)
        return [_check_usable(file)] if file.exists() else []
    files = {
        key: Path(str(url.query[key]))
        for key in (*FILE_PARAMETERS, *MARIADB_FILE_PARAMETERS)
        if url.query.get(key) not in {None, *_NO_FILE_VALUES}
    }
    for file in files.values():
        check_readable(file)
    return [file for key, file in files.items() if key in _SECRET_PARAMETERS]


def _check_usable(file: Path) -> Path:
    """The file itself, not opened: the close would drop all locks of a process that serves from it (fcntl(2)).

    Another process that closed it then would take its -wal away. Raises FileCheckError.
    """
    if not os.access(file, os.R_OK | os.W_OK):
        raise FileCheckError(f"{file}: expected a file that this user may read and write")
    return file


DatabaseSetting = Annotated[
    DatabaseUrl,
    NoDecode,  # from the environment it comes as the same text; pydantic-settings would want JSON
    PlainValidator(_parse_setting, json_schema_input_type=str),
    PlainSerializer(str),  # which shows no password
    FileCheck(_check_database_files, "checks later"),
]
"""Of an SQLite file, `sqlite:///FILE`, or of PostgreSQL, `postgresql://USER@HOST/NAME`."""
TableDatabaseSetting = Annotated[
    DatabaseUrl,
    NoDecode,
    PlainValidator(partial(_parse_setting, allows_mariadb=True), json_schema_input_type=str),
    PlainSerializer(str),
    FileCheck(_check_database_files, "checks later"),
]
"""The same, or of MariaDB, `mariadb://USER@HOST/NAME`."""
