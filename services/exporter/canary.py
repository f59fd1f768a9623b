"""Where canaries are kept: one JSON file for each target and key, replaced as a whole or not at all.

In comes what the file should hold besides what it holds; out comes what is known now, with a sentence for each thing
that is broken. What a lost or a bad file held, memory gives back; what a person took out of a good one stays out.
Nothing here knows a key management service.
"""

import asyncio
import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from services.exporter.model import KeptCiphertext
from shared.own_thread import begun

MAX_VERSIONS = 100
"""How many canaries a key has: those of the versions that came last."""
MAX_BYTES = 1024 * 1024
"""Of a file; with `MAX_VERSIONS` canaries it has about 50 KiB."""
KEPT_BAD = 9
"""Bad files of a key that are kept; a disk that spoils each of them must not be filled."""
DISK_SECONDS = 5.0
"""How long a folder may take to answer."""

_SHA256_BYTES: Final = 32
_VERSION: Final = re.compile("[0-9]{1,19}")
_STRICT: Final = ConfigDict(strict=True, allow_inf_nan=False, ser_json_bytes="base64", val_json_bytes="base64")

Kept = dict[str, KeptCiphertext]
"""By version, the newest last."""


@dataclass(frozen=True, slots=True)
class _Entry:
    canary: KeptCiphertext
    sha256: bytes
    """Of `canary`: a byte that changed on the disk would look like a version that cannot decrypt any more."""


_FILE: Final = TypeAdapter(dict[str, list[_Entry]], config=_STRICT)
"""The canaries by the full resource name of their key, the only one of the mapping."""
_CANARY: Final = TypeAdapter(tuple[KeptCiphertext], config=_STRICT)


@dataclass(frozen=True, slots=True)
class _Merged:
    kept: Kept
    on_disk: frozenset[str] | None
    """The versions that the file has now; None where that is not known."""
    problems: tuple[str, ...]


