"""Two instances on one database, on both stores: what one of them encrypts, the other can read without KMS."""

import asyncio
from collections.abc import Callable

from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.config import BackendSettings
from tests.backend.served_backend import execute, serve_backend


async def test_a_record_of_a_data_key_that_was_just_made_is_read_by_the_other_instance_though_kms_is_out(
    emulator: Emulator, configured: Callable[..., BackendSettings], empty_database: URL
) -> None:
    rare = configured(interval="1h")
    async with serve_backend(rare) as a, serve_backend(rare) as b:
        token = (await a.post("/admin/crypto/lease", json={"holder": "a test", "seconds": 600})).json()["token"]
        arguments = {"rotation_id": "r", "type": "new-dek", "token": token, "caller": "me"}
        before = (await a.get("/admin/crypto/census")).json()["active"]
        assert (await a.post("/admin/crypto/rotate", json=arguments)).json()["state"] == "running"
        promoting = asyncio.create_task(a.post("/admin/crypto/rotate", json=arguments))
        done, _ = await asyncio.wait([promoting], timeout=1)
        assert not done, "the other instance does not hold it yet"
        assert (await b.get("/admin/crypto/census")).json()["active"] == before
        await b.post("/admin/crypto/reload")
        async with asyncio.timeout(60):
            assert (await promoting).json()["state"] == "done"
        emulator.faults.add(EmulatorFault(kind="status", status="UNAVAILABLE"))
        await a.post("/admin/crypto/reload")
        assert (await a.put("/v1/records/x", content=b"kept")).status_code == 204
        active = (await a.get("/admin/crypto/census")).json()["active"]
        assert active != before
        assert await execute(empty_database, "SELECT data_key_id FROM records") == [active]
        assert (await b.get("/v1/records/x")).content == b"kept"


async def test_an_instance_that_ends_leaves_no_row_to_wait_for(
    configured: Callable[..., BackendSettings], empty_database: URL
) -> None:
    every = "SELECT id FROM keyring_instances"
    async with serve_backend(configured(interval="1h")):
        assert len(await execute(empty_database, every)) == 1
    assert await execute(empty_database, every) == []
