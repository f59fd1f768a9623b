"""A database among a person's settings."""

import os
from pathlib import Path
from typing import Annotated, Final

from pydantic import PlainSerializer, PlainValidator
from pydantic_settings import NoDecode

from shared.named_files import NamedFileError, Opening, folder_to_write_in, readable
from shared.settings import from_folder
from shared.sql import location

_SECRETS: Final = {"passfile", "sslkey"}
_NO_FILE: Final = {"", "system"}  # libpq's words for none, and for the certificates of the operating system


def _database(value: object) -> location.Database:
    url = location.parse(value if isinstance(value, str) else "")
    if url.drivername == "sqlite":
        return location.sqlite(from_folder(Path(url.database or "")))
    written = {key: url.query.get(key) for key in location.FILES}
    files = {
        key: from_folder(Path(name)) for key, name in written.items() if isinstance(name, str) and name not in _NO_FILE
    }
    return url.update_query_dict({key: str(file) for key, file in files.items()})


def _opened(url: location.Database) -> list[Path]:
    """The files of a database that hold secrets: itself, or the password and the key for it. Raises NamedFileError."""
    if url.drivername == "sqlite":
        file = Path(url.database or "")
        folder_to_write_in(file.parent)
        return [_usable(file)] if file.exists() else []
    files = {key: Path(str(url.query[key])) for key in location.FILES if url.query.get(key) not in {None, *_NO_FILE}}
    for file in files.values():
        readable(file)
    return [file for key, file in files.items() if key in _SECRETS]


def _usable(file: Path) -> Path:
    """The file itself, not opened: the close would drop all locks of a process that serves from it (fcntl(2)).

    Another process that closed it then would take its -wal away. Raises NamedFileError.
    """
    if not os.access(file, os.R_OK | os.W_OK):
        raise NamedFileError(f"{file}: expected a file that this user may read and write")
    return file


Database = Annotated[
    location.Database,
    NoDecode,  # from the environment it comes as the same text; pydantic-settings would want JSON
    PlainValidator(_database, json_schema_input_type=str),
    PlainSerializer(str),  # which shows no password
    Opening(_opened, "looks itself"),
]
"""Of an SQLite file, `sqlite:///FILE`, or of PostgreSQL, `postgresql://USER@HOST/NAME`."""
