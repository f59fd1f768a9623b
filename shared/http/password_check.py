"""Checks the passwords of web.yml's users by bcrypt, off the event loop.

A bcrypt check takes tens of milliseconds of CPU by design. So one runs at a time, in a thread of its own, and few may
wait, in a queue that is fair to client addresses. A correct password is not hashed again: a fast keyed hash of it is
cached for each user.

A wrong password takes the same time for every name, that of the most expensive hash: the delay reveals no names.

After each failed password of a name, the next check of that name waits longer, up to two seconds, whoever sends it; a
cached one does not wait. Addresses take turns there, too: who guesses cannot keep the user out. Names of nobody are
delayed in the same way.
"""

import asyncio
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import bcrypt

from shared.http.fair_queue import FairQueue

MAX_WAITING_CHECKS: Final = 60
"""Checks that may wait: fewer than the relay handles webhooks at once, so callers with a token are never delayed."""
_FIRST_DELAY: Final = 0.125
_MAX_DELAY: Final = 2.0
"""Seconds between two checks of one name: two of them and their hashes fit into PASSWORD_CHECK_SECONDS."""
_MAX_CONCURRENT: Final = 20
"""Checks that have begun: those that wait for their hash, or for their name's delay."""
_MAX_DELAYED: Final = 4
"""Checks of one name that may wait while it is delayed, so that one name does not keep others waiting."""
_FORGET_SECONDS: Final = 900.0
"""After which failures no longer count."""
_MAX_NAMES: Final = 1000
"""Whose failures are counted. Each further name costs a check, so forgetting a name costs more than its delay."""
_BCRYPT_BYTES: Final = 72
"""bcrypt ignores the rest of a password; so did the program that made the hash."""


class _Guesses:
    def __init__(self) -> None:
        self.queue = FairQueue(1, MAX_WAITING_CHECKS)
        self._failures = 0
        self._failed_at = 0.0

    def compute_delay(self, now: float) -> float:
        elapsed = now - self._failed_at
        if not self._failures or elapsed > _FORGET_SECONDS:
            return 0.0
        return max(0.0, min(_MAX_DELAY, _FIRST_DELAY * 2.0 ** min(self._failures - 1, 10)) - elapsed)

    def record(self, now: float, *, is_correct: bool) -> None:
        forgotten = is_correct or now - self._failed_at > _FORGET_SECONDS
        self._failures = (0 if forgotten else self._failures) + (not is_correct)
        self._failed_at = now
        self.queue.max_waiting = _MAX_DELAYED if self._failures else MAX_WAITING_CHECKS


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
        self._guesses: OrderedDict[bytes, _Guesses] = OrderedDict()
        """By a hash of the name, which may be long; the oldest first."""
        self._executor = ThreadPoolExecutor(1, "bcrypt")  # no other work delays a correct password
        self._begun = FairQueue(_MAX_CONCURRENT, MAX_WAITING_CHECKS + 1 - _MAX_CONCURRENT)
        self._queue = FairQueue(1, MAX_WAITING_CHECKS)

    def get_hash(self, name: str) -> bytes | None:
        """Return a user's hash; None if there is no such user."""
        return self._hashes.get(name)

    async def check_password(self, name: str, password: bytes, peer: str) -> bool:
        """Whether the password is the user's. Cancelled if the client disconnects.

        Raises:
            QueueFullError: too many passwords are being checked.
        """
        digest = hmac.digest(self._key, password, "sha256")
        if self._is_cached(name, digest):
            return True
        guesses, loop = self._find_guesses(name), asyncio.get_running_loop()
        async with self._begun.acquire(peer), guesses.queue.acquire(peer):
            if self._is_cached(name, digest):  # an earlier check of the same password succeeded
                return True
            if delay := guesses.compute_delay(loop.time()):
                await asyncio.sleep(delay)
            async with self._queue.acquire(peer):
                is_correct = await loop.run_in_executor(
                    self._executor, self._check_hash, name, password[:_BCRYPT_BYTES]
                )
            guesses.record(loop.time(), is_correct=is_correct)
        if is_correct:
            self._verified_digests[name] = digest
        return is_correct

    def _find_guesses(self, name: str) -> _Guesses:
        key = hmac.digest(self._key, name.encode(errors="surrogatepass"), "sha256")
        guesses = self._guesses.setdefault(key, _Guesses())
        self._guesses.move_to_end(key)
        if len(self._guesses) > _MAX_NAMES:
            self._guesses.popitem(last=False)
        return guesses

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
