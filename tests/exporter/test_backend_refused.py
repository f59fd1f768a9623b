"""A backend that is hostile, speaks something else, or is not there."""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from services.exporter.backends.reader import MAX_HEALTH_BYTES, BackendReader
from services.exporter.model import BackendState

Read = Callable[..., Awaitable[BackendState]]
Reader = Callable[..., BackendReader]
HEALTHY = {"status": "ok", "crypto_mode": "kms", "crypto_ready": True}


async def test_a_redirect_is_not_followed(read: Read) -> None:
    requests: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        requests.append(request.path)
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    state = await read(handler, metrics=False)
    assert requests == ["/healthz"]
    assert state.problems == ("health check: answered with HTTP 302; a redirect is not followed, set the final URL",)


async def test_a_compressed_answer_is_not_unpacked(read: Read) -> None:
    async def handler(_request: web.BaseRequest) -> web.Response:
        body = gzip.compress(json.dumps(HEALTHY).encode())
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    state = await read(handler, metrics=False)
    (problem,) = state.problems
    assert problem.startswith("health check: invalid JSON")


async def test_an_endless_answer_is_cut_at_its_limit(read: Read) -> None:
    sent = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"[" * 65536)
            sent += 65536

    state = await read(handler, metrics=False)
    assert state.problems == ("health check: the answer is over 1024 KiB",)
    assert sent < 16 * MAX_HEALTH_BYTES


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
async def test_what_does_not_speak_correct_http_is_down(reader: Reader, answer: bytes) -> None:
    async def junk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(junk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://user:secret@127.0.0.1:{port}/healthz"
        state = await reader(url).read()
    assert state.health is None
    (problem,) = state.problems
    assert problem.startswith("health check: ")
    assert len(problem) < 300
    assert "secret" not in problem


@pytest.mark.parametrize(
    "host", ["exämple..org", "...", f"{'a' * 64}.example.org"], ids=["empty part", "dots", "long part"]
)
async def test_a_url_that_cannot_be_used_is_a_problem_without_its_password(reader: Reader, host: str) -> None:
    state = await reader(f"http://user:hunter2@{host}/").read()
    assert state.problems == ("health check: its URL cannot be used; correct it in the configuration",)
