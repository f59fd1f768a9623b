"""Connections to MariaDB. Every wait has a timeout, and no value is ever cut to fit a column."""

from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine, event

_CONNECT_SECONDS: Final = 3
_ANSWER_SECONDS: Final = 65
"""The server itself ends a slow statement sooner; this is for a server, or a proxy before it, that never answers."""
_IDLE_SECONDS: Final = 5
"""Of a transaction whose client has stopped: its locks are released then."""
_POOL_SECONDS: Final = 3.0
_ERRORS_WITH_VALUES: Final = {1062: "a duplicate key", 1292: "a value of another type", 1366: "a value of another type"}
"""Errors whose text holds a value of a row (MariaDB, "MariaDB Error Codes")."""


def create_mariadb_engine(url: URL, connections: int, *, lock_seconds: float, statement_seconds: float) -> Engine:
    """Create the engine.

    Args:
        url: the database, with the driver name `mariadb`.
        connections: how many at most.
        lock_seconds: how long a statement waits for a lock.
        statement_seconds: how long it may take in all.
    """
    engine = create_engine(
        url.set(drivername="mariadb+pymysql"),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_POOL_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "charset": "utf8mb4",
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _ANSWER_SECONDS,
            "write_timeout": _ANSWER_SECONDS,
        },
        hide_parameters=True,  # an error's text must never show a wrapped key
        isolation_level="READ COMMITTED",
    )
    # Strict: else a wrapped key that is too long for its column would be cut, and nobody could unwrap it.
    setup = (
        f"SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES'), max_statement_time = {statement_seconds:g}, "
        f"innodb_lock_wait_timeout = {int(lock_seconds)}, idle_transaction_timeout = {_IDLE_SECONDS}"
    )

    def set_up(connection: Any, _entry: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(setup)

    event.listen(engine, "connect", set_up)
    return engine


def describe_mariadb_error(error: BaseException) -> str:
    """What the database says, on one line, without a value of a row; `error` is the driver's."""
    code, *text = error.args or (0,)
    message = _ERRORS_WITH_VALUES.get(code) or " ".join(str(part) for part in text)
    return f"{' '.join(message.split()) or type(error).__name__} (MariaDB's error {code})"
