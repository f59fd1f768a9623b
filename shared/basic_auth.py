"""Users of web.yml: a name and a password → whether it is right, by bcrypt, off the event loop.

A bcrypt check takes tens of milliseconds of a core, on purpose. So only one runs at a time, in a thread of its own, and
few wait for it. The addresses take turns, and where every place is taken, one of the address that has most goes to an
address with fewer: none shuts out another. Those of one address, as behind an ingress, are checked in their order. A
password that was right is not hashed again: a fast keyed hash of it is kept for each user.

A wrong password takes the same time whoever it is for, so that the delay tells no names: that of the dearest hash.
"""

import asyncio
import hmac
import ipaddress
import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import bcrypt

WAITING: Final = 60
"""Checks that may wait: fewer than the relay has webhooks in hand, so that who has a token is never behind them."""
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
        network = _network(peer)
        if sum(map(len, self._waiting.values())) >= WAITING:
            self._make_room(len(self._waiting.get(network, ())))
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(network, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():  # in the same moment it was let go, or had to leave
                if mine.exception() is None:
                    self._end()
            elif mine in (own := self._waiting.get(network, deque())):
                own.remove(mine)
                if not own:
                    del self._waiting[network]
            raise

    def _make_room(self, own: int) -> None:
        """For one more of an address that has `own`: the youngest of those that have most. Raises BusyError."""
        most = max(self._waiting.values(), key=len)
        if len(most) <= own + 1:
            raise BusyError
        youngest = most.pop()
        if not youngest.done():
            youngest.set_exception(BusyError())

    def _end(self) -> None:
        """Lets the next one go: the first of the address whose turn it is."""
        while self._waiting:
            network, own = self._waiting.popitem(last=False)
            following = own.popleft()
            if own:
                self._waiting[network] = own
            if not following.done():  # it was not cancelled in the same moment
                following.set_result(None)
                return
        self._running = False


def _network(peer: str) -> str:
    """What counts as one address: of IPv6 the /64, which is the least that anybody is given."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return address.exploded[:19]
    return peer


def _cost(stored: bytes) -> int:
    return int(stored[4:6])
