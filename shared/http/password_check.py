"""Checks the passwords of web.yml's users by bcrypt, off the event loop.

A bcrypt check takes tens of milliseconds of CPU by design. So one runs at a time, in a thread of its own, and few may
wait, in a queue that is fair to client addresses. A correct password is not hashed again: a fast keyed hash of it is
cached for each user.

A wrong password takes the same time for every name, that of the most expensive hash: the delay reveals no names.
"""

import asyncio
import hmac
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import bcrypt
from starlette.types import Scope

from shared.http.fair_queue import FairQueue

_SCOPE_KEY: Final = "keypulse.passwords"
"""The key in a request's scope for a function that returns the PasswordChecker of now."""
MAX_WAITING_CHECKS: Final = 60
"""Checks that may wait: fewer than the relay handles webhooks at once, so callers with a token are never delayed."""
_BCRYPT_BYTES: Final = 72
"""bcrypt ignores the rest of a password; so did the program that made the hash."""


def set_passwords(scope: Scope, get: Callable[[], "PasswordChecker | None"]) -> None:
    """Let a request find the passwords of web.yml's users, also later, when these may have changed."""
    scope[_SCOPE_KEY] = get


def find_passwords(scope: Scope) -> "PasswordChecker | None":
    """Return the passwords of web.yml's users as they are now; None if it has none."""
    get: Callable[[], PasswordChecker | None] | None = scope.get(_SCOPE_KEY)
    return get() if get else None


class PasswordChecker:
    """Checks passwords.

    Args:
        hashes: names → bcrypt hashes; at least one.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {name: value.encode() for name, value in hashes.items()}
        self._max_cost = max(map(_parse_cost, self._hashes.values()))
        # Hashes of no password, one for each cost up to the highest.
        salt = bcrypt.gensalt(4)[7:]
        self._padding_hashes = {cost: b"$2b$%02d$" % cost + salt + b"." * 31 for cost in range(4, self._max_cost + 1)}
        self._key = secrets.token_bytes(32)
        self._verified_digests: dict[str, bytes] = {}  # at most one for each user, so it needs no other bound
        self._executor = ThreadPoolExecutor(1, "bcrypt")  # no other work delays a correct password
        self._queue = FairQueue(1, MAX_WAITING_CHECKS)

    def get_hash(self, name: str) -> bytes | None:
        """Return a user's hash; None if there is no such user."""
        return self._hashes.get(name)

    async def check_password(self, name: str, password: bytes, peer: str) -> bool:
        """Whether the password is the user's. Cancelled if the client disconnects.

        Args:
            name: of the user.
            password: as received.
            peer: the client's address.

        Raises:
            QueueFullError: too many passwords are being checked.
        """
        digest = hmac.digest(self._key, password, "sha256")
        if self._is_cached(name, digest):
            return True
        async with self._queue.acquire(peer):
            if self._is_cached(name, digest):  # an earlier check of the same password succeeded
                return True
            is_correct = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._check_hash, name, password[:_BCRYPT_BYTES]
            )
        if is_correct:
            self._verified_digests[name] = digest
        return is_correct

    def _is_cached(self, name: str, digest: bytes) -> bool:
        return hmac.compare_digest(digest, self._verified_digests.get(name, b""))

    def _check_hash(self, name: str, password: bytes) -> bool:
        stored = self._hashes.get(name)
        if stored is None:
            bcrypt.checkpw(password, self._padding_hashes[self._max_cost])
            return False
        if bcrypt.checkpw(password, stored):
            return True
        # Each step of cost doubles the time: a check of cost c, and then c, c+1, … up to the dearest but one, take as
        # long as one of the dearest.
        for cost in range(_parse_cost(stored), self._max_cost):
            bcrypt.checkpw(password, self._padding_hashes[cost])
        return False


def _parse_cost(stored: bytes) -> int:
    return int(stored[4:6])
