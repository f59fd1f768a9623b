"""`resolve: all`: reads every process behind a backend's name by itself → one BackendState for each address.

DNS is resolved again for each read, so that a roll-out is followed. A DNS server that does not answer does not mean
that the backend is down: the last known addresses stay in use for a while.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from services.exporter.model import BackendState
from shared.net.resolver import resolve

MAX_ADDRESSES = 1000
MAX_CONCURRENT_READS = 100
"""Replicas that are read side by side: two connections each, and a process may have no more than 1,024 by default."""
ADDRESS_MAX_AGE = 300.0
"""How long addresses count after DNS named them last."""


async def resolve_addresses(host: str) -> set[str]:
    """All addresses of a name, IPv4 and IPv6. Raises OSError, or UnicodeError for what is no name."""
    return {str(address[0]) for _, address in await resolve(host)}


@dataclass(slots=True)
class ReplicaReader:
    """The processes behind the name of one service's backend."""

    service: str
    host: str
    """The name in the backend's URLs."""
    read_replica: Callable[[str], Awaitable[BackendState]]
    """Reads the process at an address; never raises for what it answers."""
    timeout: float
    """Seconds for DNS; `read_replica` has its own."""
    resolve: Callable[[str], Awaitable[set[str]]] = resolve_addresses
    _addresses: list[str] = field(default_factory=list, init=False)
    _addresses_expire_at: float = field(default=0.0, init=False)

    async def read(self) -> tuple[BackendState, ...]:
        """Reads every replica. Returns one state of the service alone, down, where no address is known.

        A replica without a state is gone. The first state contains the problems of DNS. A replica that
        hangs delays the result by the timeout of `read_replica`; more than `MAX_CONCURRENT_READS` of them by a
        multiple of it.
        """
        problems = await self._resolve_host()
        if not self._addresses:
            hints = ("correct the host in the URLs, or DNS",)
            return (BackendState(self.service, None, problems=problems, hints=hints),)
        semaphore = asyncio.Semaphore(MAX_CONCURRENT_READS)

        async def read(address: str) -> BackendState:
            async with semaphore:
                return await self.read_replica(address)

        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(read(address)) for address in self._addresses]
        first, *others = (task.result() for task in reads)
        return (replace(first, problems=problems + first.problems), *others)

    async def _resolve_host(self) -> tuple[str, ...]:
        """Updates the known addresses. Returns what went wrong."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout):
                found = await self.resolve(self.host)
        except TimeoutError:
            return self._reuse_addresses(f"no answer within {self.timeout:g} s")
        except (OSError, UnicodeError) as error:
            return self._reuse_addresses(getattr(error, "strerror", None) or "it is no host name")
        self._addresses = sorted(found, key=_get_sort_key)[:MAX_ADDRESSES]
        self._addresses_expire_at = loop.time() + ADDRESS_MAX_AGE
        if len(found) > MAX_ADDRESSES:
            return (f"DNS: {self.host} has {len(found)} addresses, of which the first {MAX_ADDRESSES} are read",)
        return ()

    def _reuse_addresses(self, error: str) -> tuple[str, ...]:
        if asyncio.get_running_loop().time() >= self._addresses_expire_at:
            self._addresses = []
        then = f"; its last addresses are read for {ADDRESS_MAX_AGE / 60:g} minutes after they were named"
        return (f"DNS: {self.host} could not be resolved: {error}{then if self._addresses else ''}",)


def _get_sort_key(address: str) -> tuple[int, int]:
    """Keeps the order of the addresses stable, whatever order DNS returns."""
    parsed = ip_address(address)
    return parsed.version, int(parsed)
