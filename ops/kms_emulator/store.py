"""Key rings and keys, in memory or in a folder, which one emulator at a time locks.

Changes run in a thread, one after the other: each builds the next state, replaces the file, and only then becomes
visible. The file has key material in plaintext: an emulator protects no secret.
"""

import asyncio
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import structlog
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ops.kms_emulator import resource_names
from ops.kms_emulator.model import Key, StatusError, already_exists, create_material, not_found
from shared.atomic_file import replace_file
from shared.http.server import StartError


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """A folder, created if missing, that is ours while the body runs, or until this process ends, however it ends.

    Raises:
        StartError: it is unusable, or another emulator's.
    """
    with ExitStack() as stack:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, opened)
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            cause = "another emulator uses it" if isinstance(error, BlockingIOError) else error.strerror
            raise StartError(f"cannot keep state in {path}: {cause}; set another --data") from None
        yield


log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _StoredState:
    rings: dict[str, float] = field(default_factory=dict)
    """When each key ring was created, in Unix seconds."""
    keys: dict[str, Key] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    """EKM connections and single-tenant HSM instances, as Google's JSON."""


_FILE = TypeAdapter(dict[int, _StoredState], config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))
_FORMAT = 1
"""The only key of the file's mapping: a later layout gets the next number."""


class EmulatorStore:
    """The key rings and keys. Safe for concurrent calls on one event loop."""

    def __init__(self, folder: Path | None, clock: Callable[[], float]) -> None:
        self._file = folder / "state.json" if folder else None
        self.clock = clock
        self.protected: dict[str, Mapping[str, object]] = {}
        """What the inventory says of a version, by its name: the fields of a ProtectedResourcesSummary."""
        self._now = _load_state(self._file) if self._file else _StoredState()
        self._changing = threading.Lock()

    def get_key_ring_time(self, name: str) -> float:
        """When a key ring was created. Raises NOT_FOUND."""
        if name not in self._now.rings:
            raise not_found("KeyRing", name)
        return self._now.rings[name]

    def list_key_rings(self, location: str) -> list[str]:
        """The names of the key rings of a location, in order."""
        return sorted(name for name in self._now.rings if name.startswith(f"{location}/keyRings/"))

    async def get_key(self, name: str) -> Key:
        """A key as it is now. Raises NOT_FOUND."""
        key = self._now.keys.get(name)
        if key is None:
            raise not_found("CryptoKey", name)
        if key.with_due_changes(self.clock()) == key:
            return key
        return await self.update_key(name, lambda due: due)  # with a destruction, the material leaves the disk too

    async def list_keys(self, ring: str) -> list[Key]:
        """The keys of a key ring, by name. Raises NOT_FOUND."""
        self.get_key_ring_time(ring)
        return [
            await self.get_key(name) for name in sorted(self._now.keys) if resource_names.get_key_ring(name) == ring
        ]

    async def add_key_ring(self, name: str) -> float:
        """Create a key ring; return its time. Raises ALREADY_EXISTS."""

        def add(now: _StoredState) -> _StoredState:
            if name in now.rings:
                raise already_exists("KeyRing", name)
            return replace(now, rings={**now.rings, name: self.clock()})

        return (await self._apply(add)).rings[name]

    async def add_key(self, key: Key) -> None:
        """Creates a key in a key ring that exists. Raises NOT_FOUND and ALREADY_EXISTS."""

        def add(now: _StoredState) -> _StoredState:
            if resource_names.get_key_ring(key.name) not in now.rings:
                raise not_found("KeyRing", resource_names.get_key_ring(key.name))
            if key.name in now.keys:
                raise already_exists("CryptoKey", key.name)
            return replace(now, keys={**now.keys, key.name: key})

        await self._apply(add)

    def get_backend(self, name: str) -> str:
        """An EKM connection or a single-tenant HSM instance, as Google's JSON. Raises NOT_FOUND."""
        if name not in self._now.backends:
            raise not_found("SingleTenantHsmInstance" if "/singleTenantHsm" in name else "EkmConnection", name)
        return self._now.backends[name]

    async def add_backend(self, name: str, document: str) -> None:
        """Create an EKM connection or a single-tenant HSM instance. Raises ALREADY_EXISTS."""

        def add(now: _StoredState) -> _StoredState:
            if name in now.backends:
                raise already_exists("SingleTenantHsmInstance" if "/singleTenantHsm" in name else "EkmConnection", name)
            return replace(now, backends={**now.backends, name: document})

        await self._apply(add)

    async def replace_backend(self, name: str, document: str) -> None:
        await self._apply(lambda now: replace(now, backends={**now.backends, name: document}))

    def list_keys_in(self, backend: str) -> list[str]:
        """The names of the keys in an EKM connection or a single-tenant HSM instance."""
        return [key.name for key in self._now.keys.values() if key.backend == backend]

    def get_protection_level(self, key: str | None) -> str:
        """Of a key by its name; SOFTWARE where there is none."""
        found = self._now.keys.get(key or "")
        return found.protection_level if found else "SOFTWARE"

    async def update_key(self, name: str, change: Callable[[Key], Key]) -> Key:
        """Replace a key by the result of `change`, and return it. Raises NOT_FOUND, and what `change` raises."""

        def apply(now: _StoredState) -> _StoredState:
            if name not in now.keys:
                raise not_found("CryptoKey", name)
            return replace(now, keys={**now.keys, name: change(now.keys[name].with_due_changes(self.clock()))})

        return (await self._apply(apply)).keys[name]

    async def create_missing_keys(self, keys: Iterable[str]) -> None:
        """Create the missing ones of these keys: key ring, key, and version 1 as its primary. Raises StatusError."""
        for name in map(resource_names.parse_key_name, keys):
            if resource_names.get_key_ring(name) not in self._now.rings:
                await self.add_key_ring(resource_names.get_key_ring(name))
            if name not in self._now.keys:
                now = self.clock()
                await self.add_key(Key(name, now).with_new_version(create_material(), now).with_primary(1, now))

    async def _apply(self, change: Callable[[_StoredState], _StoredState]) -> _StoredState:
        # The whole change is the thread's, so a caller that is cancelled leaves no half of it behind.
        return await asyncio.to_thread(self._apply_and_write, change)

    def _apply_and_write(self, change: Callable[[_StoredState], _StoredState]) -> _StoredState:
        with self._changing:
            after = change(self._now)
            if self._file:
                try:
                    replace_file(self._file, _FILE.dump_json({_FORMAT: after}))
                except OSError as error:
                    log.exception("state cannot be written; the change is refused", file=str(self._file))
                    message = f"the emulator cannot write {self._file}: {error.strerror}; set another --data"
                    raise StatusError(grpc.StatusCode.INTERNAL, message) from None
            self._now = after
            return after


def _load_state(file: Path) -> _StoredState:
    """Return the state in `file`; empty if there is no file. Raises StartError."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return _StoredState()
    except OSError as error:
        raise StartError(f"cannot keep state in {file.parent}: {error.strerror}; set another --data") from None
    try:
        return _FILE.validate_json(content)[_FORMAT]
    except (ValidationError, KeyError):  # neither text is logged: it would quote key material
        raise StartError(f"{file} is no state of this emulator; move it away to start with nothing") from None
