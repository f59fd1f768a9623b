"""The checks go on, whatever one of them ends with."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from structlog.testing import capture_logs

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.app import run_backend
from services.backend.config import BackendSettings
from services.backend.metrics import KeyringPoller
from shared.backend_contract import CryptoMode
from shared.keyring.database import Database, DatabaseError
from shared.keyring.rotation_metrics import KeyringMetrics
from shared.kms.port import EncryptResult, KmsKey
from tests.backend.conftest import Backend
from tests.backend.served_backend import serve_backend

Open = Callable[..., AbstractAsyncContextManager[Any]]


async def test_a_locked_database_does_not_end_the_checks_and_is_reported_as_the_reason(
    backend: Backend, tmp_path: Path, until: Any
) -> None:
    async def locked() -> bool:
        return str(backend.keyring.reason) == "the keyring's database cannot be used: database is locked"

    async def is_healthy() -> bool:
        return (backend.keyring.is_ready, backend.keyring.mode) == (True, CryptoMode.KMS)

    with closing(sqlite3.connect(tmp_path / "backend.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        watching = asyncio.create_task(backend.checker.run(0.02, asyncio.Event()))
        await until(locked)
        assert not backend.keyring.is_ready
        other.execute("ROLLBACK")
    await until(is_healthy)
    watching.cancel()


class _Defective:
    """A provider with a defect: its first call raises what the port does not allow."""

    def __init__(self, real: KmsKey, raised: BaseException) -> None:
        self.real = real
        self.raised = raised
        self.calls = 0
        self.decrypt = real.decrypt
        self.close = real.close

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        self.calls += 1
        if self.calls == 1:
            raise self.raised
        return await self.real.encrypt(plaintext, aad, timeout=timeout)


@pytest.mark.parametrize("raised", [ZeroDivisionError(), asyncio.CancelledError()], ids=repr)
async def test_a_defect_does_not_end_the_checks_and_is_logged_with_its_trace(
    raised: BaseException, backend: Backend, until: Any
) -> None:
    async def is_healthy() -> bool:
        return (backend.keyring.is_ready, backend.keyring.mode) == (True, CryptoMode.KMS)

    wrapping = backend.keyring._wrapping
    defective: Any = _Defective(wrapping.kms, raised)
    backend.keyring._wrapping = replace(wrapping, kms=defective)
    with capture_logs() as lines:
        watching = asyncio.create_task(backend.checker.run(0.02, asyncio.Event()))
        await until(is_healthy)
        watching.cancel()
    assert [line["event"] for line in lines if line.get("exc_info")] == [
        "KMS check failed unexpectedly; it is tried again"
    ]


async def test_checks_that_are_cancelled_end_even_in_the_middle_of_one(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    emulator.faults.add(EmulatorFault(kind="stall", count=1))
    async with open_backend(tmp_path, str(emulator.address), timeout=60) as backend:
        watching = asyncio.create_task(backend.checker.run(0.02, asyncio.Event()))
        async with asyncio.timeout(10):
            while emulator.faults.list_active():  # noqa: ASYNC110 - the check has met its fault once that is used up
                await asyncio.sleep(0.01)
        watching.cancel()
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                await watching


async def test_a_backend_whose_checks_have_ended_says_so(
    emulator: Emulator, settings: Callable[..., BackendSettings]
) -> None:
    before = asyncio.all_tasks()
    async with run_backend(settings(str(emulator.address))) as app:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            assert (await client.get("/-/ready")).status_code == 200
            (watching,) = [task for task in asyncio.all_tasks() - before if "KmsChecker.run" in str(task.get_coro())]
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            ended = await client.get("/-/ready")
            assert (ended.status_code, ended.text) == (503, "the checks of KMS have ended; restart\n")


async def test_a_backend_starts_though_a_row_of_its_keyring_is_not_utf8_serves_the_rest_and_says_so_everywhere(
    emulator: Emulator, settings: Callable[..., BackendSettings], tmp_path: Path
) -> None:
    rare = settings(str(emulator.address), kms_check_interval="1h")
    async with serve_backend(rare) as client:
        assert (await client.put("/v1/records/a", content=b"kept")).status_code == 204
    with closing(sqlite3.connect(tmp_path / "backend.db")) as other:
        columns = "wrapped, kek, kek_version, algorithm, fingerprint, created_at, encryptions"
        other.execute(f"INSERT INTO data_keys SELECT CAST(x'6bff' AS TEXT), 'retired', {columns} FROM data_keys")  # noqa: S608
        other.commit()
    with capture_logs() as lines:
        async with serve_backend(rare) as client:
            assert (await client.get("/v1/records/a")).content == b"kept"
            assert (await client.put("/v1/records/b", content=b"new")).status_code == 204
            health = await client.get("/healthz")
            metrics = (await client.get("/metrics")).text
    why = "its id in the table data_keys cannot be read; correct it there"
    assert (health.status_code, health.json()["status"], health.json()["problems"]) == (
        200,
        "degraded",
        [f"1 row of the keyring cannot be read: k\\xff ({why})"],
    )
    assert "\nkms_keyring_rows_unreadable 1.0\n" in metrics
    assert [line["row_id"] for line in lines if line["event"] == "keyring row cannot be read"] == ["k\\xff"]


async def test_a_check_that_ends_in_a_defect_ends_neither_the_checks_nor_the_start() -> None:
    class Defective:
        async def read(self, _work: object) -> object:
            raise errors.pop()

    errors = [DatabaseError("database is locked"), OverflowError()]
    poller = KeyringPoller(cast("Database", Defective()))
    with capture_logs() as lines:
        for _ in range(2):
            poller.snapshot = cast("KeyringMetrics", "what was read before")
            await poller.poll()
            assert poller.snapshot is None
    assert [(line["log_level"], line.get("exc_info")) for line in lines] == [("error", True), ("warning", None)]
