"""Addresses by this machine's resolver; one that hangs is made up."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shared.net.egress import resolve


class Hanging:
    """A resolver that gives no answer about names that end in `.hangs`, until it is told to."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.go_on = threading.Event()
        self._real = socket.getaddrinfo

    def __call__(self, host: str, *arguments: Any, **named: Any) -> Any:
        self.requests.append(host)
        if host.endswith(".hangs"):
            self.go_on.wait(60)
            host = "127.0.0.1"
        return self._real(host, *arguments, **named)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    hanging = Hanging()
    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    yield hanging
    hanging.go_on.set()


async def test_a_name_has_the_addresses_that_the_system_knows() -> None:
    found = await resolve("localhost", 80)
    assert found
    assert {address[:2] for _, address in found} <= {("127.0.0.1", 80), ("::1", 80)}


async def test_an_address_stands_for_itself_and_nobody_is_asked(resolver: Hanging) -> None:
    assert await resolve("127.0.0.1", 80) == [(socket.AF_INET, ("127.0.0.1", 80))]
    assert await resolve("::1") == [(socket.AF_INET6, ("::1", 0, 0, 0))]
    assert resolver.requests == []


@pytest.mark.parametrize(("host", "error"), [("nobody.invalid", OSError), ("a" * 64, UnicodeError)])
async def test_what_cannot_be_resolved_is_reported_to_the_caller(host: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await resolve(host)


async def test_names_that_hang_take_nothing_from_others(resolver: Hanging) -> None:
    waiting = [asyncio.create_task(resolve(f"{n}.hangs")) for n in range(64)]
    async with asyncio.timeout(10):
        assert await resolve("localhost")
        assert await asyncio.to_thread(lambda: "done") == "done"
    resolver.go_on.set()
    assert await asyncio.gather(*waiting) == [[(socket.AF_INET, ("127.0.0.1", 0))]] * 64


async def test_who_requests_a_name_that_hangs_waits_for_the_look_up_that_is_in_progress(resolver: Hanging) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(resolve("again.hangs"), 0.01)
    async with asyncio.timeout(30):
        while not resolver.requests:  # noqa: ASYNC110  a thread asks
            await asyncio.sleep(0.01)
    assert resolver.requests == ["again.hangs"]
    resolver.go_on.set()
    async with asyncio.timeout(10):
        await resolve("again.hangs")
        await resolve("again.hangs")
    assert len(resolver.requests) >= 2  # what has ended is not remembered
