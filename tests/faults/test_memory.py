"""Ten of the worst requests at once, valid or not, leave every server alive within the memory that it is given."""

import asyncio
import io
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest
from aiohttp import ClientConnectorError, ClientOSError, ClientSession, web

from ops.kms_emulator.emulator import run_emulator
from tests.faults import servers
from tests.faults.hostile import MIB, REFUSED, VALID, filled
from tests.relay.served_relay import until
from tests.sites import serve_site

pytestmark = pytest.mark.played

_GET: Final = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
_POST: Final = b"POST /login HTTP/1.1\r\nHost: localhost\r\n"
_USUAL: Final = b"a-usual-name: " + b"a" * 100 + b"\r\n"
_TINY: Final = b"a:\r\n" * 16_000
_HEADS: Final = {
    "tiny headers": _GET + _TINY,
    "tiny headers, whole": _GET + _TINY + b"\r\n",
    "tiny headers of a body": _POST + b"Content-Length: 9\r\n" + _TINY + b"\r\n",
    "tiny trailers": _POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + _TINY,
    "all that is allowed": _GET + _USUAL * 98,
    "all that is allowed, without the body": _POST + b"Content-Length: 9\r\n" + _USUAL * 97 + b"\r\n",
    "all that is allowed, with a body": _POST + b"Content-Length: 240000\r\n" + _USUAL * 97 + b"\r\n" + b"a" * 239_000,
    "a long header": _GET + b"a: " + b"a" * 250_000,
    "a long path": b"GET /" + b"a" * 250_000,
    "many requests": (_GET + b"\r\n") * 1000,
}
"""What a stranger sends and leaves so."""


async def test_the_worst_webhooks_end_no_relay_and_the_valid_ones_are_delivered(tmp_path: Path) -> None:
    async with servers.relay(tmp_path) as relay:
        for name, build in (REFUSED | VALID).items():
            large = build(16 * MIB)
            codes: set[int] = set()
            for count in (10, 10, 5, 2, 1, 1):  # fewer, where a busy machine answers each of them 503
                async with asyncio.TaskGroup() as group:
                    sent = [group.create_task(relay.post(f"/alerts?source={name}", large)) for _ in range(count)]
                answers = {answer.result() for answer in sent}
                if codes := {code for code, _ in answers} - {503}:
                    break
            assert codes, answers
            assert codes <= ({400, 413} if name in REFUSED else {200, 202}), answers
            if name in VALID:
                body = VALID[name](MIB)
                async with asyncio.TaskGroup() as group:
                    for number in range(10):
                        group.create_task(servers.accepted(relay, body, f"{name} {number}"))
            await relay.is_alive()
        await servers.delivers_a_usual_one(relay, "usual")
        await relay.is_alive()
        print(f"relay: {relay.megabytes()}")  # noqa: T201


