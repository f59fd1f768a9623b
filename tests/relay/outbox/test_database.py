"""Where the outbox is, as a person writes it: what cannot be used is said before anything is connected to."""

import pytest
from sqlalchemy import make_url

from shared.sql.database_url import parse_database_url


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///relay.db",
        "sqlite:////var/lib/keypulse/relay.db",
        "postgresql://relay@db.example.org/relay",
        "postgresql://relay:hunter2@db.example.org:5433/relay",
        "postgresql://relay@/relay?host=one:5432&host=two:5433&target_session_attrs=read-write",
        "postgresql:///relay?host=/run/postgresql&sslmode=disable&connect_timeout=7&application_name=x",
        "postgresql://db/relay?passfile=/run/secrets/pgpass&sslmode=verify-full&sslrootcert=system",
        "postgresql://db/relay?options=-c%20search_path%3Dkeypulse",
    ],
)
def test_what_can_be_used_is_read_as_it_is_written(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert parse_database_url(text) == make_url(text)
    assert capfd.readouterr() == ("", "")  # libpq writes its warnings by itself


@pytest.mark.parametrize(
    "text",
    [
        "",
        "relay.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///relay.db?password=hunter2",
        "sqlite://host/relay.db",
        "mysql://u:hunter2@db/relay",
        "postgresql://db",
        "postgresql://u:hunter2@db:port/relay",
        "postgresql://[::1/relay?password=hunter2",
        "postgresql:/db/relay?password=hunter2",
        "host=db password=hunter2",
    ],
)
def test_what_is_no_address_of_a_database_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="expected sqlite:///FILE, with four slashes") as refused:
        parse_database_url(text)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("password=hunter2", "password would stand there for everybody to read; expected the password in a file: "),
        ("sslpassword=hunter2", "sslpassword would stand there for everybody to read; "),
        ("oauth_client_secret=hunter2", "oauth_client_secret would stand there for everybody to read; "),
        ("scram_client_key=hunter2", "scram_client_key would stand there for everybody to read; "),
        ("pasword=hunter2", "pasword is no connection parameter of PostgreSQL; see https://www.postgresql.org/"),
        ("sslmode=hunter2", "invalid sslmode value; see https://www.postgresql.org/"),
        ("target_session_attrs=hunter2", "invalid target_session_attrs value; see https://www.postgresql.org/"),
        ("connect_timeout=hunter2", "connect_timeout is no number; see https://www.postgresql.org/"),
        ("keepalives_idle=hunter2", "keepalives_idle is no number; see https://www.postgresql.org/"),
        ("sslmode=require&sslmode=hunter2", "sslmode stands there twice; expected it once"),
        ("application_name=hunter2%00", "application_name holds a NUL character; expected text without"),
    ],
)
def test_libpq_checks_the_keys_and_an_error_quotes_no_value(query: str, line: str) -> None:
    with pytest.raises(ValueError, match=r"^\w") as refused:
        parse_database_url(f"postgresql://db.example.org/relay?{query}")
    assert str(refused.value).startswith(line)
    assert "hunter2" not in str(refused.value)
