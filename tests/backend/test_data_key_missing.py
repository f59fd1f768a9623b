"""A database that lost the row of a data key, on both stores: an older snapshot, or a replica that lagged behind.

Nothing is acknowledged that could not be read after a restart; the row is put back by whoever holds the data key.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.config import BackendSettings
from tests.backend.served_backend import execute, serve_backend
from tests.conftest import Until
from tests.postgres import Postgres

OUTAGE = EmulatorFault(kind="status", status="UNAVAILABLE")
ROTATIONS = 20


class Snapshots:
    """Takes one of a database to which nobody is connected, and puts it back below whoever is."""

    def __init__(self, url: URL, folder: Path, postgres: Postgres | None) -> None:
        self.url, self._file, self._postgres = url, folder / "snapshot.db", postgres
        self._snapshot_url: URL | None = None

    def take(self) -> None:
        if self._postgres:
            self._snapshot_url = self._postgres.database(f"snapshot_{uuid4().hex}", self.url)
        else:
            self._copy(Path(str(self.url.database)), self._file)

    def put_back(self) -> None:
        if self._postgres and self._snapshot_url:
            self._postgres.drop(self.url)
            self._postgres.database(str(self.url.database), self._snapshot_url)
        else:
            self._copy(self._file, Path(str(self.url.database)))

    def end(self) -> None:
        if self._postgres and self._snapshot_url:
            self._postgres.drop(self._snapshot_url)

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
            one.backup(other)


@pytest.fixture
async def snapshots(empty_database: URL, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Snapshots]:
    is_file = empty_database.drivername == "sqlite"
    built = Snapshots(empty_database, tmp_path, None if is_file else request.getfixturevalue("shared_postgres"))
    yield built
    await asyncio.to_thread(built.end)


async def _new_dek(client: httpx2.AsyncClient) -> None:
    token = (await client.post("/admin/crypto/lease", json={"holder": "a test", "seconds": 600})).json()["token"]
    arguments = {"rotation_id": uuid4().hex, "type": "new-dek", "token": token, "caller": "me"}
    while (answer := (await client.post("/admin/crypto/rotate", json=arguments)).json())["state"] == "running":
        pass
    assert answer["state"] == "done"
    await client.post("/admin/crypto/release", json={"token": token})
    await client.post("/admin/crypto/reload")


async def test_what_is_acknowledged_after_an_older_snapshot_was_put_back_is_readable_after_a_restart(
    configured: Callable[..., BackendSettings], snapshots: Snapshots
) -> None:
    rare = configured(interval="1h")
    async with serve_backend(rare) as client:
        assert (await client.put("/v1/records/early", content=b"early")).status_code == 204
    await asyncio.to_thread(snapshots.take)
    async with serve_backend(rare) as client:
        await _new_dek(client)
        lost = await client.put("/v1/records/early", content=b"lost with the snapshot")
        assert lost.status_code == 204, lost.text
        await asyncio.to_thread(snapshots.put_back)
        contents = {f"r{number}": b"record %d" % number for number in range(ROTATIONS)} | {"early": b"changed again"}
        statuses = await asyncio.gather(*(client.put(f"/v1/records/{i}", content=c) for i, c in contents.items()))
        acknowledged = {i for i, answer in zip(contents, statuses, strict=True) if answer.status_code == 204}
        assert acknowledged == set(contents), [answer.text for answer in statuses if answer.status_code != 204][:1]
    async with serve_backend(rare) as client:
        assert {i: (await client.get(f"/v1/records/{i}")).content for i in contents} == contents
        assert (await client.get("/admin/crypto/census")).json()["active"] is not None


async def test_a_data_key_that_was_put_back_is_counted_and_named_for_an_hour(
    configured: Callable[..., BackendSettings], empty_database: URL
) -> None:
    now = time.time()
    async with serve_backend(configured(interval="1h"), clock=lambda: now) as client:
        assert await _read_restored(client) == ("ok", [], 0)
        (lost,) = (await client.get("/admin/crypto/keys")).json()
        for count in (1, 2):
            await execute(empty_database, "DELETE FROM data_keys")
            assert (await client.post("/admin/crypto/reload")).status_code == 204
            status, (problem,), restored = await _read_restored(client)
            assert (status, restored) == ("degraded", count)
            assert f"put back from memory within an hour: {lost['id']};" in problem
            now += 3599
            assert (await _read_restored(client))[0] == "degraded"
        now += 2
        assert await _read_restored(client) == ("ok", [], 2)


async def test_a_data_key_that_another_instance_put_back_is_not_counted_again(
    configured: Callable[..., BackendSettings], empty_database: URL
) -> None:
    rare = configured(interval="1h")
    async with serve_backend(rare) as client, serve_backend(rare) as other:
        await execute(empty_database, "DELETE FROM data_keys")
        await asyncio.gather(*(each.post("/admin/crypto/reload") for each in (client, other)))
        counts = [(await _read_restored(each))[2] for each in (client, other)]
        assert sum(counts) == 1


async def _read_restored(client: httpx2.AsyncClient) -> tuple[str, list[str], float]:
    health = (await client.get("/healthz")).json()
    lines = (await client.get("/metrics")).text.splitlines()
    (count,) = [float(line.split()[1]) for line in lines if line.startswith("kms_data_keys_restored_total ")]
    return health["status"], health.get("problems", []), count


async def test_records_whose_data_key_the_database_lacks_are_reported_until_an_instance_that_has_it_puts_it_back(
    configured: Callable[..., BackendSettings], empty_database: URL, until: Until
) -> None:
    async def read_health(client: httpx2.AsyncClient) -> tuple[str, bool]:
        health = (await client.get("/healthz")).json()
        metrics = (await client.get("/metrics")).text
        (line,) = [line for line in metrics.splitlines() if line.startswith("kms_data_keys_missing ")]
        return health["status"], line.endswith(" 1.0")

    async with serve_backend(configured(interval="1h")) as holder:
        await holder.put("/v1/records/r", content=b"kept")
        (lost,) = (await holder.get("/admin/crypto/keys")).json()
        await execute(empty_database, "DELETE FROM data_keys")
        async with serve_backend(configured(interval="50ms")) as client:

            async def is_degraded() -> bool:
                return await read_health(client) == ("degraded", True)

            async def over() -> bool:
                return await read_health(client) == ("ok", False)

            await until(is_degraded)
            health = await client.get("/healthz")
            assert (health.status_code, health.json()["problems"]) == (
                200,
                [f"the database lacks 1 data key that records need: {lost['id']}"],
            )
            assert (await client.get("/v1/records/r")).status_code == 503
            stored = await client.put("/v1/records/s", content=b"new")
            assert stored.status_code == 204, stored.text
            await holder.post("/admin/crypto/reload")
            await until(over)
            assert (await client.get("/v1/records/r")).content == b"kept"


async def test_a_data_key_that_is_put_back_is_re_wrapped_where_its_version_was_retired(
    emulator: Emulator, versions: Any, configured: Callable[..., BackendSettings], empty_database: URL, until: Until
) -> None:
    async with serve_backend(configured(interval="1h")) as client:
        await client.put("/v1/records/r", content=b"kept")
        (before,) = (await client.get("/admin/crypto/keys")).json()
        await versions.rotate()
        key = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
        await execute(empty_database, "DELETE FROM data_keys")
        retired = f"INSERT INTO keyring_retired_versions VALUES ('{key}', '1', 0)"  # noqa: S608
        await execute(empty_database, retired)
        await client.post("/admin/crypto/reload")
        (back,) = (await client.get("/admin/crypto/keys")).json()
        assert (back["id"], back["kek_version"]) == (before["id"], "2")
    async with serve_backend(configured(interval="1h")) as client:
        assert (await client.get("/v1/records/r")).content == b"kept"


async def test_a_row_that_went_missing_in_an_outage_is_put_back_and_the_end_of_the_outage_is_noticed(
    emulator: Emulator, configured: Callable[..., BackendSettings], empty_database: URL, until: Until
) -> None:
    emulator.faults.add(OUTAGE)
    async with serve_backend(configured(interval="1h")) as client:
        assert (await client.put("/v1/records/before", content=b"before")).status_code == 204
        await execute(empty_database, "DELETE FROM data_keys")
        stored = await client.put("/v1/records/after", content=b"after")
        assert stored.status_code == 204, stored.text
        await execute(empty_database, "DELETE FROM data_keys")
        assert (await client.post("/admin/crypto/reload")).status_code == 204
        assert len((await client.get("/admin/crypto/keys")).json()) == 1
    async with serve_backend(configured(interval="50ms")) as client:
        await execute(empty_database, "DELETE FROM data_keys")
        emulator.faults.clear()
        await until(partial(_is_in_kms_mode, client))
    async with serve_backend(configured(interval="1h")) as client:
        for record in ("before", "after"):
            assert (await client.get(f"/v1/records/{record}")).content == record.encode()


async def test_a_row_that_the_known_local_key_does_not_wrap_is_not_put_back_before_kms_wraps_it(
    emulator: Emulator, configured: Callable[..., BackendSettings], empty_database: URL, until: Until
) -> None:
    emulator.faults.add(OUTAGE)
    async with serve_backend(configured(interval="50ms")) as client:
        assert (await client.put("/v1/records/r", content=b"kept")).status_code == 204
        for change in (
            f"INSERT INTO keyring_instances VALUES ('another', {time.time()}, 3600, '')",  # noqa: S608
            "UPDATE keyring_local_key SET fingerprint = data_keys.fingerprint FROM data_keys",
            "DELETE FROM data_keys",
        ):
            await execute(empty_database, change)
        refused = await client.put("/v1/records/r", content=b"never acknowledged")
        assert (refused.status_code, "the other instances have another local key" in refused.text) == (503, True)
        assert (await client.post("/admin/crypto/reload")).status_code == 204
        emulator.faults.clear()
        await until(partial(_is_in_kms_mode, client))
        assert (await client.get("/v1/records/r")).content == b"kept"
        assert (await client.put("/v1/records/s", content=b"new")).status_code == 204
        assert {key["kek_version"] for key in (await client.get("/admin/crypto/keys")).json()} == {"1"}


async def _is_in_kms_mode(client: httpx2.AsyncClient) -> bool:
    return bool((await client.get("/healthz")).json()["crypto_mode"] == "kms")