async def test_the_worst_forms_of_the_console_end_no_relay(tmp_path: Path) -> None:
    stored_bytes = 512 * 1024  # of a body in quarantine
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    async with servers.relay(tmp_path) as relay:
        assert (await relay.post("/alerts", filled('{"x":[', "[]", "]}", stored_bytes)))[0] == 400
        for path, body in {
            "/quarantine/1/preview": b"body=" + b"%22" * stored_bytes,
            "/quarantine/1/replay": b"body=" + quote(filled('{"x":[', "[]", "]}", stored_bytes)).encode(),
            "/channels/-/render": b"payload=" + b"%22" * (stored_bytes // 2),
        }.items():
            async with asyncio.TaskGroup() as group:
                sent = [group.create_task(_post_form(relay.client, path, body, form)) for _ in range(10)]
            expected = {200, 503} if path == "/channels/-/render" else {200, 303, 422}
            assert {each.result() for each in sent} <= expected, path
            await relay.is_alive()
        await servers.delivers_a_usual_one(relay, "usual")
        await relay.is_alive()
        assert relay.limited.peak < 0.8 * relay.limited.limit  # the rest is for webhooks that come meanwhile
        print(f"relay: {relay.megabytes()}")  # noqa: T201


@pytest.mark.parametrize("server", ["relay", "backend", "exporter"])
async def test_nine_hundred_hostile_connections_without_credentials_end_no_server(server: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        if server == "relay":
            served = await stack.enter_async_context(servers.relay(tmp_path))
        else:
            kms = await stack.enter_async_context(run_emulator(keys=[servers.KEY]))
            running = servers.backend(tmp_path, kms) if server == "backend" else servers.exporter(tmp_path, kms, {})
            served = await stack.enter_async_context(running)
        print(f"{server}, before: {served.megabytes()}")  # noqa: T201
        for name, head in _HEADS.items():
            async with AsyncExitStack() as connections:
                await asyncio.gather(*(_send_and_stay(served.address, head, connections) for _ in range(900)))
                await served.is_alive()
            print(f"{server}, {name}: {served.megabytes()}")  # noqa: T201


async def _send_and_stay(address: str, head: bytes, connections: AsyncExitStack) -> None:
    loop, (host, _, port) = asyncio.get_running_loop(), address.rpartition(":")
    connection = connections.enter_context(socket.socket())
    connection.setblocking(False)  # noqa: FBT003 - its only argument
    await loop.sock_connect(connection, (host, int(port)))
    with suppress(ConnectionError, TimeoutError):  # where it is refused, or nobody reads the rest
        await asyncio.wait_for(loop.sock_sendall(connection, head), 10)


async def _post_form(client: ClientSession, path: str, body: bytes, headers: Mapping[str, str]) -> int:
    try:
        async with client.post(path, data=io.BytesIO(body), headers=headers, allow_redirects=False) as answer:
            await answer.read()
            return answer.status
    except ClientConnectorError:
        raise  # it does not listen any more
    except ClientOSError:  # it has answered before all was sent
        return 503


async def test_the_worst_admin_bodies_and_records_end_no_backend(tmp_path: Path) -> None:
    async with run_emulator(keys=[servers.KEY]) as kms, servers.backend(tmp_path, kms) as backend:
        for path, body in {
            "lease": filled('{"holder":"me","seconds":60,"x":[', "[]", "]}", 4 * MIB),
            "restore": filled('{"token":"t","rows":[', "{}", "]}", 4 * MIB),
            "backup": filled('{"after":{', '"a":[]', "}}", 4 * MIB),
            "verify": b'{"x":' + b"[" * (4 * MIB - 10),
            "journal": ('{"detail":"😀' + "x" * (4 * MIB - 30) + '"}').encode(),
        }.items():
            async with asyncio.TaskGroup() as group:
                answers = [group.create_task(backend.post(f"/admin/crypto/{path}", body)) for _ in range(10)]
            assert {answer.result()[0] for answer in answers} <= {200, 400, 409, 503}, path
        await backend.is_alive()

        async def put(number: int) -> int:
            async with backend.client.put(f"/v1/records/r{number}", data=io.BytesIO(b"x" * MIB)) as answer:
                return answer.status

        async with asyncio.TaskGroup() as group:
            puts = [group.create_task(put(number)) for number in range(10)]
        assert {each.result() for each in puts} == {204}
        async with backend.client.get("/v1/records/r9") as answer:
            assert await answer.read() == b"x" * MIB
        await backend.is_alive()
        print(f"backend: {backend.megabytes()}")  # noqa: T201


@pytest.mark.parametrize(
    ("worst", "line"),
    [
        pytest.param(filled('{"x":[', "[]", "]}", MIB - 100), b"a 1\n", id="lists"),
        pytest.param(b'{"x":NaN,"y":"' + b"a" * (MIB - 100), b"kms_data_keys 1\n", id="texts"),
    ],
)
async def test_the_worst_documents_of_ten_backends_end_no_exporter(worst: bytes, line: bytes, tmp_path: Path) -> None:
    lines = (line * MIB)[: 4 * MIB - 100]
    requested = 0

    async def health(_request: web.Request) -> web.Response:
        nonlocal requested
        requested += 1
        return web.Response(body=worst, content_type="application/json")

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=lines, content_type="text/plain")

    async with (
        run_emulator(keys=[servers.KEY]) as kms,
        serve_site(web.get("/healthz", health), web.get("/metrics", metrics)) as url,
        servers.exporter(tmp_path, kms, {f"backend-{number}": url for number in range(10)}, "5s") as exporter,
    ):
        await until(lambda: requested >= 30, 60)
        await exporter.is_alive()
        await servers.proves_kms(exporter)
        print(f"exporter: {exporter.megabytes()}")  # noqa: T201
