"""The files and folders that a configuration names, opened before anything relies on them.

An `FileCheck` in the type of a key says how. `--check` opens all of them, and each that cannot be is an error. A start
refuses to go on without the tokens that the server itself checks: it would look healthy, and let nobody in. Of secrets
that it sends to others it only warns, for those may come later.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from pydantic import BaseModel

from shared.config.secret_file import MIN_TOKEN_LENGTH, PasswordFile, SecretFile, SecretUnreadableError, TokenFile

_WORLD_READABLE: Final = 0o004
"""The bit of a mode that lets everybody read. A group is often meant to, as in a pod with an `fsGroup`."""


class FileCheckError(Exception):
    """What a key names cannot be opened; the message says why, and what was expected."""


StartupPolicy = Literal["refuses", "warns", "looks itself"]
"""What a server's start does about what it cannot open."""


class FileCheck(NamedTuple):
    """How what a value names is opened; stands in the `Annotated` type of its key."""

    check: Callable[[Any], Iterable[Path]]
    """Gives the files among it that hold secrets. Raises FileCheckError."""
    startup_policy: StartupPolicy = "warns"


class FileProblem(NamedTuple):
    """Something about what a key names."""

    key: str
    message: str
    startup_policy: StartupPolicy | None
    """None where it can be used, and only looks careless."""


def check_files(settings: BaseModel) -> Iterator[FileProblem]:
    """Opens everything that the settings name, and says what is wrong with it. Blocks."""
    for key, opening, value in _iterate_checks(settings):
        try:
            for file in opening.check(value):
                if (mode := stat.S_IMODE(file.stat().st_mode)) & _WORLD_READABLE and not _is_on_read_only_mount(file):
                    yield FileProblem(
                        key, f"{file}: others may read it (mode {mode:04o}); run: chmod o-rwx {file}", None
                    )
        except FileCheckError as error:
            yield FileProblem(key, str(error), opening.startup_policy)
        except OSError as error:
            yield FileProblem(key, f"{error.filename}: {error.strerror}", opening.startup_policy)


def _is_on_read_only_mount(file: Path) -> bool:
    """As a pod has its secrets: whoever mounted it said who reads it, and its mode cannot be changed here."""
    return bool(os.statvfs(file).f_flag & os.ST_RDONLY)


def check_readable(file: Path) -> Path:
    """The file itself. Raises FileCheckError where it cannot be opened."""
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise FileCheckError(f"{file}: {error.strerror}; expected a file that this user may read") from None
    return file


def check_writable_folder(folder: Path) -> None:
    """Raises FileCheckError where no file can be made in it."""
    if not folder.is_dir():
        raise FileCheckError(f"the folder {folder} does not exist; run: mkdir -p {folder}")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise FileCheckError(f"the folder {folder}: expected one in which this user may read and write")


def _create_secret_check(kind: type[SecretFile], expected: str) -> Callable[[Path], Iterable[Path]]:
    def opened(file: Path) -> Iterable[Path]:
        try:
            kind(file).read_values()
        except SecretUnreadableError as error:
            raise FileCheckError(f"{error}; {expected}") from None
        return [file]

    return opened


TOKEN_FILE_CHECK: Final = FileCheck(
    _create_secret_check(
        TokenFile, f"expected a file with tokens of at least {MIN_TOKEN_LENGTH} characters, one a line"
    ),
    "refuses",
)
"""Those that the server itself checks."""
SECRET_FILE_CHECK: Final = FileCheck(
    _create_secret_check(SecretFile, "expected a file with the secret on its first line")
)
"""One that is sent to others."""
PASSWORD_FILE_CHECK: Final = FileCheck(
    _create_secret_check(PasswordFile, "expected a file with the password on its first line")
)
"""Likewise."""


def _iterate_checks(settings: BaseModel, path: str = "") -> Iterator[tuple[str, FileCheck, Any]]:
    """Every value that names something, with its dotted key."""
    for name, field in type(settings).model_fields.items():
        value, key = getattr(settings, name), path + name
        for opening in () if value is None else _find_checks((field.annotation, *field.metadata)):
            yield key, opening, value
        children: Iterable[tuple[str, Any]] = [(key, value)]
        if isinstance(value, dict):
            children = [(f"{key}.{each}", child) for each, child in value.items()]
        elif isinstance(value, (list, tuple)):
            children = [(f"{key}.{n}", child) for n, child in enumerate(value)]
        for child_key, child in children:
            if isinstance(child, BaseModel):
                yield from _iterate_checks(child, f"{child_key}.")


def _find_checks(types: Iterable[Any]) -> Iterator[FileCheck]:
    """The openings in what a key is annotated with, an optional one included."""
    for each in types:
        if isinstance(each, FileCheck):
            yield each
        else:
            yield from _find_checks(get_args(each))
