"""The clients against a real server: what is refused is never taken for an answer."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shared.config.settings import Address
from shared.http.server import serve
from tests.bench.load import Load, load
from tests.bench.stage import TOKEN, BenchError, Running


@asynccontextmanager
async def server(endpoint: Callable[[Request], Coroutine[Any, Any, Response]]) -> AsyncIterator[Running]:
    app = Starlette(routes=[Route("/alerts", endpoint, methods=["POST"])])
    async with serve(app, Address("127.0.0.1", 0)) as address:
        yield Running(str(address), 0)


async def test_every_body_is_posted_once_with_the_token() -> None:
    received = []

    async def take(request: Request) -> Response:
        received.append((request.headers["authorization"], await request.body()))
        return PlainTextResponse("taken", 202)

    bodies = [str(number).encode() for number in range(50)]
    async with server(take) as running:
        done = await load(running, bodies, clients=8)
    assert sorted(received) == sorted((f"Bearer {TOKEN}", body) for body in bodies)
    assert len(done.each) == 50
    assert done.each[0] > 0


async def test_a_refused_request_ends_the_benchmark() -> None:
    async def refuse(_request: Request) -> Response:
        return PlainTextResponse("outbox cannot commit", 503)

    async with server(refuse) as running:
        with pytest.raises(BenchError, match="503"):
            await load(running, [b"1"], clients=1)


async def test_a_server_that_is_not_there_ends_the_benchmark() -> None:
    with pytest.raises(BenchError, match="did not answer"):
        await load(Running("127.0.0.1:9", 0), [b"1"], clients=1)


def test_percentiles_are_milliseconds_of_the_sorted_times() -> None:
    done = Load(seconds=2.0, each=[number / 1000 for number in range(1, 201)])
    assert done.per_second == 100
    assert done.percentile(50) == 101
    assert done.percentile(99) == 199
