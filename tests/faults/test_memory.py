"""Ten of the worst requests at once, valid or not, leave every server alive within the memory that it is given."""

import asyncio
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest
from aiohttp import ClientConnectorError, ClientOSError, ClientSession, web

from ops.kms_emulator.emulator import run_emulator
from tests.faults import servers
from tests.faults.hostile import MIB, REFUSED, VALID, filled
from tests.relay.served_relay import until

_FEW: Final = ("lists", "a hundred thousand alerts")


@pytest.mark.parametrize(
    ("names", "valid_count"), [(_FEW, 4), pytest.param((*REFUSED, *VALID), 10, marks=pytest.mark.played)]
)
async def test_the_worst_webhooks_end_no_relay_and_the_valid_ones_are_delivered(
    names: Sequence[str], valid_count: int, tmp_path: Path
) -> None:
    async with servers.relay(tmp_path) as relay:
        for name in names:
            large = (REFUSED | VALID)[name](16 * MIB)
            async with asyncio.TaskGroup() as group:
                sent = [group.create_task(relay.post(f"/alerts?source={name}", large)) for _ in range(10)]
            answers = {answer.result() for answer in sent}
            codes = {code for code, _ in answers} - {503}  # Alertmanager sends those again
            assert codes, answers
            assert codes <= ({400, 413} if name in REFUSED else {200, 202}), answers
            if name in VALID:
                body = VALID[name](MIB)
                async with asyncio.TaskGroup() as group:
                    for number in range(valid_count):
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
        pytest.param(filled('{"x":[', "[]", "]}", MIB - 100), b"a 1\n", marks=pytest.mark.played, id="lists"),
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
        servers.site(web.get("/healthz", health), web.get("/metrics", metrics)) as url,
        servers.exporter(tmp_path, kms, {f"backend-{number}": url for number in range(10)}, "5s") as exporter,
    ):
        await until(lambda: requested >= 30, 60)
        await exporter.is_alive()
        await servers.proves_kms(exporter)
        print(f"exporter: {exporter.megabytes()}")  # noqa: T201
