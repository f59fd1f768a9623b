"""Where a database is, as a person writes it."""

from pathlib import Path
from typing import Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

DatabaseUrl = URL
"""Of an SQLite file, or of a PostgreSQL database. Its text shows no password."""

FILE_PARAMETERS: Final = ("passfile", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir")
"""The keys of a PostgreSQL URL whose values are paths."""
_EXPECTED: Final = (
    "expected sqlite:///FILE, with four slashes for an absolute path, or postgresql://USER@HOST/NAME, whose password "
    "may stand in a file: ?passfile=/run/secrets/pgpass"
)
_ADDRESS_PARAMETERS: Final = {"host", "hostaddr", "port"}
"""The keys that may stand there several times: one server may stand in for another."""
_NUMERIC_PARAMETERS: Final = {"connect_timeout", "tcp_user_timeout"} | {
    f"keepalives{which}" for which in ("", "_idle", "_interval", "_count")
}
"""The keys at whose values libpq only looks once it connects."""
_PARAMETERS_HINT: Final = "see https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"
_UNREACHABLE_HOST: Final = "/dev/null"
"""As a host, a socket that cannot be there: libpq looks at all that it is given, and connects to nothing."""


def create_sqlite_url(file: Path) -> DatabaseUrl:
    """The database in a file."""
    return URL.create("sqlite", database=str(file))


def parse_database_url(text: str) -> DatabaseUrl:
    """Raises ValueError with what was expected; its text holds nothing of `text`, which may hold a password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(_EXPECTED) from None
    fit = {"sqlite": not url.host and "?" not in text, "postgresql": True}
    if not fit.get(url.drivername) or not url.database:
        raise ValueError(_EXPECTED)
    if url.drivername == "postgresql":
        _check_parameters(url)
    return url


def _check_parameters(url: DatabaseUrl) -> None:
    """Has libpq look at the keys behind the `?`, before a server that would never be reached is waited for."""
    from psycopg import pq  # noqa: PLC0415  # 0.1 s that a file does not need
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    known = {option.keyword.decode(): option.dispchar for option in pq.Conninfo.get_defaults()}
    values = {}
    for key, value in url.query.items():
        if key not in known:
            raise ValueError(f"{key} is no connection parameter of PostgreSQL; {_PARAMETERS_HINT}")
        if known[key] == b"*" or key.startswith("scram_"):  # libpq marks what is not to be shown, but for these two
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
    said = connection.error_message.decode()
    connection.finish()
    if _UNREACHABLE_HOST not in said:
        raise ValueError(f"{said.partition(':')[0]}; {_PARAMETERS_HINT}")  # as in: invalid sslmode value: "x"
