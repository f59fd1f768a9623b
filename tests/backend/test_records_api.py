"""The HTTP side of a whole backend, on a real KMS emulator; requests go to the application itself or over a socket."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.requests import Request
from starlette.types import Message

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.app import run_backend
from services.backend.config import BackendSettings
from services.backend.request_body import RequestRefusedError, read_body
from shared.config.settings import Address
from shared.http.server import serve
from tests.backend.served_backend import serve_backend
from tests.key_versions import Versions

MIB = 1024 * 1024


@pytest.fixture
async def client(emulator: Emulator, settings: Callable[..., BackendSettings]) -> AsyncIterator[httpx2.AsyncClient]:
    async with serve_backend(settings(str(emulator.address))) as opened:
        yield opened


async def _errors(client: httpx2.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    (line,) = [line for line in lines if line.startswith("crypto_decryption_errors_total ")]
    return float(line.split()[1])


async def test_what_was_put_is_given_back_as_bytes_that_no_browser_interprets(client: httpx2.AsyncClient) -> None:
    assert (await client.put("/v1/records/letter.html", content=b"<script>")).status_code == 204
    answer = await client.get("/v1/records/letter.html")
    assert (answer.status_code, answer.content) == (200, b"<script>")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_record_of_exactly_the_limit_is_kept_and_an_empty_one_too(client: httpx2.AsyncClient) -> None:
    for content in (b"x" * MIB, b""):
        assert (await client.put("/v1/records/r", content=content)).status_code == 204
        assert (await client.get("/v1/records/r")).content == content


async def test_a_record_that_declares_more_than_the_limit_is_refused_before_its_body_is_sent(
    emulator: Emulator, settings: Callable[..., BackendSettings]
) -> None:
    async with run_backend(settings(str(emulator.address))) as app, serve(app, Address("127.0.0.1", 0)) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(f"PUT /v1/records/r HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MIB + 1}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()


@pytest.mark.looptime
async def test_a_body_that_does_not_arrive_is_waited_for_within_a_bound() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(RequestRefusedError, match="the body did not arrive within 30 s") as refused:
        await read_body(Request({"type": "http", "method": "PUT", "headers": []}, receive), MIB, "a record")
    assert refused.value.status == 408
    assert asyncio.get_running_loop().time() == 30


@pytest.mark.looptime
async def test_bodies_that_hardly_start_keep_no_other_waiting() -> None:
    def request(*chunks: bytes) -> Request:
        left = list(chunks)

        async def receive() -> Message:
            if not left:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or len(chunks) == 1}

        return Request({"type": "http", "method": "PUT", "headers": [(b"content-length", b"%d" % MIB)]}, receive)

    stalled = [asyncio.create_task(read_body(request(b"x"), MIB, "a record")) for _ in range(9)]
    await asyncio.sleep(0.1)
    assert await read_body(request(b"x" * MIB, b""), MIB, "a record") == b"x" * MIB
    assert asyncio.get_running_loop().time() < 1
    for task in stalled:
        task.cancel()
    await asyncio.gather(*stalled, return_exceptions=True)


async def test_a_caller_that_leaves_in_the_middle_of_its_body_stores_nothing() -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    with pytest.raises(RequestRefusedError, match="the body ended early"):
        await read_body(Request({"type": "http", "method": "PUT", "headers": []}, receive), MIB, "a record")


async def test_a_record_of_undeclared_length_is_refused_at_the_limit(client: httpx2.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 64 * 1024
            assert sent <= 2 * MIB, "it read on, far over the limit"
            yield b"x" * 64 * 1024

    answer = await client.put("/v1/records/r", content=endless())
    assert (answer.status_code, answer.json()) == (413, {"error": "a record may have up to 1048576 bytes"})
    assert (await client.get("/v1/records/r")).status_code == 404


@pytest.mark.parametrize("record_id", ["a/b", "a%20b", "%00", "ü", "x" * 129, ""])
async def test_an_id_of_other_characters_is_refused(record_id: str, client: httpx2.AsyncClient) -> None:
    for answer in (
        await client.put(f"/v1/records/{record_id}", content=b"x"),
        await client.get(f"/v1/records/{record_id}"),
    ):
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("expected an id of 1 to 128 letters")


async def test_an_unknown_record_is_not_found(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/v1/records/r")
    assert (answer.status_code, answer.json()) == (404, {"error": "there is no record r"})


async def test_health_and_metrics_say_that_kms_is_used(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ok", "crypto_mode": "kms", "crypto_ready": True, "data_keys_unusable": 0, "reason": None},
    )
    metrics = (await client.get("/metrics")).text
    for sample in ("crypto_mode 1.0", "crypto_ready 1.0", "crypto_decryption_errors_total 0.0"):
        assert f"\n{sample}\n" in metrics
    assert "\ncrypto_init_timestamp_seconds 1." in metrics
    assert "keypulse_build_info{" in metrics


def _tamper(tmp_path: Path, statement: str) -> None:
    with sqlite3.connect(tmp_path / "backend.db") as connection:
        assert connection.execute(statement).rowcount > 0
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET sealed = zeroblob(length(sealed)) WHERE id = 'a'",
        "UPDATE records SET sealed = x'' WHERE id = 'a'",
        "UPDATE records SET sealed = (SELECT sealed FROM records WHERE id = 'b') WHERE id = 'a'",
    ],
    ids=["tampered", "emptied", "swapped"],
)
async def test_a_corrupt_record_is_reported_and_counted_and_its_neighbour_is_healthy(
    statement: str, client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    await client.put("/v1/records/a", content=b"one")
    await client.put("/v1/records/b", content=b"two")
    _tamper(tmp_path, statement)
    answer = await client.get("/v1/records/a")
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("record a is corrupt")
    assert await _errors(client) == 1
    assert (await client.get("/v1/records/b")).content == b"two"


async def test_a_record_whose_key_waits_for_kms_is_unavailable_and_counted_until_kms_is_back(
    emulator: Emulator, settings: Callable[..., BackendSettings], until: Any
) -> None:
    configured = settings(str(emulator.address))
    async with serve_backend(configured) as client:
        await client.put("/v1/records/r", content=b"kept")
    emulator.faults.add(EmulatorFault(kind="denied", permission="cloudkms.cryptoKeyVersions.useToDecrypt"))
    async with serve_backend(configured) as client:
        answer = await client.get("/v1/records/r")
        assert answer.status_code == 503
        assert "it is wrapped by KMS, which cannot be used" in answer.json()["error"]
        assert await _errors(client) == 1
        assert (await client.get("/healthz")).json() == {
            "status": "degraded",
            "crypto_mode": "env",
            "crypto_ready": True,
            "data_keys_unusable": 1,
            "reason": "KMS cannot be used: role_missing (permission_denied)",
            "problems": ["data keys that cannot be unwrapped: 1; so their records cannot be read"],
        }
        emulator.faults.clear()

        async def readable() -> bool:
            return (await client.get("/v1/records/r")).content == b"kept"

        await until(readable)


async def test_data_keys_whose_version_was_taken_away_are_reported_by_health_and_metrics_until_it_is_back(
    emulator: Emulator, settings: Callable[..., BackendSettings], versions: Versions, until: Any
) -> None:
    configured = settings(str(emulator.address))
    async with serve_backend(configured) as client:
        await client.put("/v1/records/r", content=b"kept")
    await versions.rotate()
    await versions.disable(1)  # as the rotator of another service retires it
    async with serve_backend(configured) as client:
        assert (await client.get("/v1/records/r")).status_code == 503
        health = await client.get("/healthz")
        assert (health.status_code, health.json()) == (
            200,
            {
                "status": "degraded",
                "crypto_mode": "kms",
                "crypto_ready": True,
                "data_keys_unusable": 1,
                "reason": None,
                "problems": ["data keys that cannot be unwrapped: 1; so their records cannot be read"],
            },
        )
        assert "\nkms_data_keys_unusable 1.0\n" in (await client.get("/metrics")).text
        await versions.enable(1)

        async def over() -> bool:
            metrics_text = (await client.get("/metrics")).text
            return (
                "\nkms_data_keys_unusable 0.0\n" in metrics_text
                and (await client.get("/healthz")).json()["status"] == "ok"
            )

        await until(over)
        assert (await client.get("/v1/records/r")).content == b"kept"


async def test_while_no_data_key_can_be_used_nothing_is_stored_and_health_says_why(
    emulator: Emulator, settings: Callable[..., BackendSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.backend.app._FIRST_CHECK_TIMEOUT", 0.1)
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append("a part")
        yield b"x"

    emulator.faults.add(EmulatorFault(kind="stall"))
    async with serve_backend(settings(str(emulator.address), kms_timeout="60s")) as client:
        put = await client.put("/v1/records/r", content=body())
        health = await client.get("/healthz")
        ready = await client.get("/-/ready")
    assert (put.status_code, health.status_code, ready.status_code) == (503, 503, 503)
    assert read == []  # it may be large
    assert put.json()["error"] == "nothing is stored: no data key can be used: KMS has not answered yet"
    assert health.json()["crypto_ready"] is False
    assert health.json()["reason"] == "KMS has not answered yet"


async def test_with_an_admin_token_records_need_it_and_the_health_check_does_not(
    emulator: Emulator, settings: Callable[..., BackendSettings], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a-secret-of-the-tests\n")
    configured = settings(str(emulator.address), auth={"admin_token_file": "token"})
    async with serve_backend(configured) as client:
        assert (await client.put("/v1/records/r", content=b"x")).status_code == 401
        authorised = {"authorization": "Bearer a-secret-of-the-tests"}
        assert (await client.put("/v1/records/r", content=b"x", headers=authorised)).status_code == 204
        assert (await client.get("/v1/records/r")).status_code == 401
        assert (await client.get("/v1/records/r", headers=authorised)).content == b"x"
        assert (await client.get("/healthz")).status_code == 200


def _remove(file: Path) -> None:
    for each in file.parent.glob(f"{file.name}*"):
        each.unlink(missing_ok=True)  # SQLite may remove its own


async def test_no_record_is_acknowledged_into_a_file_that_was_removed_or_replaced(
    client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    assert (await client.put("/v1/records/before", content=b"x")).status_code == 204
    file = tmp_path / "backend.db"
    with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(tmp_path / "backup")) as new:
        old.backup(new)
    _remove(file)
    for number in range(10):
        answer = await client.put(f"/v1/records/lost{number}", content=b"x")
        assert (answer.status_code, "there is no file" in answer.text) == (503, True)
    await asyncio.to_thread(file.touch)
    answer = await client.put("/v1/records/lost", content=b"x")
    assert (answer.status_code, "no such table" in answer.text) == (503, True)
    _remove(file)
    (tmp_path / "backup").rename(file)
    assert (await client.put("/v1/records/after", content=b"x")).status_code == 204
    with closing(sqlite3.connect(file)) as found:
        assert found.execute("SELECT id FROM records ORDER BY id").fetchall() == [("after",), ("before",)]
