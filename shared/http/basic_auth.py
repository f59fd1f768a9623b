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

MAX_WAITING_CHECKS: Final = 60
"""Checks that may wait: fewer than the relay has webhooks in hand, so that who has a token is never behind them."""
_BCRYPT_BYTES: Final = 72
"""bcrypt reads no more of a password; what made the hash cut it there, too."""


class TooManyPasswordChecksError(Exception):
    """Too many passwords are being checked."""


class PasswordChecker:
    """Checks passwords.

    Args:
        hashes: names → bcrypt hashes; at least one.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {name: value.encode() for name, value in hashes.items()}
        self._max_cost = max(map(_parse_cost, self._hashes.values()))
        # Nobody's; each cost once, up to the dearest.
        salt = bcrypt.gensalt(4)[7:]
        self._padding_hashes = {cost: b"$2b$%02d$" % cost + salt + b"." * 31 for cost in range(4, self._max_cost + 1)}
        self._key = secrets.token_bytes(32)
        self._verified_digests: dict[str, bytes] = {}  # at most one for each user, so it needs no other bound
        self._executor = ThreadPoolExecutor(1, "bcrypt")  # no other's work can keep a right password waiting
        self._is_running = False
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def check_password(self, name: str, password: bytes, peer: str) -> bool:
        """Whether the password is the user's. A caller that is gone cancels it.

        Args:
            name: of whoever it is.
            password: as it was sent.
            peer: the address that sent it.

        Raises:
            TooManyPasswordChecksError: too many others wait.
        """
        digest = hmac.digest(self._key, password, "sha256")
        if self._is_cached(name, digest):
            return True
        await self._acquire_slot(peer)
        try:
            if self._is_cached(name, digest):  # somebody before it sent the same
                return True
            right = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._check_hash, name, password[:_BCRYPT_BYTES]
            )
        finally:
            self._release_slot()
        if right:
            self._verified_digests[name] = digest
        return right

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

    async def _acquire_slot(self, peer: str) -> None:
        """Waits until no check runs and it is the address's turn. Raises TooManyPasswordChecksError."""
        if not self._is_running:
            self._is_running = True
            return
        network = _parse_client_network(peer)
        if sum(map(len, self._queues.values())) >= MAX_WAITING_CHECKS:
            self._evict_waiting(len(self._queues.get(network, ())))
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(network, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():  # in the same moment it was let go, or had to leave
                if mine.exception() is None:
                    self._release_slot()
            elif mine in (own := self._queues.get(network, deque())):
                own.remove(mine)
                if not own:
                    del self._queues[network]
            raise

    def _evict_waiting(self, waiting_count: int) -> None:
        """Evict the youngest check of the address with most, for one of an address that has `waiting_count`.

        Raises:
            TooManyPasswordChecksError: no address has more.
        """
        most = max(self._queues.values(), key=len)
        if len(most) <= waiting_count + 1:
            raise TooManyPasswordChecksError
        youngest = most.pop()
        if not youngest.done():
            youngest.set_exception(TooManyPasswordChecksError())

    def _release_slot(self) -> None:
        """Lets the next one go: the first of the address whose turn it is."""
        while self._queues:
            network, own = self._queues.popitem(last=False)
            following = own.popleft()
            if own:
                self._queues[network] = own
            if not following.done():  # it was not cancelled in the same moment
                following.set_result(None)
                return
        self._is_running = False


def _parse_client_network(peer: str) -> str:
    """What counts as one address: of IPv6 the /64, which is the least that anybody is given."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return address.exploded[:19]
    return peer


def _parse_cost(stored: bytes) -> int:
    return int(stored[4:6])