class CanaryFile:
    """The canaries of one target's key. Exporters may share the folder: each adds to what the others wrote."""

    def __init__(self, folder: Path, target: str, key: str, known: Kept | None = None) -> None:
        """Touches nothing yet.

        Args:
            folder: where the file is; it has to exist.
            target: any name; the file's name begins with what is harmless of it.
            key: the full resource name of the target's key. With another one the target has another file.
            known: what is in memory already, to be written.
        """
        digest = hashlib.sha256(f"{target}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
        self.path = folder / f"{re.sub('[^A-Za-z0-9_-]', '_', target)[:64]}-{digest[:16]}.json"
        self._key = key
        self.known: Kept = known or {}
        """What is in memory now."""
        self._on_disk: frozenset[str] | None = None
        self._work: Future[_Merged] | None = None

    async def sync(
        self, add: KeptCiphertext | None = None, forget: Collection[str] = ()
    ) -> tuple[tuple[KeptCiphertext, ...], tuple[str, ...]]:
        """Brings memory and file together, within `DISK_SECONDS`.

        Args:
            add: a new canary; one that the file has of its version already stays instead.
            forget: versions whose canaries are of no use any more.

        Returns:
            every canary that is known now, the newest last, and a sentence for each thing that is broken.
        """
        known = {version: kept for version, kept in self.known.items() if version not in forget}
        if add:
            known[add.version] = add
        self.known = known
        problems: tuple[str, ...] = (f"{self.path.parent} did not answer within {DISK_SECONDS:g} s; see to its disk",)
        if self._work is None or self._work.done():  # a second thread would hang beside the first
            self._work = begun("canaries", lambda: self._merge(known, forget))
            try:
                async with asyncio.timeout(DISK_SECONDS):
                    merged = await asyncio.wrap_future(self._work)
            except TimeoutError:
                pass
            else:
                self.known, self._on_disk, problems = merged.kept, merged.on_disk, merged.problems
        return tuple(self.known.values()), problems

    def _merge(self, known: Kept, forget: Collection[str]) -> _Merged:
        problems: list[str] = []
        on_disk: Kept = {}
        seen: Collection[str] = ()
        try:
            on_disk = self._read()
            seen = self._on_disk or ()
        except FileNotFoundError:
            if self._on_disk:
                problems.append(f"{self.path} was lost; the canaries in memory are written anew")
        except _BadFileError as error:
            problems.append(f"{self.path} {error}; {self._set_aside()}")
        except OSError as error:
            # It may be whole: to replace it could lose canaries that nobody can make again.
            told = f"{self.path} cannot be read: {error.strerror}; canaries are in memory only until it can"
            return _Merged(known, self._on_disk, (told,))
        new = {version: kept for version, kept in known.items() if version not in on_disk and version not in seen}
        merged = {version: kept for version, kept in (on_disk | new).items() if version not in forget}
        merged = dict(list(merged.items())[-MAX_VERSIONS:])
        if merged != on_disk:
            try:
                _write(self.path, self._dump(merged))
            except OSError as error:
                problems.append(
                    f"{self.path} cannot be written: {error.strerror}; the canaries are in memory only, until a "
                    f"restart: give the exporter a folder {self.path.parent} that it may write to"
                )
                return _Merged(merged, frozenset(on_disk), tuple(problems))
        return _Merged(merged, frozenset(merged), tuple(problems))

    def _dump(self, kept: Kept) -> bytes:
        return _FILE.dump_json({self._key: [_Entry(one, _digest(one)) for one in kept.values()]}, indent=1)

    def _read(self) -> Kept:
        """Raises _BadFileError where the file is of no use, FileNotFoundError and other OSError."""
        try:
            found = _FILE.validate_json(_content(self.path))
        except ValidationError as error:  # never shown: it would quote the file
            raise _BadFileError(f"holds no canaries ({error.errors()[0]['type']})") from None
        if list(found) != [self._key]:
            raise _BadFileError("holds canaries of another key")
        if not all(_is_whole(entry) for entry in found[self._key]):
            raise _BadFileError("holds a canary that was changed")
        return {entry.canary.version: entry.canary for entry in found[self._key]}

    def _set_aside(self) -> str:
        """Keeps a bad file under the next free name beside it; says what became of it."""
        bad = [f"{self.path.name}.bad", *(f"{self.path.name}.bad{n}" for n in range(2, KEPT_BAD + 1))]
        free = next((name for name in bad if not os.path.lexists(self.path.with_name(name))), None)
        if free is None:
            return f"a new one takes its place; {KEPT_BAD} earlier bad ones are kept, up to {bad[-1]}"
        try:
            self.path.rename(self.path.with_name(free))
        except OSError as error:
            return f"it could not be kept: {error.strerror}"
        return f"it is kept as {free}, and a new one takes its place"


class CanaryFiles:
    """Those of all targets. They outlive a reload, which must not take away what only memory holds."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], CanaryFile] = {}

    def keep(self, targets: Collection[tuple[str, str]]) -> None:
        """Forgets all others; `targets`: the name and key of each."""
        self._files = {both: file for both, file in self._files.items() if both in targets}

    def file(self, folder: Path, target: str, key: str) -> CanaryFile:
        """The one of a target, in this folder from now on; see CanaryFile."""
        known = self._files.get((target, key))
        if known is None or known.path.parent != folder:
            known = self._files[target, key] = CanaryFile(folder, target, key, known.known if known else {})
        return known


class _BadFileError(Exception):
    """The file cannot be used. The message goes on where the file's name ends."""


def _digest(canary: KeptCiphertext) -> bytes:
    return hashlib.sha256(_CANARY.dump_json((canary,))).digest()


def _is_whole(entry: _Entry) -> bool:
    canary = entry.canary
    if not _VERSION.fullmatch(canary.version) or len(canary.plaintext_sha256) != _SHA256_BYTES:
        return False
    return entry.sha256 == _digest(canary)


def _content(path: Path) -> bytes:
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
            content = file.read(MAX_BYTES + 1)
    finally:
        os.close(opened)
    if len(content) > MAX_BYTES:
        raise _BadFileError(f"is larger than {MAX_BYTES} bytes")
    return content


def _write(path: Path, content: bytes) -> None:
    """Whoever reads `path` meanwhile, or after a crash, finds the old file or the new one. Raises OSError."""
    opened, name = tempfile.mkstemp(".new", f".{path.name}.", path.parent)  # its mode is 0600
    new = Path(name)
    try:
        with open(opened, "wb") as file:  # noqa: PTH123  by its descriptor
            file.write(content)
            file.flush()
            os.fsync(opened)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
