"""Opens the files and folders that a configuration names, before anything relies on them.

A `FileCheck` in the type of a key defines how. `--check` opens all of them; each failure is an error. A server does not
start without the tokens that it checks: it would appear healthy and refuse every caller. For secrets that it sends to
others it only logs a warning, because these may be written later.
"""

import os
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from pydantic import BaseModel

from shared.check import HintedError, join_hint
from shared.config.secret_file import MIN_TOKEN_LENGTH, PasswordFile, SecretFile, SecretUnreadableError, TokenFile

_WORLD_READABLE: Final = 0o004
"""The permission bit of all users. Access by the group is often intended, as in a pod with an `fsGroup`."""


class FileCheckError(HintedError):
    """A file of a key cannot be opened, or does not contain what was expected."""


StartupPolicy = Literal["refuses", "warns", "checks later"]
"""What a server does at its start if the file cannot be opened."""


class FileCheck(NamedTuple):
    """How to open what a value names; part of the key's `Annotated` type."""

    check: Callable[[Any], Iterable[Path]]
    """Opens it, and returns the files with secrets. Raises FileCheckError."""
    startup_policy: StartupPolicy = "warns"


class FileProblem(NamedTuple):
    """A problem with a file of a key."""

    key: str
    error: str
    hint: str
    """What to do about it, or what was expected; empty where `error` says it all."""
    startup_policy: StartupPolicy | None
    """None if the file can be used, and its permissions are too wide."""

    @property
    def sentence(self) -> str:
        return join_hint(self.error, self.hint)


def check_files(settings: BaseModel) -> Iterator[FileProblem]:
    """Open everything that the settings name, and yield the problems. Blocks."""
    for key, check, value in iterate_file_checks(settings):
        yield from check_value(key, check, value)


def check_value(key: str, check: FileCheck, value: object) -> Iterator[FileProblem]:
    """Open what one value names, and yield the problems. Blocks."""
    try:
        for file in check.check(value):
            if (mode := stat.S_IMODE(file.stat().st_mode)) & _WORLD_READABLE and not _is_on_read_only_mount(file):
                yield FileProblem(
                    key, f"{file}: others may read it (mode {mode:04o})", f"run: chmod o-rwx {file}", None
                )
    except FileCheckError as error:
        yield FileProblem(key, error.error, error.hint, check.startup_policy)
    except OSError as error:
        yield FileProblem(key, f"{error.filename}: {error.strerror}", "", check.startup_policy)


def _is_on_read_only_mount(file: Path) -> bool:
    """Whether this user cannot change its mode, as in a pod: the mount's owner decides who reads it."""
    return bool(os.statvfs(file).f_flag & os.ST_RDONLY)


def check_readable(file: Path) -> Path:
    """Return the file. Raises FileCheckError if it cannot be opened."""
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise FileCheckError(f"{file}: {error.strerror}", "expected a file that this user may read") from None
    return file


def check_writable_folder(folder: Path) -> None:
    """Raises FileCheckError if no file can be created in the folder."""
    if not folder.exists():
        raise FileCheckError(f"the folder {folder} does not exist", f"run: mkdir -p {folder}")
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise FileCheckError(f"{folder} is no folder that this user may write to", "correct its owner, or set another")


def create_secret_check(
    kind: type[SecretFile],
    expected: str,
    validate: Callable[[str], object] = lambda _secret: None,
    source: str = "cat",
) -> Callable[[Path], Iterable[Path]]:
    """Return a check of a secret's file.

    Args:
        kind: how the file is read.
        expected: what the file should contain, for the error of one that cannot be read.
        validate: checks the shape of each secret. Raises FileCheckError, or ValueError with what is wrong or what was
            expected, without the secret.
        source: the command that prints the secret, for a file that is missing; `cat` waits until somebody pastes it.
    """

    def check(file: Path) -> Iterable[Path]:
        try:
            for secret in kind(file).read_values():
                validate(secret)
        except SecretUnreadableError as error:
            make = "" if file.exists() else f", by: (umask 077; {source} >{shlex.quote(str(file))})"
            raise FileCheckError(str(error), f"{expected}{make}") from None
        except FileCheckError as error:
            raise FileCheckError(f"{file}: {error.error}", error.hint) from None
        except ValueError as error:
            raise FileCheckError(f"{file}: {error}") from None
        return [file]

    return check


TOKEN_FILE_CHECK: Final = FileCheck(
    create_secret_check(
        TokenFile,
        f"expected a file with tokens of at least {MIN_TOKEN_LENGTH} characters, one a line",
        source="openssl rand -hex 32",
    ),
    "refuses",
)
"""Tokens that the server checks."""
SECRET_FILE_CHECK: Final = FileCheck(
    create_secret_check(SecretFile, "expected a file with the secret on its first line")
)
"""A secret that the server sends to others."""
PASSWORD_FILE_CHECK: Final = FileCheck(
    create_secret_check(PasswordFile, "expected a file with the password on its first line")
)
"""A password that the server sends to others."""


def iterate_file_checks(settings: BaseModel, path: str = "") -> Iterator[tuple[str, FileCheck, Any]]:
    """Yield each value that names a file, with its dotted key and its check."""
    for name, field in type(settings).model_fields.items():
        value, key = getattr(settings, name), path + name
        for check in () if value is None else _find_checks((field.annotation, *field.metadata)):
            yield key, check, value
        children: Iterable[tuple[str, Any]] = [(key, value)]
        if isinstance(value, dict):
            children = [(f"{key}.{each}", child) for each, child in value.items()]
        elif isinstance(value, (list, tuple)):
            children = [(f"{key}.{n}", child) for n, child in enumerate(value)]
        for child_key, child in children:
            if isinstance(child, BaseModel):
                yield from iterate_file_checks(child, f"{child_key}.")


def _find_checks(types: Iterable[Any]) -> Iterator[FileCheck]:
    """Yield the checks in a key's annotation, including those of an optional type."""
    for each in types:
        if isinstance(each, FileCheck):
            yield each
        else:
            yield from _find_checks(get_args(each))
