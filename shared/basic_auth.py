"""Users of web.yml: a name and a password → whether it is right, by bcrypt, off the event loop.

A bcrypt check takes tens of milliseconds of a core, on purpose. So only one runs at a time, in a thread of its own, and
few wait for it: some of each address, and the addresses take turns, so that none shuts out another. A password that was
right is not hashed again: a fast keyed hash of it is kept for each user.

A wrong password takes the same time whoever it is for, so that the delay tells no names: that of the dearest hash.
"""

import asyncio
import hmac
import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import bcrypt

WAITING: Final = 64
"""Checks that may wait."""
SHARE: Final = 8
"""Of them, those of one address."""
_BCRYPT_BYTES: Final = 72
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
        self._dearest = max(map(_cost, self._hashes.values()))
        # Nobody's; each cost once, up to the dearest.
        salt = bcrypt.gensalt(4)[7:]
        self._padding = {cost: b"$2b$%02d$" % cost + salt + b"." * 31 for cost in range(4, self._dearest + 1)}
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}  # at most one for each user, so it needs no other bound
        self._one = ThreadPoolExecutor(1, "bcrypt")  # no other's work can keep a right password waiting
        self._running = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def admits(self, name: str, password: bytes, peer: str) -> bool:
        """Whether the password is the user's. A caller that is gone cancels it.

        Args:
            name: of whoever it is.
            password: as it was sent.
            peer: the address that sent it.

        Raises:
            BusyError: too many others wait.
        """
        digest = hmac.digest(self._key, password, "sha256")
        if self._is_known(name, digest):
            return True
        await self._begin(peer)
        try:
            if self._is_known(name, digest):  # somebody before it sent the same
                return True
            right = await asyncio.get_running_loop().run_in_executor(
                self._one, self._check, name, password[:_BCRYPT_BYTES]
            )
        finally:
            self._end()
        if right:
            self._right[name] = digest
        return right

    def _is_known(self, name: str, digest: bytes) -> bool:
        return hmac.compare_digest(digest, self._right.get(name, b""))

    def _check(self, name: str, password: bytes) -> bool:
        stored = self._hashes.get(name)
        if stored is None:
            bcrypt.checkpw(password, self._padding[self._dearest])
            return False
        if bcrypt.checkpw(password, stored):
            return True
        # Each step of cost doubles the time: a check of cost c, and then c, c+1, … up to the dearest but one, take as
        # long as one of the dearest.
        for cost in range(_cost(stored), self._dearest):
            bcrypt.checkpw(password, self._padding[cost])
        return False

    async def _begin(self, peer: str) -> None:
        """Waits until no check runs and it is the address's turn. Raises BusyError."""
        if not self._running:
            self._running = True
            return
        own = self._waiting.get(peer, deque())
        if len(own) >= SHARE:
            oldest = own.popleft()  # of all, its sender is the likeliest to be gone
            if not oldest.done():
                oldest.set_exception(BusyError())
        elif sum(map(len, self._waiting.values())) >= WAITING:
            raise BusyError
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(peer, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():  # in the same moment it was let go, or had to leave
                if mine.exception() is None:
                    self._end()
            elif mine in (own := self._waiting.get(peer, deque())):
                own.remove(mine)
                if not own:
                    del self._waiting[peer]
            raise

    def _end(self) -> None:
        """Lets the next one go: the first of the address whose turn it is."""
        while self._waiting:
            peer, own = self._waiting.popitem(last=False)
            following = own.popleft()
            if own:
                self._waiting[peer] = own
            if not following.done():  # it was not cancelled in the same moment
                following.set_result(None)
                return
        self._running = False


def _cost(stored: bytes) -> int:
    return int(stored[4:6])
