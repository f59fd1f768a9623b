"""When each part of `/metrics` is encoded, and in which thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.requests import Request
from structlog.testing import capture_logs

from services.exporter.metrics.exposition import Exposition

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
SCRAPE = Request({"type": "http", "headers": []})


class Part:
    """A gauge that counts its encodings."""

    def __init__(self, name: str) -> None:
        self.version = 0
        self.threads: list[str] = []
        self.value = 0.0
        self._name = name

    def set(self, value: float) -> None:
        self.value = value
        self.version += 1

    def collect(self) -> Iterable[Metric]:
        self.threads.append(threading.current_thread().name)
        family = GaugeMetricFamily("sample", "What it is.", labels=["part"])
        family.add_metric([self._name], self.value)
        return [family]


class Broken(Part):
    def collect(self) -> Iterable[Metric]:
        if self.value == 13:
            raise ZeroDivisionError
        return super().collect()


def read_lines(exposed: Exposition) -> list[str]:
    return bytes(exposed.respond(SCRAPE).body).decode().splitlines()[2:]


@asynccontextmanager
async def ahead(exposed: Exposition, changed: asyncio.Event) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(exposed.encode_continuously(changed))
    await asyncio.sleep(0)  # it begins
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_only_what_changed_is_encoded_again() -> None:
    parts = [Part("a"), Part("b"), Part("c")]
    exposed = Exposition(lambda: parts, CollectorRegistry())
    assert read_lines(exposed) == ['sample{part="a"} 0.0', 'sample{part="b"} 0.0', 'sample{part="c"} 0.0']
    parts[1].set(7)
    assert read_lines(exposed) == ['sample{part="a"} 0.0', 'sample{part="b"} 7.0', 'sample{part="c"} 0.0']
    assert [len(part.threads) for part in parts] == [1, 2, 1]


async def test_a_change_is_encoded_off_the_event_loop_before_the_next_scrape(until: Until) -> None:
    part, changed = Part("a"), asyncio.Event()
    exposed = Exposition(lambda: [part], CollectorRegistry())
    async with ahead(exposed, changed):
        read_lines(exposed)
        part.set(7)
        changed.set()

        async def encoded() -> bool:
            return read_lines(exposed) == ['sample{part="a"} 7.0']

        await until(encoded)
        for _ in range(5):
            read_lines(exposed)
    first, *ahead_of_a_scrape = part.threads
    assert first == threading.current_thread().name  # the first scrape had nothing to take
    assert [name.partition("_")[0] for name in ahead_of_a_scrape] == ["exposition"]


async def test_a_scrape_does_not_wait_for_an_encoding() -> None:
    changed, begun, go_on = asyncio.Event(), threading.Event(), threading.Event()

    class Hanging(Part):
        def collect(self) -> Iterable[Metric]:
            if self.version:
                begun.set()
                assert go_on.wait(30)
            return super().collect()

    hanging = Hanging("hanging")
    exposed = Exposition(lambda: [hanging], CollectorRegistry())
    async with ahead(exposed, changed):
        read_lines(exposed)
        hanging.set(1)
        changed.set()
        assert await asyncio.to_thread(begun.wait, 15)
        try:
            answer = await asyncio.wait_for(asyncio.to_thread(read_lines, exposed), 15)
        finally:
            go_on.set()
    assert answer == ['sample{part="hanging"} 0.0']


@pytest.mark.looptime
@pytest.mark.parametrize(("duration", "rest"), [(0.01, 0.2), (0.2, 4), (0.3, 5), (60, 5)])
async def test_what_changes_all_the_time_is_encoded_again_after_a_rest_that_is_never_long(
    duration: float, rest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, now, encoded = asyncio.Event(), 0.0, []
    loop = asyncio.get_running_loop()

    async def run_here(_executor: object, encode: Callable[..., object], *arguments: object) -> object:
        return encode(*arguments)  # while a thread works, this loop's clock is moved on

    monkeypatch.setattr(loop, "run_in_executor", run_here)

    class Slow(Part):
        def collect(self) -> Iterable[Metric]:
            nonlocal now
            now += duration
            encoded.append(loop.time())
            self.version += 1
            return super().collect()

    slow = Slow("slow")
    exposed = Exposition(lambda: [slow], CollectorRegistry(), lambda: now)
    read_lines(exposed)
    encoded.clear()
    async with ahead(exposed, changed):
        while len(encoded) < 3:
            changed.set()
            await asyncio.sleep(0.01)
    assert [later - earlier for earlier, later in pairwise(encoded)] == [pytest.approx(rest, rel=0.1)] * 2


async def test_a_part_with_a_defect_is_not_shown_and_said_once_and_the_others_go_on(until: Until) -> None:
    broken, other, changed = Broken("a"), Part("b"), asyncio.Event()
    exposed = Exposition(lambda: [broken, other], CollectorRegistry())

    async def shows(*lines: str) -> bool:
        return read_lines(exposed) == list(lines)

    async with ahead(exposed, changed) as task:
        read_lines(exposed)
        with capture_logs() as logged:
            for value in (1, 2):
                broken.set(13)
                other.set(value)
                changed.set()
                await until(partial(shows, f'sample{{part="b"}} {value}.0'))
        broken.set(14)
        changed.set()
        await until(partial(shows, 'sample{part="a"} 14.0', 'sample{part="b"} 2.0'))
        assert not task.done()
    assert [entry["event"] for entry in logged] == ["encoding metrics failed unexpectedly"]
