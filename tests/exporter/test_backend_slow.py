"""A backend, or a part of its reading, that takes too long."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from aiohttp import web

from services.exporter.model import BackendState, Health
from shared.backend_contract import CryptoMode
from tests.stopwatch import Stopwatch

Read = Callable[..., Awaitable[BackendState]]
TIMEOUT = 1.0
HEALTHY = {"status": "ok", "crypto_mode": "kms", "crypto_ready": True}


async def test_a_backend_that_never_answers_is_down_when_the_time_is_up(read: Read) -> None:
    async def handler(_request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    stopwatch = Stopwatch()
    state = await read(handler, timeout=TIMEOUT)
    assert stopwatch.seconds < 2 * TIMEOUT
    assert state.health is None
    assert state.problems == (
        "health check: no complete answer within 1 s",
        "metrics: no complete answer within 1 s",
    )


async def test_health_does_not_wait_for_metrics_that_hang(read: Read) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        if request.path == "/metrics":
            await asyncio.sleep(60)
        return web.json_response(HEALTHY)

    stopwatch = Stopwatch()
    state = await read(handler, timeout=TIMEOUT)
    assert stopwatch.seconds < 2 * TIMEOUT
    assert state.health == Health(CryptoMode.KMS, ready=True)
    assert state.problems == ("metrics: no complete answer within 1 s",)


async def _respond_healthy(request: web.BaseRequest) -> web.Response:
    if request.path == "/metrics":
        return web.Response(text="crypto_decryption_errors_total 17\n")
    return web.json_response(HEALTHY)


@contextmanager
def _busy(threads: Executor) -> Iterator[None]:
    """Its one thread does something else until the end of the body."""
    over = threading.Event()
    threads.submit(over.wait, 20)
    try:
        yield
    finally:
        over.set()


async def test_metrics_that_are_not_parsed_in_time_are_a_problem_and_health_is_known(
    read: Read, parser: Executor
) -> None:
    stopwatch = Stopwatch()
    with _busy(parser):
        state = await read(_respond_healthy, timeout=TIMEOUT)
    assert stopwatch.seconds < 2 * TIMEOUT
    assert state.health == Health(CryptoMode.KMS, ready=True)
    assert state.problems == ("metrics: no complete answer within 1 s",)


async def test_what_hangs_in_the_event_loops_own_threads_delays_no_metrics(read: Read) -> None:
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    with _busy(threads):
        state = await read(_respond_healthy)
    assert (state.decryption_errors, state.problems) == (17, ())
