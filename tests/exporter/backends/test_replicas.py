"""Which addresses are read, for how long, and how many at once; what is read of them is made up here."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import pytest

from services.exporter.backends.reader import MAX_ADDRESSES, ReplicaReader
from services.exporter.model import BackendState, Health
from shared.backend_contract import CryptoMode

HEALTH = Health(CryptoMode.KMS, ready=True)
Answer = set[str] | Exception | None


class Dns:
    """Answers what it is told: addresses, an error, or nothing at all."""

    def __init__(self, *addresses: str) -> None:
        self.answer: Answer = set(addresses)
        self.requests: list[str] = []

    async def __call__(self, host: str) -> set[str]:
        self.requests.append(host)
        if self.answer is None:
            await asyncio.sleep(3600)
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer


async def healthy_state(address: str) -> BackendState:
    return BackendState("backend", HEALTH, replica=address)


def replicas(dns: Dns, read_one: Callable[[str], Awaitable[BackendState]] = healthy_state) -> ReplicaReader:
    return ReplicaReader("backend", "backend.test", read_one, timeout=5, resolve=dns)


def addresses(states: tuple[BackendState, ...]) -> list[str | None]:
    return [state.replica for state in states]


async def test_where_no_address_was_ever_known_the_service_is_down_and_says_why() -> None:
    dns = Dns()
    dns.answer = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    (state,) = await replicas(dns).read()
    sentence = "DNS: backend.test could not be resolved: Name or service not known"
    assert state == BackendState("backend", None, problems=(sentence,))


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("answer", "why", "duration"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "Temporary failure in name", 0),
        (UnicodeError("label too long"), "it is no host name", 0),
        (None, "no answer within 5 s", 5),
    ],
    ids=["refused", "no name", "hangs"],
)
async def test_while_dns_fails_the_last_addresses_are_read_for_5_minutes(
    answer: Answer, why: str, duration: float
) -> None:
    dns, loop = Dns("10.0.0.1"), asyncio.get_running_loop()
    watched = replicas(dns)
    await watched.read()
    named = loop.time()
    dns.answer = answer
    (state,) = await watched.read()
    assert loop.time() == named + duration
    (problem,) = state.problems
    assert (state.replica, state.health) == ("10.0.0.1", HEALTH)
    assert problem.startswith(f"DNS: backend.test could not be resolved: {why}")
    assert problem.endswith("; its last addresses are read for 5 minutes after they were named")
    await asyncio.sleep(named + 299 - duration - loop.time())
    assert addresses(await watched.read()) == ["10.0.0.1"]
    await asyncio.sleep(named + 300 - duration - loop.time())
    (state,) = await watched.read()
    assert (state.replica, state.health) == (None, None)
    assert state.problems[0].startswith(f"DNS: backend.test could not be resolved: {why}")
    assert "last addresses" not in state.problems[0]
    dns.answer = {"10.0.0.2"}
    assert await watched.read() == (BackendState("backend", HEALTH, replica="10.0.0.2"),)


async def test_what_is_wrong_with_dns_is_reported_once_before_what_the_first_replica_says() -> None:
    async def broken(address: str) -> BackendState:
        return BackendState("backend", None, problems=("health check: refused",), replica=address)

    dns = Dns("10.0.0.1", "10.0.0.2", "10.0.0.3")
    watched = replicas(dns, broken)
    assert [state.problems for state in await watched.read()] == [("health check: refused",)] * 3
    dns.answer = OSError()
    first, *others = [state.problems for state in await watched.read()]
    assert (first[0].startswith("DNS: "), first[1:]) == (True, ("health check: refused",))
    assert others == [("health check: refused",)] * 2


async def test_of_more_addresses_than_the_limit_the_first_are_read_and_that_is_reported() -> None:
    everywhere = [str(ip_address("10.0.0.0") + n) for n in range(MAX_ADDRESSES + 1)]
    dns = Dns(*everywhere)
    watched = replicas(dns)
    states = await watched.read()
    assert addresses(states) == everywhere[:1000]
    sentence = "DNS: backend.test has 1001 addresses, of which the first 1000 are read"
    assert [state.problems for state in states if state.problems] == [(sentence,)]
    dns.answer = set(everywhere[:1000])
    assert {state.problems for state in await watched.read()} == {()}


@pytest.mark.looptime
async def test_a_replica_that_hangs_delays_the_reading_of_no_other() -> None:
    loop, read_at = asyncio.get_running_loop(), {}

    async def read_one(address: str) -> BackendState:
        read_at[address] = loop.time()
        if address == "10.0.0.1":
            await asyncio.sleep(5)
            return BackendState("backend", None, replica=address)
        return await healthy_state(address)

    states = await replicas(Dns("10.0.0.1", "10.0.0.2", "10.0.0.3"), read_one).read()
    assert [state.health for state in states] == [None, HEALTH, HEALTH]
    assert set(read_at.values()) == {0}
    assert loop.time() == 5
