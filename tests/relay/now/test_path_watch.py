"""What is asked in the background: only while somebody looks, at a bounded pace, and without a page that waits."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from services.relay.apis import PrometheusClient
from services.relay.console.frame import SharedRead
from services.relay.now.lights import BackgroundWatch, PrometheusFacts, ask_prometheus
from tests.sites import serve_site


@pytest.mark.looptime
async def test_it_asks_while_somebody_watches_and_no_more() -> None:
    requests: list[float] = []
    changes: list[float] = []
    loop = asyncio.get_running_loop()

    async def ask() -> int:
        requests.append(loop.time())
        if len(requests) == 2:
            raise ValueError("a defect")
        return len(requests)

    watch = BackgroundWatch(ask, lambda: changes.append(loop.time()), interval=15)
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(100)
    assert requests == []
    assert watch.read() is None
    for _ in range(40):  # a viewer whose page is loaded again each second
        await asyncio.sleep(1)
        watch.read()
    assert requests == [100, 115, 130]
    assert watch.read() == 3
    assert changes == requests
    await asyncio.sleep(1000)
    assert len(requests) == 4, "the last question of who looked; then nobody did"
    assert watch.read() is None, "what was answered long ago says nothing of now"
    await asyncio.sleep(1)
    assert watch.read() == 5
    running.cancel()


@asynccontextmanager
async def prometheus(answers: dict[str, Any]) -> AsyncIterator[PrometheusClient]:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"status": "success", "data": answers[request.path]})

    async with serve_site(web.route("*", "/{path:.*}", answer)) as url:
        client = PrometheusClient(url, None)
        try:
            yield client
        finally:
            await client.close()


async def test_scrapes_have_an_age_by_the_relays_clock_whatever_prometheus_has() -> None:
    scrapes = [
        {"metric": {"instance": "a:9911"}, "value": [5000.0, "4990"]},
        {"metric": {"instance": "b:9911"}, "value": [5000.0, "0"]},
        {"metric": {}, "value": [5000.0, "5000"]},
    ]
    groups = {"g": "0001-01-01T00:00:00Z", "h": "1970-01-01T01:23:00Z"}
    rules = {
        "groups": [
            {"name": name, "interval": 15, "lastEvaluation": at, "rules": [{"name": "A"}]}
            for name, at in groups.items()
        ]
    }
    answers = {"/api/v1/query": {"resultType": "vector", "result": scrapes}, "/api/v1/rules": rules}
    async with prometheus(answers) as client:
        now = time.time()
        facts = await ask_prometheus(client, lambda: now)
        assert [(each.instance, each.at) for each in facts.scrapes] == [("a:9911", now - 10), ("b:9911", None)]
        assert [(each.name, each.evaluated_at) for each in facts.groups] == [("g", None), ("h", now - 20)]
        del answers["/api/v1/rules"]
        assert await ask_prometheus(client, lambda: now) == PrometheusFacts(error="it answered HTTP 500")


@pytest.mark.looptime
async def test_many_viewers_cost_one_read_and_none_gets_what_is_older_than_a_change() -> None:
    reads = 0

    async def read() -> int:
        nonlocal reads
        reads += 1
        number = reads
        await asyncio.sleep(0.1)
        if number == 4:
            raise OSError
        return number

    shared = SharedRead(read, max_age=1.0)
    assert await asyncio.gather(*(shared.get(1) for _ in range(50))) == [1] * 50
    assert await shared.get(1) == 1
    in_progress = asyncio.create_task(shared.get(2))
    await asyncio.sleep(0.05)
    assert await shared.get(3) == 3, "one that began before the change does not count"
    assert await in_progress == 2
    await asyncio.sleep(1)
    with pytest.raises(OSError):  # noqa: PT011  # it has no text
        await shared.get(3)
    assert await shared.get(3) == 5, "a failure is not kept"
    abandoned = asyncio.create_task(shared.get(4))
    await asyncio.sleep(0.01)
    abandoned.cancel()
    assert await shared.get(4) == 6, "one who leaves stops nobody else's read"
