"""A keyring's database in MariaDB: what its errors show, and which are tried again."""

import pymysql
import pytest
from sqlalchemy import exc

from shared.sql.engine import describe_mariadb_error, is_retryable


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (pymysql.err.IntegrityError(1062, "Duplicate entry 'acme' for key 'PRIMARY'"), "a duplicate key"),
        (
            pymysql.err.DataError(1366, "Incorrect string value: '\\xFFsecret'"),
            "a value of another type",
        ),
        (pymysql.err.OperationalError(2003, "Can't connect to\nMariaDB"), "Can't connect to MariaDB"),
        (pymysql.err.InterfaceError(), "InterfaceError"),
    ],
)
def test_an_error_shows_its_number_and_no_value_of_a_row(error: pymysql.err.Error, expected: str) -> None:
    code = error.args[0] if error.args else 0
    assert describe_mariadb_error(error) == f"{expected} (MariaDB's error {code})"


@pytest.mark.parametrize(("code", "expected"), [(1213, True), (1205, False)])
def test_a_deadlock_is_retried_and_a_long_wait_is_not(code: int, expected: bool) -> None:
    error = exc.OperationalError("UPDATE", None, pymysql.err.OperationalError(code, "a lock"))
    assert is_retryable(error) is expected
