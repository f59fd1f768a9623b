"""Stores canaries: one JSON file for each target and key, replaced as a whole or not at all.

`sync` merges memory and file, and returns all canaries with a sentence for each problem. Memory restores what a lost or
bad file contained; what a person removed from a good file stays removed. This module does not depend on a KMS.
"""

import asyncio
import errno
import hashlib
import os
import re
import stat
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from services.exporter.model import Canary
from shared.atomic_file import replace_file
from shared.kms.port import is_version
from shared.process.concurrency import start_in_thread

MAX_CANARIES = 100
"""How many canaries a key has: those of the versions that came last."""
MAX_FILE_BYTES = 1024 * 1024
"""Of a file; with `MAX_CANARIES` canaries it has about 50 KiB."""
MAX_BAD_FILES = 9
"""Bad files of a key that are kept; a disk that spoils each of them must not be filled."""
DISK_TIMEOUT = 5.0
"""How long a folder may take to answer."""

_SHA256_BYTES: Final = 32
_ADAPTER_CONFIG: Final = ConfigDict(strict=True, allow_inf_nan=False, ser_json_bytes="base64", val_json_bytes="base64")

CanariesByVersion = dict[str, Canary]
"""By version, the newest last."""


@dataclass(frozen=True, slots=True)
class _FileEntry:
    canary: Canary
    sha256: bytes
    """Of `canary`: a byte changed on disk would look like a version that can no longer decrypt."""


_FILE: Final = TypeAdapter(dict[str, list[_FileEntry]], config=_ADAPTER_CONFIG)
"""The canaries by the full resource name of their key, the only one of the mapping."""
_CANARY: Final = TypeAdapter(tuple[Canary], config=_ADAPTER_CONFIG)


class _MergeResult(NamedTuple):
    canaries: CanariesByVersion
    versions_on_disk: frozenset[str] | None
    """The versions that the file has now; None if that is not known."""
    problems: tuple[str, ...]


