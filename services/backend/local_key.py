"""The key on this machine's own disk that wraps data keys while KMS cannot.

A file of 32 random bytes that its owner alone may read, made at the first start, so that an outage finds it there. All
instances of one database have the same; what is known of it there is its fingerprint.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from services.backend.sealing import encrypt, decrypt
from shared.keyring.model import KEY_BYTES, compute_fingerprint


class LocalKeyError(Exception):
    """The file cannot be used; the message is one sentence with the next step, and never its content."""


class LocalKeyMissingError(LocalKeyError):
    """The file is not there, and may not be made anew."""

    def __init__(self, file: Path) -> None:
        super().__init__(f"local_key_file {file}: is missing; put it back, from another instance or a backup")


class LocalKey:
    """Wraps and unwraps, in memory."""

    def __init__(self, key: bytes, *, is_new: bool = False) -> None:
        self._key = key
        self.is_new = is_new
        """Whether its file was made just now, so that nothing can be wrapped by it."""

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that tell this local key from every other, and nothing else about it."""
        return compute_fingerprint(self._key)

    def wrap(self, plaintext: bytes, aad: bytes) -> bytes:
        """`plaintext`, sealed and bound to `aad`."""
        return encrypt(self._key, plaintext, aad)

    def unwrap(self, ciphertext: bytes, aad: bytes) -> bytes:
        """What `wrap` was given. Raises SealBrokenError."""
        return decrypt(self._key, ciphertext, aad)


def read_or_create(file: Path, *, may_create: bool) -> LocalKey:
    """The key in `file`.

    Args:
        file: where it is.
        may_create: whether a missing file may be made. Where data keys are wrapped by a key that is gone, a new one
            would only hide the loss.

    Raises:
        LocalKeyMissingError: it is missing and may not be made.
        LocalKeyError: it cannot be made, others may read it, or it is no key.
    """
    try:
        made = may_create and not file.exists() and _create_file(file)
        with file.open("rb") as opened:
            permissions = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            if permissions & 0o077:
                raise LocalKeyError(
                    f"local_key_file {file}: others may read it (mode {permissions:04o}); run: chmod 600 {file}"
                )
            key = opened.read(KEY_BYTES + 1)
    except FileNotFoundError:
        if not may_create:
            raise LocalKeyMissingError(file) from None
        raise LocalKeyError(
            f"local_key_file {file}: cannot be made; make its folder first: mkdir -p {file.parent}"
        ) from None
    except OSError as error:
        raise LocalKeyError(f"local_key_file {file}: {error.strerror}; this user needs to read and make it") from None
    if len(key) != KEY_BYTES:
        raise LocalKeyError(
            f"local_key_file {file}: expected exactly {KEY_BYTES} bytes; restore it from a backup, or move it away"
        )
    return LocalKey(key, is_new=made)


def _create_file(file: Path) -> bool:
    """Puts the whole file in place at once, or nothing: a file that somebody else made meanwhile stays."""
    made = False
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
    try:
        with open(descriptor, "wb") as opened:  # noqa: PTH123 - a Path cannot open a descriptor
            opened.write(os.urandom(KEY_BYTES))
            opened.flush()
            os.fsync(opened.fileno())
        with suppress(FileExistsError):
            os.link(name, file)
            made = True
    finally:
        Path(name).unlink()
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return made
