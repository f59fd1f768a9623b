"""Where the outbox is, as a person writes it."""

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

Database = URL
"""Of an SQLite file, or of a PostgreSQL database. Its text shows no password."""

_EXPECTED = (
    "expected sqlite:///FILE, with four slashes for an absolute path, or postgresql://USER@HOST/NAME, whose password "
    "may stand in a file: ?passfile=/run/secrets/pgpass"
)


def sqlite(file: Path) -> Database:
    """The database in a file."""
    return URL.create("sqlite", database=str(file))


def parse(text: str) -> Database:
    """Raises ValueError with what was expected; its text holds nothing of `text`, which may hold a password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(_EXPECTED) from None
    fit = {"sqlite": not url.host and "?" not in text, "postgresql": True}
    if not fit.get(url.drivername) or not url.database:
        raise ValueError(_EXPECTED)
    return url