class CanaryFile:
    """The canaries of one target's key. Exporters may share the folder: each adds to what the others wrote."""

    def __init__(self, folder: Path, target: str, key: str, canaries: CanariesByVersion | None = None) -> None:
        """Touches nothing yet.

        Args:
            folder: where the file is; it has to exist.
            target: any name; the file's name begins with what is harmless of it.
            key: the full resource name of the target's key. With another one the target has another file.
            canaries: those in memory, to be written.
        """
        digest = hashlib.sha256(f"{target}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
        self.path = folder / f"{re.sub('[^A-Za-z0-9_-]', '_', target)[:64]}-{digest[:16]}.json"
        self._key = key
        self.canaries: CanariesByVersion = canaries or {}
        """What is in memory now."""
        self._versions_on_disk: frozenset[str] | None = None
        self._pending_merge: Future[_MergeResult] | None = None

    async def sync(
        self, add: Canary | None = None, remove: Collection[str] = ()
    ) -> tuple[tuple[Canary, ...], tuple[str, ...]]:
        """Merges memory and file, within `DISK_TIMEOUT`.

        Args:
            add: a new canary; one that the file has of its version already stays instead.
            remove: versions whose canaries are of no use any more.

        Returns:
            every canary that is known now, the newest last, and a sentence for each thing that is broken.
        """
        canaries = {version: canary for version, canary in self.canaries.items() if version not in remove}
        if add:
            canaries[add.version] = add
        self.canaries = canaries
        problems: tuple[str, ...] = (f"{self.path.parent} did not answer within {DISK_TIMEOUT:g} s; see to its disk",)
        if self._pending_merge is None or self._pending_merge.done():  # a second thread would hang beside the first
            self._pending_merge = start_in_thread("canaries", lambda: self._merge(canaries, remove))
            try:
                async with asyncio.timeout(DISK_TIMEOUT):
                    merged = await asyncio.wrap_future(self._pending_merge)
            except TimeoutError:
                pass
            else:
                self.canaries, self._versions_on_disk, problems = merged
        return tuple(self.canaries.values()), problems

    def _merge(self, canaries: CanariesByVersion, remove: Collection[str]) -> _MergeResult:
        problems: list[str] = []
        on_disk: CanariesByVersion = {}
        previous_versions: Collection[str] = ()
        try:
            on_disk = self._read()
            previous_versions = self._versions_on_disk or ()
        except FileNotFoundError:
            if self._versions_on_disk:
                problems.append(f"{self.path} was lost; the canaries in memory are written again")
        except _BadFileError as error:
            problems.append(f"{self.path} {error}; {self._rename_bad_file()}")
        except OSError as error:
            # It may be whole: to replace it could lose canaries that nobody can make again.
            problem = f"{self.path} cannot be read: {error.strerror}; canaries are in memory only until it can"
            return _MergeResult(canaries, self._versions_on_disk, (problem,))
        new = {
            version: canary
            for version, canary in canaries.items()
            if version not in on_disk and version not in previous_versions
        }
        merged = {version: canary for version, canary in (on_disk | new).items() if version not in remove}
        merged = dict(list(merged.items())[-MAX_CANARIES:])
        if merged != on_disk:
            try:
                replace_file(self.path, self._encode(merged))
            except OSError as error:
                problems.append(
                    f"{self.path} cannot be written: {error.strerror}; the canaries are in memory only, until a "
                    f"restart: give the exporter a folder {self.path.parent} that it may write to"
                )
                return _MergeResult(merged, frozenset(on_disk), tuple(problems))
        return _MergeResult(merged, frozenset(merged), tuple(problems))

    def _encode(self, canaries: CanariesByVersion) -> bytes:
        return _FILE.dump_json(
            {self._key: [_FileEntry(one, _compute_sha256(one)) for one in canaries.values()]}, indent=1
        )

    def _read(self) -> CanariesByVersion:
        """Raises _BadFileError if the file is of no use, FileNotFoundError and other OSError."""
        try:
            found = _FILE.validate_json(_read_bounded(self.path))
        except ValidationError as error:  # never shown: it would quote the file
            raise _BadFileError(f"holds no canaries ({error.errors()[0]['type']})") from None
        if list(found) != [self._key]:
            raise _BadFileError("holds canaries of another key")
        if not all(_is_intact(entry) for entry in found[self._key]):
            raise _BadFileError("holds a canary that was changed")
        return {entry.canary.version: entry.canary for entry in found[self._key]}

    def _rename_bad_file(self) -> str:
        """Keeps a bad file under the next free name beside it; says what became of it."""
        bad = [f"{self.path.name}.bad", *(f"{self.path.name}.bad{n}" for n in range(2, MAX_BAD_FILES + 1))]
        free = next((name for name in bad if not os.path.lexists(self.path.with_name(name))), None)
        if free is None:
            return f"a new one takes its place; {MAX_BAD_FILES} earlier bad ones are kept, up to {bad[-1]}"
        try:
            self.path.rename(self.path.with_name(free))
        except OSError as error:
            return f"it could not be kept: {error.strerror}"
        return f"it is kept as {free}, and a new one takes its place"


class CanaryFiles:
    """Those of all targets. They outlive a reload, which must not take away what only memory holds."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], CanaryFile] = {}

    def configure(self, targets: Collection[tuple[str, str]]) -> None:
        """Forgets all others; `targets`: the name and key of each."""
        self._files = {both: file for both, file in self._files.items() if both in targets}

    def get_file(self, folder: Path, target: str, key: str) -> CanaryFile:
        """The one of a target, in this folder from now on; see CanaryFile."""
        file = self._files.get((target, key))
        if file is None or file.path.parent != folder:
            file = self._files[target, key] = CanaryFile(folder, target, key, file.canaries if file else {})
        return file


class _BadFileError(Exception):
    """The file cannot be used. The message continues where the file's name ends."""


def _compute_sha256(canary: Canary) -> bytes:
    return hashlib.sha256(_CANARY.dump_json((canary,))).digest()


def _is_intact(entry: _FileEntry) -> bool:
    canary = entry.canary
    if not is_version(canary.version) or len(canary.plaintext_sha256) != _SHA256_BYTES:
        return False
    return entry.sha256 == _compute_sha256(canary)


def _read_bounded(path: Path) -> bytes:
    try:
        # Without O_NONBLOCK, a named pipe in its place would be waited for.
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        # These are no files of ours; one that cannot be read, or opened for now, may be whole and is not replaced.
        if error.errno == errno.ELOOP:
            raise _BadFileError("is a symbolic link") from None
        if error.errno == errno.ENXIO:
            raise _BadFileError("is no regular file") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise _BadFileError("is no regular file")
        with open(opened, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(opened)
    if len(content) > MAX_FILE_BYTES:
        raise _BadFileError(f"is larger than {MAX_FILE_BYTES} bytes")
    return content
