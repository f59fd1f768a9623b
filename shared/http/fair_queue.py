"""Slots for work that callers without credentials cause: client addresses get them in rotation.

If the queue is full, the youngest work of the address with most is dropped for an address with fewer, so that no client
locks out another. Work of one address, as behind an ingress, keeps its order.
"""

import asyncio
import ipaddress
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class QueueFullError(Exception):
    """Too much work is waiting."""


class FairQueue:
    """A queue for slots.

    Args:
        slots: how much runs at the same time.
        max_waiting: how much may wait.
    """

    def __init__(self, slots: int, max_waiting: int) -> None:
        self._free = slots
        self.max_waiting = max_waiting
        """May change; what waits already stays."""
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def acquire(self, peer: str) -> AsyncIterator[None]:
        """Wait until a slot is free and the address is next; the body has the slot.

        Raises:
            QueueFullError: no slot was free, and no address waits for more than this one.
        """
        await self._wait(peer)
        try:
            yield
        finally:
            self._release()

    async def _wait(self, peer: str) -> None:
        if self._free:
            self._free -= 1
            return
        network = _parse_client_network(peer)
        if sum(map(len, self._queues.values())) >= self.max_waiting:
            self._evict_waiting(len(self._queues.get(network, ())))
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(network, deque()).append(ticket)
        try:
            await ticket
        except asyncio.CancelledError:
            if not ticket.cancelled():  # at the same moment it was started or evicted
                if ticket.exception() is None:
                    self._release()
            elif ticket in (own := self._queues.get(network, deque())):
                own.remove(ticket)
                if not own:
                    del self._queues[network]
            raise

    def _evict_waiting(self, waiting_count: int) -> None:
        """Evict the youngest ticket of the address with most, for one of an address that has `waiting_count`.

        Raises:
            QueueFullError: no address has more.
        """
        longest = max(self._queues.values(), key=len)
        if len(longest) <= waiting_count + 1:
            raise QueueFullError
        youngest = longest.pop()
        if not youngest.done():
            youngest.set_exception(QueueFullError())

    def _release(self) -> None:
        """Give the slot to the first of the next address."""
        while self._queues:
            network, own = self._queues.popitem(last=False)
            following = own.popleft()
            if own:
                self._queues[network] = own
            if not following.done():  # it was not cancelled at the same moment
                following.set_result(None)
                return
        self._free += 1


def _parse_client_network(peer: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of IPv6, the smallest network that a site gets."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return address.exploded[:19]
    return peer
