"""Two instances on one database, on both stores: what one of them encrypts, the other can read without KMS."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import URL, create_engine, text

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.app import run_backend
from services.backend.config import BackendSettings

TOKEN = {"Authorization": "Bearer a-token-of-this-test"}


def _client(app: Any) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=app)
    return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=TOKEN)


def _rows(database: URL, sql: str) -> list[Any]:
    engine = create_engine(database)
    with engine.connect() as connection:
        rows = list(connection.execute(text(sql)).scalars())
    engine.dispose()
    return rows


async def test_a_record_of_a_data_key_that_was_just_made_is_read_by_the_other_instance_though_kms_is_out(
    emulator: Emulator, settings: Callable[..., BackendSettings], empty_database: URL, tmp_path: Path
) -> None:
    await asyncio.to_thread((tmp_path / "token").write_text, "a-token-of-this-test")
    database = empty_database.render_as_string(hide_password=False)
    rare = settings(str(emulator.address), admin={"token_file": "token"}, database=database, kms_check_interval="1h")
    async with run_backend(rare) as one, run_backend(rare) as other, _client(one) as a, _client(other) as b:
        token = (await a.post("/admin/crypto/lease", json={"holder": "a test", "seconds": 600})).json()["token"]
        arguments = {"rotation_id": "r", "type": "new-dek", "token": token, "caller": "me"}
        before = (await a.get("/admin/crypto/census")).json()["active"]
        assert (await a.post("/admin/crypto/rotate", json=arguments)).json()["state"] == "running"
        promoting = asyncio.create_task(a.post("/admin/crypto/rotate", json=arguments))
        done, _ = await asyncio.wait([promoting], timeout=1)
        assert not done, "the other instance does not hold it yet"
        assert (await b.get("/admin/crypto/census")).json()["active"] == before
        await b.post("/admin/crypto/reload")
        async with asyncio.timeout(10):
            assert (await promoting).json()["state"] == "done"
        emulator.faults.add(EmulatorFault(kind="status", status="UNAVAILABLE"))
        await a.post("/admin/crypto/reload")
        assert (await a.put("/v1/records/x", content=b"kept")).status_code == 204
        active = (await a.get("/admin/crypto/census")).json()["active"]
        assert active != before
        assert await asyncio.to_thread(_rows, empty_database, "SELECT data_key_id FROM records") == [active]
        assert (await b.get("/v1/records/x")).content == b"kept"


async def test_an_instance_that_ends_leaves_no_row_to_wait_for(
    emulator: Emulator, settings: Callable[..., BackendSettings], empty_database: URL
) -> None:
    database = empty_database.render_as_string(hide_password=False)
    every = "SELECT id FROM keyring_instances"
    async with run_backend(settings(str(emulator.address), database=database, kms_check_interval="1h")):
        assert len(await asyncio.to_thread(_rows, empty_database, every)) == 1
    assert await asyncio.to_thread(_rows, empty_database, every) == []
