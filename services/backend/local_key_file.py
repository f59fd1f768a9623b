"""The service's local key: a file that wraps data keys while KMS cannot, and this instance's use of it.

The file has 32 random bytes that only its owner may read. It is created at the first start, so that it exists in an
outage. All instances of one database have the same local key; the database knows its fingerprint.

An instance with another local key is refused at its start, and never wraps a data key. A missing file is created only
if no data key and no other instance needs the missing one; otherwise each check opens it again, until it is restored.
If two instances create one at the same moment, the first that registers its fingerprint wins, and the other removes
its file. Without a local key the service runs, but an outage of KMS affects it more.
"""

import asyncio
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from services.backend.aes_gcm import decrypt, encrypt
from shared.atomic_file import create_file
from shared.config.file_checks import FileCheckError, check_writable_folder
from shared.keyring.database import Database
from shared.keyring.instances import InstanceHeartbeat, may_replace_local_key, register_local_key
from shared.keyring.model import KEY_BYTES, compute_fingerprint
from shared.keyring.store import OtherLocalKeyError
from shared.keyring.wrapping import UnwrapError


class LocalKeyError(FileCheckError):
    """The file of the local key cannot be used."""


class LocalKeyMissingError(LocalKeyError):
    """The file is missing, and must not be created again."""

    def __init__(self, file: Path) -> None:
        super().__init__(f"{file}: is missing", "put it back, from another instance or a backup")


@dataclass(frozen=True, slots=True)
class LocalKey:
    secret: bytes = field(repr=False)
    is_new: bool = False
    """Whether its file was made just now, so that nothing can be wrapped by it."""


def read_or_create(file: Path, *, may_create: bool) -> LocalKey:
    """The key in `file`.

    A missing file may not be made where data keys are wrapped by the key that is gone: it would only hide the loss.
    Raises LocalKeyMissingError, or FileCheckError if it cannot be made, others may read it, or it is no key.
    """
    created = False
    try:
        if may_create and not file.exists():
            check_writable_folder(file.parent)
            created = create_file(file, os.urandom(KEY_BYTES))
        with file.open("rb") as opened:
            permissions = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            if permissions & 0o077:
                raise LocalKeyError(f"{file}: others may read it (mode {permissions:04o})", f"run: chmod 600 {file}")
            key = opened.read(KEY_BYTES + 1)
    except FileNotFoundError:
        raise LocalKeyMissingError(file) from None
    except OSError as error:
        raise LocalKeyError(f"{file}: {error.strerror}", "this user needs to read and make it") from None
    if len(key) != KEY_BYTES:
        raise LocalKeyError(f"{file}: expected exactly {KEY_BYTES} bytes", "restore it from a backup, or move it away")
    return LocalKey(key, created)


log = structlog.get_logger(__name__)


class InstanceLocalKey:
    """Wraps and unwraps, while there is a local key; the database knows its fingerprint."""

    def __init__(self, file: Path, database: Database, heartbeat: InstanceHeartbeat) -> None:
        self._file = file
        self._database = database
        self._heartbeat = heartbeat
        self._key: LocalKey | None = None
        self.missing_reason: str | None = f"local_key_file {file}: was not read yet"

    @property
    def fingerprint(self) -> bytes | None:
        """Of the local key; None if there is none."""
        return compute_fingerprint(self._key.secret) if self._key else None

    def wrap(self, plaintext: bytes, aad: bytes) -> bytes:
        """Raises LocalKeyError if there is no local key."""
        if self._key is None:
            raise LocalKeyError(f"no data key can be made, {self.missing_reason}")
        return encrypt(self._key.secret, plaintext, aad)

    def unwrap(self, ciphertext: bytes, aad: bytes) -> bytes:
        """Raises DecryptionError, and UnwrapError if there is no local key."""
        if self._key is None:
            raise UnwrapError(f"it is wrapped by the local key, {self.missing_reason}")
        return decrypt(self._key.secret, ciphertext, aad)

    async def open(self) -> None:
        """Reads the file, or makes it; a missing file that may not be made is no error.

        Raises DatabaseError, and FileCheckError if the file cannot be used or the other instances have another one.
        """
        try:
            may_create = await self._database.read(
                lambda connection: may_replace_local_key(
                    connection, self._database.read_clock(connection), self._heartbeat.instance
                )
            )
            key = await asyncio.to_thread(read_or_create, self._file, may_create=may_create)
            await self._register_key(key)
        except LocalKeyMissingError as error:
            self._set_missing(str(error))
        except OtherLocalKeyError:
            raise LocalKeyError(
                f"{self._file}: the other instances of this database have another local key",
                "copy their file here, or, if it is lost, move this one away",
            ) from None
        else:
            self._key, self.missing_reason = key, None

    async def _register_key(self, key: LocalKey) -> None:
        """Stores its fingerprint; where another instance was faster, a file that was just made goes away again."""
        try:
            await self._database.write_exclusively(
                lambda connection: register_local_key(
                    connection, self._database.read_clock(connection), self._heartbeat, compute_fingerprint(key.secret)
                )
            )
        except OtherLocalKeyError:
            if not key.is_new:
                raise
            await asyncio.to_thread(self._file.unlink)
            raise LocalKeyMissingError(self._file) from None

    async def reopen_if_missing(self) -> None:
        """Opens it if there was none: somebody may have put it back. Raises DatabaseError."""
        if self._key is None:
            try:
                await self.open()
            except FileCheckError as error:
                self._set_missing(str(error))

    def reject(self) -> None:
        """The database names another local key: this one wraps nothing until `reopen_if_missing` finds that one."""
        self._key = None
        self._set_missing(f"{self._file}: the other instances have another local key; copy their file here")

    def _set_missing(self, error: str) -> None:
        error = f"local_key_file {error}"
        if self.missing_reason != error:
            log.error(
                "local key is missing; after a restart in a KMS outage nothing can be read or written", error=error
            )
        self.missing_reason = error
