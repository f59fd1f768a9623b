"""A database among a person's settings."""

import os
from pathlib import Path
from typing import Annotated, Final

from pydantic import PlainSerializer, PlainValidator
from pydantic_settings import NoDecode

from shared.named_files import FileCheckError, FileCheck, check_writable_folder, check_readable
from shared.settings import resolve_path
from shared.sql import location

_SECRET_PARAMETERS: Final = {"passfile", "sslkey"}
_NO_FILE_VALUES: Final = {"", "system"}  # libpq's words for none, and for the certificates of the operating system


def _parse_setting(value: object) -> location.DatabaseUrl:
    url = location.parse_database_url(value if isinstance(value, str) else "")
    if url.drivername == "sqlite":
        return location.create_sqlite_url(resolve_path(Path(url.database or "")))
    written = {key: url.query.get(key) for key in location.FILE_PARAMETERS}
    files = {
        key: resolve_path(Path(name)) for key, name in written.items() if isinstance(name, str) and name not in _NO_FILE_VALUES
    }
    return url.update_query_dict({key: str(file) for key, file in files.items()})


def _check_database_files(url: location.DatabaseUrl) -> list[Path]:
    """The files of a database that hold secrets: itself, or the password and the key for it. Raises NamedFileError."""
    if url.drivername == "sqlite":
        file = Path(url.database or "")
        check_writable_folder(file.parent)
        return [_check_usable(file)] if file.exists() else []
    files = {key: Path(str(url.query[key])) for key in location.FILE_PARAMETERS if url.query.get(key) not in {None, *_NO_FILE_VALUES}}
    for file in files.values():
        check_readable(file)
    return [file for key, file in files.items() if key in _SECRET_PARAMETERS]


def _check_usable(file: Path) -> Path:
    """The file itself, not opened: the close would drop all locks of a process that serves from it (fcntl(2)).

    Another process that closed it then would take its -wal away. Raises NamedFileError.
    """
    if not os.access(file, os.R_OK | os.W_OK):
        raise FileCheckError(f"{file}: expected a file that this user may read and write")
    return file


DatabaseSetting = Annotated[
    location.DatabaseUrl,
    NoDecode,  # from the environment it comes as the same text; pydantic-settings would want JSON
    PlainValidator(_parse_setting, json_schema_input_type=str),
    PlainSerializer(str),  # which shows no password
    FileCheck(_check_database_files, "looks itself"),
]
"""Of an SQLite file, `sqlite:///FILE`, or of PostgreSQL, `postgresql://USER@HOST/NAME`."""
