"""One local key for all instances of a database, on both stores: a second one is refused, a lost one is survived."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import URL, Connection
from structlog.testing import capture_logs

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.app import run_backend
from services.backend.config import BackendSettings
from services.backend.local_key_file import InstanceLocalKey, read_or_create
from shared.http.server import StartError
from shared.keyring.database import Database
from shared.keyring.instances import InstanceHeartbeat
from shared.keyring.tables import TABLES
from tests.backend.served_backend import execute, serve_backend
from tests.conftest import Until

OUTAGE = EmulatorFault(kind="status", status="UNAVAILABLE")


async def _health(client: httpx2.AsyncClient) -> dict[str, Any]:
    health: dict[str, Any] = (await client.get("/healthz")).json()
    return health


async def _metric(client: httpx2.AsyncClient, name: str) -> float:
    (line,) = [line for line in (await client.get("/metrics")).text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


async def test_two_instances_that_start_at_once_on_disks_of_their_own_both_serve_and_one_local_key_stays(
    configured: Callable[..., BackendSettings], tmp_path: Path
) -> None:
    started, both = 0, asyncio.Event()

    class AtOnce(Database):
        async def read(self, work: Callable[[Connection], Any], *, seconds: float = 5.0) -> Any:
            nonlocal started
            found = await super().read(work, seconds=seconds)
            started += 1
            if started == 2:
                both.set()
            await both.wait()
            return found

    async def opened(name: str) -> InstanceLocalKey:
        (tmp_path / name).mkdir()
        database = await AtOnce.open(configured().database, TABLES)
        own = InstanceLocalKey(tmp_path / name / "local.key", database, InstanceHeartbeat(database, name, 1.0))
        await own.open()
        await database.close()
        return own

    await (await Database.open(configured().database, TABLES)).close()
    keys = await asyncio.gather(opened("a"), opened("b"))
    (lacks,) = [key for key in keys if key.missing_reason]
    assert "local.key: is missing; put it back, from another instance" in str(lacks.missing_reason)
    files = await asyncio.to_thread(lambda: list(tmp_path.glob("[ab]/*")))
    assert len(files) == 1


async def test_a_second_instance_with_another_local_key_is_refused_and_deposes_nothing(
    configured: Callable[..., BackendSettings], emulator: Emulator, tmp_path: Path
) -> None:
    emulator.faults.add(OUTAGE)
    async with serve_backend(configured()) as client:
        await client.put("/v1/records/r", content=b"kept")
        before = (await client.get("/admin/crypto/keys")).json()
        read_or_create(tmp_path / "other.key", may_create=True)
        with pytest.raises(StartError, match=r"other\.key: the other instances .* copy their file here"):
            async with run_backend(configured("other.key")):
                pass
        assert (await client.get("/admin/crypto/keys")).json() == before
    with pytest.raises(StartError, match=r"other\.key"):  # nobody is alive, and yet a data key needs the first one
        async with run_backend(configured("other.key")):
            pass
    async with serve_backend(configured()) as client:
        assert (await client.get("/v1/records/r")).content == b"kept"


async def test_an_instance_that_lacks_the_file_makes_none_beside_another_and_finds_it_once_it_is_copied(
    configured: Callable[..., BackendSettings], emulator: Emulator, tmp_path: Path, until: Until
) -> None:
    async with serve_backend(configured()) as one, serve_backend(configured("copied.key")) as other:
        assert not (tmp_path / "copied.key").exists()
        assert (await _health(one))["status"] == "ok"

        async def is_degraded() -> bool:
            return bool((await _health(other))["status"] == "degraded")

        await until(is_degraded)  # on a busy machine the database may not answer at first
        health = await _health(other)
        assert (health["crypto_mode"], health["crypto_ready"]) == ("kms", True)
        assert ": is missing; put it back, from another instance or a backup" in health["problems"][0]
        assert str(tmp_path) not in str(health)
        assert await _metric(other, "kms_local_key_missing") == 1
        assert (await other.put("/v1/records/r", content=b"kept")).status_code == 204

        (tmp_path / "new.key").write_bytes((tmp_path / "local.key").read_bytes())
        (tmp_path / "new.key").chmod(0o600)
        (tmp_path / "new.key").rename(tmp_path / "copied.key")

        async def is_healthy() -> bool:
            return bool((await _health(other))["status"] == "ok")

        await until(is_healthy)
        assert await _metric(other, "kms_local_key_missing") == 0


async def test_a_local_key_that_nobody_needs_may_be_replaced_once_its_instances_have_ended(
    configured: Callable[..., BackendSettings], tmp_path: Path
) -> None:
    async with serve_backend(configured()) as client:
        await client.put("/v1/records/r", content=b"kept")
    before = (tmp_path / "local.key").read_bytes()
    (tmp_path / "local.key").rename(tmp_path / "leaked.key")
    async with serve_backend(configured()) as client:
        assert (await _health(client))["status"] == "ok"
        assert (await client.get("/v1/records/r")).content == b"kept"
    assert (tmp_path / "local.key").read_bytes() != before


async def test_with_a_lost_local_key_the_rest_is_served_and_its_data_keys_are_given_up_by_name_and_number(
    configured: Callable[..., BackendSettings], emulator: Emulator, tmp_path: Path, until: Until
) -> None:
    async with serve_backend(configured()) as client:
        await client.put("/v1/records/good", content=b"kept")
    emulator.faults.add(OUTAGE)
    async with serve_backend(configured()) as client:
        for record in ("x", "y"):
            assert (await client.put(f"/v1/records/{record}", content=b"lost")).status_code == 204
        (lost,) = [key["id"] for key in (await client.get("/admin/crypto/keys")).json() if key["kek"] == "local"]
    (tmp_path / "local.key").unlink()
    emulator.faults.clear()

    async with serve_backend(configured()) as client:

        async def reports_problems() -> bool:
            return len((await _health(client)).get("problems", [])) == 2

        async def is_healthy() -> bool:
            return bool((await _health(client))["status"] == "ok")

        await until(reports_problems)
        health = await _health(client)
        assert (health["status"], health["crypto_mode"]) == ("degraded", "kms")
        assert "1 of the data keys are wrapped by a local key that is lost" in health["problems"][1]
        assert (await client.get("/v1/records/good")).content == b"kept"
        assert (await client.put("/v1/records/new", content=b"new")).status_code == 204
        assert (await client.get("/v1/records/x")).status_code == 503
        assert not (tmp_path / "local.key").exists(), "a new one would only hide the loss"

        (listed,) = (await client.get("/admin/crypto/lost")).json()
        assert (listed["id"], listed["record_count"]) == (lost, 2)
        for wrong, sentence in (
            ({"data_keys": [lost], "records": 1}, "2 records need them, not 1"),
            ({"data_keys": [lost, "k"], "records": 2}, "data key k is not lost"),
        ):
            refused = await client.post("/admin/crypto/abandon", json=wrong)
            assert (refused.status_code, sentence in refused.json()["error"]) == (409, True)
        assert len((await client.get("/admin/crypto/lost")).json()) == 1
        with capture_logs() as lines:
            done = await client.post("/admin/crypto/abandon", json={"data_keys": [lost], "records": 2})
        assert (done.status_code, done.json()) == (200, {"abandoned": 1})
        assert [line["data_keys"] for line in lines if line["event"] == "data keys abandoned"] == [[lost]]
        await until(is_healthy)
        assert await _metric(client, "kms_local_key_missing") == 0
        assert await _metric(client, "kms_data_keys_missing") == 0
        errors = await _metric(client, "crypto_decryption_errors_total")
        response = await client.get("/v1/records/x")
        assert (response.status_code, "was abandoned" in response.json()["error"]) == (410, True)
        assert await _metric(client, "crypto_decryption_errors_total") == errors
        assert (await client.post("/admin/crypto/verify", json={"mode": "full"})).json()["problems"] == []
        assert (await client.put("/v1/records/x", content=b"anew")).status_code == 204
        assert (await client.get("/v1/records/x")).content == b"anew"
        assert (tmp_path / "local.key").exists()


async def test_nothing_is_given_up_while_another_instance_lives_that_may_have_the_local_key(
    configured: Callable[..., BackendSettings], emulator: Emulator, tmp_path: Path
) -> None:
    emulator.faults.add(OUTAGE)
    async with serve_backend(configured()) as holder:
        await holder.put("/v1/records/x", content=b"kept")
        async with serve_backend(configured("missing.key")) as client:
            (lost,) = (await client.get("/admin/crypto/lost")).json()
            arguments = {"data_keys": [lost["id"]], "records": 1}
            refused = await client.post("/admin/crypto/abandon", json=arguments)
            assert (refused.status_code, "another instance of the service is alive" in refused.text) == (409, True)
            assert (await holder.put("/v1/records/y", content=b"kept")).status_code == 204
            assert (await client.get("/v1/records/y")).status_code == 503
            assert not (tmp_path / "missing.key").exists()
    async with serve_backend(configured()) as holder:
        for record in ("x", "y"):
            assert (await holder.get(f"/v1/records/{record}")).content == b"kept"
    async with serve_backend(configured("missing.key")) as client:  # nobody else is left
        done = await client.post("/admin/crypto/abandon", json=arguments | {"records": 2})
        assert (done.status_code, (tmp_path / "missing.key").exists()) == (200, True)
        assert (await client.get("/v1/records/y")).status_code == 410


async def test_what_was_given_up_and_is_copied_back_is_lost_no_more_not_even_in_the_next_outage(
    configured: Callable[..., BackendSettings], emulator: Emulator, empty_database: URL, tmp_path: Path, until: Until
) -> None:
    emulator.faults.add(OUTAGE)
    async with serve_backend(configured()) as client:
        await client.put("/v1/records/r", content=b"kept")
    await asyncio.to_thread((tmp_path / "local.key").rename, tmp_path / "elsewhere.key")
    emulator.faults.clear()
    async with serve_backend(configured()) as client:
        (lost,) = (await client.get("/admin/crypto/lost")).json()
        await client.post("/admin/crypto/abandon", json={"data_keys": [lost["id"]], "records": 1})
        assert (await client.get("/v1/records/r")).status_code == 410
    await asyncio.to_thread((tmp_path / "elsewhere.key").rename, tmp_path / "local.key")
    async with serve_backend(configured()) as client:
        columns = "wrapped, kek, kek_version, algorithm, fingerprint, created_at"
        abandoned = "keyring_abandoned_keys"
        copy = f"INSERT INTO data_keys (id, status, {columns}) SELECT id, 'retired', {columns} FROM {abandoned}"  # noqa: S608
        await execute(empty_database, copy)

        async def is_read() -> bool:
            return (await client.get("/v1/records/r")).content == b"kept"

        async def kms_wraps_it() -> bool:
            return all(key["kek_version"] == "1" for key in (await client.get("/admin/crypto/keys")).json())

        await until(is_read)
        await until(kms_wraps_it)
    emulator.faults.add(OUTAGE)
    async with serve_backend(configured()) as client:
        waits = await client.get("/v1/records/r")
        assert (waits.status_code, "wrapped by KMS, which cannot be used" in waits.text) == (503, True)
        deletion = f"DELETE FROM data_keys WHERE id = '{lost['id']}'"  # noqa: S608
        await execute(empty_database, deletion)

        async def reports_problems() -> bool:
            return await _metric(client, "kms_data_keys_missing") == 1

        await until(reports_problems)
        assert (await client.get("/v1/records/r")).status_code == 503
        emulator.faults.clear()
        verified = await client.post("/admin/crypto/verify", json={"mode": "sample"})
        assert [problem["id"] for problem in verified.json()["problems"]] == [lost["id"]]


async def test_an_outage_without_a_local_key_is_reported_and_ends_by_itself(
    configured: Callable[..., BackendSettings], emulator: Emulator, tmp_path: Path, until: Until
) -> None:
    emulator.faults.add(OUTAGE)
    async with serve_backend(configured()) as client:
        await client.put("/v1/records/r", content=b"kept")
    (tmp_path / "local.key").rename(tmp_path / "elsewhere.key")
    async with serve_backend(configured()) as client:

        async def reports_reason() -> bool:
            return "no data key can be made" in str((await _health(client))["reason"])

        async def reads() -> bool:
            return (await client.get("/v1/records/r")).content == b"kept"

        await until(reports_reason)
        assert (await client.get("/healthz")).status_code == 503
        await asyncio.to_thread((tmp_path / "elsewhere.key").rename, tmp_path / "local.key")
        await until(reads)
