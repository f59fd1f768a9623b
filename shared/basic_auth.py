"""Users of web.yml: a name and a password → whether it is right, by bcrypt, off the event loop.

A bcrypt check takes tens of milliseconds of a core, on purpose. So only one runs at a time, in a thread of its own,
few wait for it, and a password that was right is not hashed again: a fast keyed hash of it is kept for each user.
"""

import asyncio
import hmac
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import bcrypt

_WAITING = 32
"""How many checks may wait for their turn."""
_BCRYPT_BYTES = 72
"""bcrypt reads no more of a password; what made the hash cut it there, too."""


class BusyError(Exception):
    """Too many passwords are being checked."""


class Users:
    """Checks passwords.

    Args:
        hashes: names → bcrypt hashes; at least one.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {name: value.encode() for name, value in hashes.items()}
        # A name that nobody has costs a check too, of the dearest hash, so that the delay tells no names.
        self._of_nobody = max(self._hashes.values(), key=lambda value: value[4:6])
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}  # at most one for each user, so it needs no other bound
        self._one = ThreadPoolExecutor(1, "bcrypt")  # no other's work can keep a right password waiting
        self._waiting = 0

    async def admits(self, name: str, password: bytes) -> bool:
        """Whether the password is the user's. Raises BusyError."""
        digest = hmac.digest(self._key, password, "sha256")
        if hmac.compare_digest(digest, self._right.get(name, b"")):
            return True
        if self._waiting >= _WAITING:
            raise BusyError
        self._waiting += 1
        try:
            stored = self._hashes.get(name, self._of_nobody)
            right = await asyncio.get_running_loop().run_in_executor(
                self._one, bcrypt.checkpw, password[:_BCRYPT_BYTES], stored
            )
        finally:
            self._waiting -= 1
        if not right or name not in self._hashes:
            return False
        self._right[name] = digest
        return True
