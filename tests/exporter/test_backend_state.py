import asyncio
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from services.exporter import backend_state
from services.exporter.backend_state import BackendReader, http_client
from services.exporter.model import BackendState, Health
from shared.contract import CryptoMode

TIMEOUT = 1.0
HEALTHY = {"status": "ok", "crypto_mode": "kms", "crypto_ready": True}
METRICS = """# HELP crypto_mode What wraps the data keys.
# TYPE crypto_mode gauge
crypto_mode 1.0
# TYPE crypto_decryption_errors_total counter
crypto_decryption_errors_total 17.0
# TYPE crypto_init_timestamp_seconds gauge
crypto_init_timestamp_seconds 1.70000000025e+09
"""
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def backend(handler: Handler) -> AsyncIterator[str]:
    """A real HTTP server that answers every path by `handler`; gives its base URL."""
    server = web.Server(handler, access_log=None, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with http_client() as client:
        yield client


async def read(session: aiohttp.ClientSession, handler: Handler, *, metrics: bool = True) -> BackendState:
    async with backend(handler) as url:
        return await BackendReader(
            "backend", f"{url}/healthz", f"{url}/metrics" if metrics else None, session, TIMEOUT
        ).read()


def serving(
    health: object = HEALTHY, metrics: str | bytes = METRICS, *, health_status: int = 200, metrics_status: int = 200
) -> Handler:
    async def handler(request: web.BaseRequest) -> web.Response:
        if request.path == "/healthz":
            body = health if isinstance(health, bytes) else json.dumps(health).encode()
            return web.Response(body=body, status=health_status)
        text = metrics if isinstance(metrics, bytes) else metrics.encode()
        return web.Response(body=text, status=metrics_status)

    return handler


async def test_a_healthy_backend_is_read_whole(session: aiohttp.ClientSession) -> None:
    state = await read(session, serving())
    assert state == BackendState("backend", Health(CryptoMode.KMS, ready=True), 1_700_000_000.25, 17.0)


async def test_a_503_with_a_document_is_an_answer(session: aiohttp.ClientSession) -> None:
    document = {"status": "degraded", "crypto_mode": "env", "crypto_ready": False}
    state = await read(session, serving(document, health_status=503))
    assert state.health == Health(CryptoMode.ENV, ready=False)


async def test_unknown_fields_are_fine(session: aiohttp.ClientSession) -> None:
    state = await read(session, serving({**HEALTHY, "status": 7, "extra": {"deep": [1, None]}}))
    assert state.health == Health(CryptoMode.KMS, ready=True)
    assert state.problems == ()


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"", "health check: Invalid JSON"),
        (b"<html>Bad Gateway</html>", "health check: Invalid JSON"),
        (b"\xff\xfe", "health check: Invalid JSON"),
        (b"[" * 500_000, "health check: Invalid JSON: recursion limit"),
        (b'{"a":' * 100_000, "health check: Invalid JSON: recursion limit"),
        (None, "health check: Input should be an object"),
        ([], "health check: Input should be an object"),
        ({"crypto_mode": "kms"}, "health check: crypto_ready: Field required"),
        ({"crypto_mode": "kms", "crypto_ready": 1}, "health check: crypto_ready: Input should be a valid boolean"),
        ({"crypto_mode": "kms", "crypto_ready": "yes"}, "health check: crypto_ready: Input should be a valid boolean"),
        ({"crypto_mode": "KMS", "crypto_ready": True}, "health check: crypto_mode: Input should be 'env' or 'kms'"),
        ({"crypto_mode": {}, "crypto_ready": True}, "health check: crypto_mode: Input should be 'env' or 'kms'"),
        ({**HEALTHY, "padding": "x" * 1024 * 1024}, "health check: the answer is over 1024 KiB"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_hostile_health_document_means_down_with_a_reason(
    session: aiohttp.ClientSession, document: object, problem: str
) -> None:
    state = await read(session, serving(document))
    assert state.health is None
    assert state.init_timestamp is None
    assert state.decryption_errors is None
    assert state.problems[0].startswith(problem)
    assert len(state.problems[0]) < 250


@pytest.mark.parametrize("status", [204, 401, 404, 500, 502])
async def test_any_other_status_means_down(session: aiohttp.ClientSession, status: int) -> None:
    state = await read(session, serving(health_status=status))
    assert state.health is None
    assert state.problems == (f"health check: answered with HTTP {status}",)


async def test_a_redirect_is_not_followed(session: aiohttp.ClientSession) -> None:
    asked: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    state = await read(session, handler, metrics=False)
    assert asked == ["/healthz"]
    assert state.problems == ("health check: answered with HTTP 302; a redirect is not followed, set the final URL",)


async def test_a_backend_that_never_answers_is_down_when_the_time_is_up(session: aiohttp.ClientSession) -> None:
    async def handler(_request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    begin = time.monotonic()
    state = await read(session, handler)
    assert time.monotonic() - begin < 2 * TIMEOUT
    assert state.health is None
    assert state.problems == (
        "health check: no complete answer within 1 s",
        "metrics: no complete answer within 1 s",
    )


async def test_a_backend_that_drips_its_answer_is_down_when_the_time_is_up(session: aiohttp.ClientSession) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(600):
            await response.write(b" ")
            await asyncio.sleep(0.1)
        return response

    begin = time.monotonic()
    state = await read(session, handler, metrics=False)
    assert time.monotonic() - begin < 2 * TIMEOUT
    assert state.problems == ("health check: no complete answer within 1 s",)


async def test_a_compressed_answer_is_not_unpacked(session: aiohttp.ClientSession) -> None:
    async def handler(_request: web.BaseRequest) -> web.Response:
        body = gzip.compress(json.dumps(HEALTHY).encode())
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    state = await read(session, handler, metrics=False)
    (problem,) = state.problems
    assert problem.startswith("health check: Invalid JSON")


async def test_an_endless_answer_is_cut_at_its_limit(session: aiohttp.ClientSession) -> None:
    sent = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"[" * 65536)
            sent += 65536

    state = await read(session, handler, metrics=False)
    assert state.problems == ("health check: the answer is over 1024 KiB",)
    assert sent < 16 * backend_state.HEALTH_BYTES


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: x\r\n" % n for n in range(50_000)) + b"\r\n{}",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: \xff=\x01; Domain=\x00\r\n\r\n{}",
    ],
    ids=lambda answer: repr(answer)[:60],
)
async def test_what_does_not_speak_http_well_is_down(session: aiohttp.ClientSession, answer: bytes) -> None:
    async def junk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(junk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://user:secret@127.0.0.1:{port}/healthz"
        state = await BackendReader("backend", url, None, session, TIMEOUT).read()
    assert state.health is None
    (problem,) = state.problems
    assert problem.startswith("health check: ")
    assert len(problem) < 300
    assert "secret" not in problem


async def test_where_nothing_listens_the_backend_is_down(session: aiohttp.ClientSession) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, but not listening: refuses, and nobody else can take it
        url = f"http://user:secret@127.0.0.1:{bound.getsockname()[1]}/healthz"
        state = await BackendReader("backend", url, None, session, TIMEOUT).read()
    assert state.health is None
    (problem,) = state.problems
    assert "Cannot connect to host" in problem
    assert "secret" not in problem


async def test_health_does_not_wait_for_metrics_that_hang(session: aiohttp.ClientSession) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        if request.path == "/metrics":
            await asyncio.sleep(60)
        return web.json_response(HEALTHY)

    begin = time.monotonic()
    state = await read(session, handler)
    assert time.monotonic() - begin < 2 * TIMEOUT
    assert state.health == Health(CryptoMode.KMS, ready=True)
    assert state.problems == ("metrics: no complete answer within 1 s",)


async def test_without_a_metrics_url_only_health_is_asked(session: aiohttp.ClientSession) -> None:
    state = await read(session, serving(), metrics=False)
    assert state == BackendState("backend", Health(CryptoMode.KMS, ready=True))


@pytest.mark.parametrize(
    "metrics",
    [
        b"crypto_decryption_errors_total nonsense\n",
        b"crypto_decryption_errors_total NaN\n",
        b"crypto_decryption_errors_total -1\n",
        b"crypto_init_timestamp_seconds +Inf\n",
        b'crypto_decryption_errors_total{a="b" 1\n',
        b"crypto_decryption_errors_total \xff\n",
        b"crypto_decryption_errors_total{" + b'a="b",' * 2000 + b"} 1\n",
    ],
    ids=lambda value: str(value)[:50],
)
async def test_broken_metrics_cost_no_more_than_what_only_they_say(
    session: aiohttp.ClientSession, metrics: bytes
) -> None:
    state = await read(session, serving(metrics=metrics))
    assert state.health == Health(CryptoMode.KMS, ready=True)
    assert (state.init_timestamp, state.decryption_errors) == (None, None)
    (problem,) = state.problems
    assert problem.startswith("metrics: ")


async def test_metrics_that_answer_500_are_a_problem(session: aiohttp.ClientSession) -> None:
    state = await read(session, serving(metrics_status=500))
    assert state.decryption_errors is None
    assert state.problems == ("metrics: answered with HTTP 500",)
