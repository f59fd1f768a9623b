"""The password of PostgreSQL from a file that holds it alone, as a Secret's volume has it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, exc, text

from shared.sql.engine import PASSWORD_FILE_VARIABLE, AnswerTimeout, create_postgresql_engine
from tests.postgres import Postgres

Connect = Callable[..., Engine]


@pytest.fixture
def engine(own_postgres: Postgres) -> Connect:
    """An engine on a database for which the server wants the password `first`."""
    database = own_postgres.database("locked")
    own_postgres._execute("CREATE ROLE relay LOGIN SUPERUSER PASSWORD 'first'")
    rules = own_postgres.folder / "data/pg_hba.conf"
    rules.write_text(f"local all relay scram-sha-256\n{rules.read_text()}")
    own_postgres._execute("SELECT pg_reload_conf()")

    def engine(**query: str) -> Engine:
        url = database.set(username="relay").update_query_dict(query)
        return create_postgresql_engine(
            url,
            1,
            application_name="test",
            options="",
            checks_connections=False,
            create_answer_timeout=lambda: AnswerTimeout(5.0),
        )

    return engine


def connect(engine: Engine) -> int:
    with engine.connect() as connection:
        answer: int = connection.execute(text("SELECT 1")).scalar_one()
    engine.dispose()
    return answer


def test_it_is_read_again_for_each_connection(engine: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    file.chmod(0o440)  # as in a Secret's volume; libpq takes no file that its group may read
    connects = engine()
    monkeypatch.delenv(PASSWORD_FILE_VARIABLE, raising=False)
    with pytest.raises(exc.OperationalError, match="no password supplied"):
        connect(connects)
    monkeypatch.setenv(PASSWORD_FILE_VARIABLE, str(file))
    assert connect(connects) == 1
    file.chmod(0o640)
    file.write_text("another one\n")
    with pytest.raises(exc.OperationalError, match="password authentication failed"):
        connect(connects)
    file.unlink()
    with pytest.raises(exc.OperationalError, match=f"{PASSWORD_FILE_VARIABLE}: {file}: No such file"):
        connect(connects)


def test_a_password_may_start_as_a_comment_does(
    engine: Connect, own_postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects = engine()
    own_postgres._execute("ALTER ROLE relay PASSWORD '#first'")
    (tmp_path / "password").write_text("#first\n")
    monkeypatch.setenv(PASSWORD_FILE_VARIABLE, str(tmp_path / "password"))
    assert connect(connects) == 1


def test_a_file_of_libpqs_that_the_url_names_wins(
    engine: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pgpass").write_text("*:*:*:*:first\n")
    (tmp_path / "pgpass").chmod(0o600)
    monkeypatch.setenv(PASSWORD_FILE_VARIABLE, str(tmp_path / "none"))
    assert connect(engine(passfile=str(tmp_path / "pgpass"))) == 1
