"""Checks the passwords of web.yml's users by bcrypt, off the event loop.

A bcrypt check takes tens of milliseconds of CPU by design. So one runs at a time, in a thread of its own, and few may
wait. Client addresses are served in rotation. If the queue is full, a check of the address with most is dropped for an
address with fewer, so that no client locks out another. Checks of one address, as behind an ingress, keep their order.
A correct password is not hashed again: a fast keyed hash of it is cached for each user.

A wrong password takes the same time for every name, that of the most expensive hash: the delay reveals no names.
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

PASSWORDS_SCOPE_KEY: Final = "keypulse.passwords"
"""The key in a request's scope for the PasswordChecker of web.yml's users, if it has any."""
MAX_WAITING_CHECKS: Final = 60
"""Checks that may wait: fewer than the relay handles webhooks at once, so callers with a token are never delayed."""
_BCRYPT_BYTES: Final = 72
"""bcrypt ignores the rest of a password; so did the program that made the hash."""


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
        # Hashes of no password, one for each cost up to the highest.
        salt = bcrypt.gensalt(4)[7:]
        self._padding_hashes = {cost: b"$2b$%02d$" % cost + salt + b"." * 31 for cost in range(4, self._max_cost + 1)}
        self._key = secrets.token_bytes(32)
        self._verified_digests: dict[str, bytes] = {}  # at most one for each user, so it needs no other bound
        self._executor = ThreadPoolExecutor(1, "bcrypt")  # no other work delays a correct password
        self._is_running = False
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

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
            TooManyPasswordChecksError: the queue is full.
        """
        digest = hmac.digest(self._key, password, "sha256")
        if self._is_cached(name, digest):
            return True
        await self._acquire_slot(peer)
        try:
            if self._is_cached(name, digest):  # an earlier check of the same password succeeded
                return True
            is_correct = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._check_hash, name, password[:_BCRYPT_BYTES]
            )
        finally:
            self._release_slot()
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

    async def _acquire_slot(self, peer: str) -> None:
        """Wait until no check runs and the address is next. Raises TooManyPasswordChecksError."""
        if not self._is_running:
            self._is_running = True
            return
        network = _parse_client_network(peer)
        if sum(map(len, self._queues.values())) >= MAX_WAITING_CHECKS:
            self._evict_waiting(len(self._queues.get(network, ())))
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(network, deque()).append(ticket)
        try:
            await ticket
        except asyncio.CancelledError:
            if not ticket.cancelled():  # at the same moment it was started or evicted
                if ticket.exception() is None:
                    self._release_slot()
            elif ticket in (own := self._queues.get(network, deque())):
                own.remove(ticket)
                if not own:
                    del self._queues[network]
            raise

    def _evict_waiting(self, waiting_count: int) -> None:
        """Evict the youngest check of the address with most, for one of an address that has `waiting_count`.

        Raises:
            TooManyPasswordChecksError: no address has more.
        """
        longest = max(self._queues.values(), key=len)
        if len(longest) <= waiting_count + 1:
            raise TooManyPasswordChecksError
        youngest = longest.pop()
        if not youngest.done():
            youngest.set_exception(TooManyPasswordChecksError())

    def _release_slot(self) -> None:
        """Start the next check: the first of the next address."""
        while self._queues:
            network, own = self._queues.popitem(last=False)
            following = own.popleft()
            if own:
                self._queues[network] = own
            if not following.done():  # it was not cancelled at the same moment
                following.set_result(None)
                return
        self._is_running = False


def _parse_client_network(peer: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of IPv6, the smallest network that a site gets."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return address.exploded[:19]
    return peer


def _parse_cost(stored: bytes) -> int:
    return int(stored[4:6])
