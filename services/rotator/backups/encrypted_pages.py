"""A file of encrypted pages: AES-256-GCM, one page at a time, so that the whole file is never in memory.

The file begins with one line, the header, from which the writer can find the file's key again. Each page is four bytes
of length and the ciphertext. The nonce is the page's number, because a key encrypts one file only. The page's number,
the header's SHA-256 and whether it is the last page are authenticated: a page that is changed, moved, left out or taken
from another file is detected, and so is a file that ends too early.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.atomic_file import sync_folder

KEY_BYTES: Final = 32
_MAX_HEADER_BYTES: Final = 64 * 1024
MAX_PAGE_BYTES: Final = 16 * 1024 * 1024
"""Of a page's ciphertext, at most."""
_LENGTH_BYTES: Final = 4


class FileDamagedError(Exception):
    """The file is incomplete or changed; the message is one sentence."""


class EncryptedFileWriter:
    """Writes `file`, which is there as a whole after `finish`, or not at all. Every method may raise OSError."""

    def __init__(self, file: Path, header: bytes, key: bytes) -> None:
        """Begins beside `file`, readable by its owner only. `header` is one line; `key` is used for no other file."""
        self._file, self._temporary_file = file, file.with_name(f".{file.name}.part")
        self._cipher, self._header, self._page_number = AESGCM(key), header, 0
        self._temporary_file.unlink(missing_ok=True)  # of a runner that was killed
        self._stream = os.fdopen(os.open(self._temporary_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._stream.write(header + b"\n")

    def write_page(self, plaintext: bytes, *, last: bool = False) -> None:
        """Adds a page."""
        authenticated = _build_aad(self._header, self._page_number, last=last)
        ciphertext = self._cipher.encrypt(_build_nonce(self._page_number), plaintext, authenticated)
        self._stream.write(len(ciphertext).to_bytes(_LENGTH_BYTES, "big") + ciphertext)
        self._page_number += 1

    def finish(self, plaintext: bytes) -> None:
        """Adds the last page. The file has its name, and is on the disk, when this returns."""
        self.write_page(plaintext, last=True)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        if self._file.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._temporary_file.rename(self._file)
        sync_folder(self._file.parent)

    def discard(self) -> None:
        """Leaves nothing of a file that is not finished."""
        with suppress(OSError):  # the rest of the buffer does not fit
            self._stream.close()
        self._temporary_file.unlink(missing_ok=True)


def read_header(file: Path) -> bytes:
    """The first line. Raises FileDamagedError, OSError."""
    with file.open("rb") as stream:
        line = stream.readline(_MAX_HEADER_BYTES)
    if not line.endswith(b"\n"):
        raise FileDamagedError("it does not begin with a header")
    return line[:-1]


def read_pages(file: Path, key: bytes) -> Iterator[tuple[bytes, bool]]:
    """Each page, and whether it is the last; all of them or FileDamagedError. Raises OSError."""
    cipher, first = AESGCM(key), read_header(file)
    with file.open("rb") as stream:
        stream.seek(len(first) + 1)
        number, last = 0, False
        while not last:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "big")
            if not 0 < length <= MAX_PAGE_BYTES or len(ciphertext := stream.read(length)) < length:
                raise FileDamagedError(f"it ends in the middle, or page {number} is damaged")
            last = not stream.peek(1)
            try:
                yield cipher.decrypt(_build_nonce(number), ciphertext, _build_aad(first, number, last=last)), last
            except InvalidTag:
                raise FileDamagedError(f"page {number} is damaged, or the file was cut off after it") from None
            number += 1


def _build_nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _build_aad(header: bytes, number: int, *, last: bool) -> bytes:
    return sha256(header).digest() + number.to_bytes(8, "big") + bytes([last])
