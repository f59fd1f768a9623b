"""A row of the keyring that somebody changes while the backend serves, and has its key in memory.

It is told before the next write; nothing is encrypted any more that a restart could not read.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx2
import pytest
from sqlalchemy import URL
from structlog.testing import capture_logs

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.config import BackendSettings
from shared.keyring.model import build_wrapping_aad
from tests.backend.served_backend import execute, serve_backend
from tests.conftest import Until
from tests.key_versions import Versions

GOOD, BROKEN = (True, False, 1.0, False), (False, True, 0.0, True)


class ServedKeyring:
    """A backend over HTTP, and its data key's row past it."""

    def __init__(self, client: httpx2.AsyncClient, url: URL) -> None:
        self.client, self._url = client, url
        self.acknowledged: dict[str, bytes] = {}

    async def put(self, record_id: str) -> int:
        content = f"content of {record_id}".encode()
        status = (await self.client.put(f"/v1/records/{record_id}", content=content)).status_code
        if status == 204:
            self.acknowledged[record_id] = content
        return status

    async def read_row(self) -> tuple[str, str]:
        """The id of the only data key, and its wrap in hexadecimal."""
        wrapped = "hex(wrapped)" if self._is_sqlite else "encode(wrapped, 'hex')"
        (found,) = await execute(self._url, f"SELECT id || ' ' || {wrapped} FROM data_keys")  # noqa: S608
        data_key_id, wrapped = found.split()
        return data_key_id, wrapped.lower()

    async def write_wrap(self, data_key_id: str, wrapped: str) -> None:
        value = f"X'{wrapped}'" if self._is_sqlite else f"decode('{wrapped}', 'hex')"
        await execute(self._url, f"UPDATE data_keys SET wrapped = {value} WHERE id = '{data_key_id}'")  # noqa: S608

    @property
    def _is_sqlite(self) -> bool:
        return self._url.drivername == "sqlite"

    async def rewrap(self) -> None:
        lease = await self.client.post("/admin/crypto/lease", json={"holder": "a test", "seconds": 600})
        token = lease.json()["token"]
        request = {"rotation_id": "r1", "type": "rewrap-kek", "token": token, "caller": "a test"}
        while (answer := (await self.client.post("/admin/crypto/rotate", json=request)).json())["state"] == "running":
            pass
        assert answer["state"] == "done", answer
        await self.client.post("/admin/crypto/release", json={"token": token})

    async def read_state(self, data_key_id: str) -> tuple[bool, bool, float, bool]:
        """Ready and told by the data key's id, in `/healthz` and in `/metrics`."""
        health = (await self.client.get("/healthz")).json()
        lines = (await self.client.get("/metrics")).text.splitlines()
        (ready,) = [float(line.split()[1]) for line in lines if line.startswith("crypto_ready ")]
        is_broken = f'kms_data_key_row_broken{{data_key="{data_key_id}"}} 1.0' in lines
        return health["crypto_ready"], data_key_id in str(health.get("problems")), ready, is_broken

    async def is_broken(self, data_key_id: str) -> bool:
        return await self.read_state(data_key_id) == BROKEN


async def read_records(client: httpx2.AsyncClient, record_ids: list[str]) -> dict[str, bytes]:
    return {name: (await client.get(f"/v1/records/{name}")).content for name in record_ids}


async def damage(keyring: ServedKeyring, _versions: Versions) -> str:
    _, wrapped = await keyring.read_row()
    return wrapped[:-8] + ("f" * 8 if wrapped.endswith("0" * 8) else "0" * 8)


async def take_wrap_of_disabled_version(keyring: ServedKeyring, versions: Versions) -> str:
    data_key_id, wrapped = await keyring.read_row()
    await versions.rotate()
    await keyring.rewrap()
    assert (await keyring.client.post("/admin/crypto/reload")).status_code == 204
    assert await keyring.read_state(data_key_id) == GOOD
    await versions.disable(1)
    return wrapped


async def wrap_another_key(keyring: ServedKeyring, versions: Versions) -> str:
    data_key_id, _ = await keyring.read_row()
    return (await versions.encrypt(b"\1" * 32, build_wrapping_aad(data_key_id))).hex()


Change = Callable[[ServedKeyring, Versions], Awaitable[str]]
CHANGES = pytest.mark.parametrize("change", [damage, take_wrap_of_disabled_version, wrap_another_key])


@CHANGES
async def test_a_changed_row_is_told_before_the_next_write(
    change: Change, configured: Callable[..., BackendSettings], empty_database: URL, versions: Versions, until: Until
) -> None:
    with capture_logs() as logs:
        async with serve_backend(configured()) as client:
            keyring = ServedKeyring(client, empty_database)
            assert await keyring.put("before") == 204
            changed = await change(keyring, versions)
            data_key_id, good = await keyring.read_row()
            await keyring.write_wrap(data_key_id, changed)
            await until(lambda: keyring.is_broken(data_key_id))
            await keyring.put("after")
            assert await read_records(client, ["before"]) == {"before": keyring.acknowledged["before"]}
            assert await keyring.read_state(data_key_id) == BROKEN
    assert [line for line in logs if line["log_level"] == "error" and line.get("data_key") == data_key_id]
    written_since = {name: content for name, content in keyring.acknowledged.items() if name != "before"}
    async with serve_backend(configured()) as client:
        assert await read_records(client, [*written_since]) == written_since
        await ServedKeyring(client, empty_database).write_wrap(data_key_id, good)
    async with serve_backend(configured()) as client:
        assert await read_records(client, [*keyring.acknowledged]) == keyring.acknowledged


@CHANGES
async def test_a_write_before_the_next_check_is_read_after_a_restart(
    change: Change, configured: Callable[..., BackendSettings], empty_database: URL, versions: Versions
) -> None:
    rare = configured(interval="1h")
    async with serve_backend(rare) as client:
        keyring = ServedKeyring(client, empty_database)
        changed = await change(keyring, versions)
        data_key_id, _ = await keyring.read_row()
        await keyring.write_wrap(data_key_id, changed)
        await asyncio.gather(*(keyring.put(f"r{number}") for number in range(20)))
        assert await keyring.read_state(data_key_id) == BROKEN
    async with serve_backend(rare) as client:
        assert await read_records(client, [*keyring.acknowledged]) == keyring.acknowledged


async def test_a_repaired_row_is_ready_again_without_a_restart(
    configured: Callable[..., BackendSettings], empty_database: URL, versions: Versions
) -> None:
    async with serve_backend(configured(interval="1h")) as client:
        keyring = ServedKeyring(client, empty_database)
        data_key_id, wrapped = await keyring.read_row()
        for written, state in ((await damage(keyring, versions), BROKEN), (wrapped, GOOD)):
            await keyring.write_wrap(data_key_id, written)
            assert (await client.post("/admin/crypto/reload")).status_code == 204
            assert await keyring.read_state(data_key_id) == state


async def test_a_correct_re_wrap_does_not_interrupt_writes(
    configured: Callable[..., BackendSettings], empty_database: URL, versions: Versions
) -> None:
    async with serve_backend(configured(interval="1h")) as client:
        keyring = ServedKeyring(client, empty_database)
        data_key_id, wrapped = await keyring.read_row()
        await versions.rotate()
        await keyring.rewrap()
        assert set(await asyncio.gather(*(keyring.put(f"r{number}") for number in range(20)))) == {204}
        data_key_now, wrapped_now = await keyring.read_row()
        assert (data_key_now, wrapped_now != wrapped) == (data_key_id, True)
        assert await keyring.read_state(data_key_id) == GOOD


Outage = Callable[[httpx2.AsyncClient], AbstractAsyncContextManager[None]]


@pytest.fixture
def without_kms(emulator: Emulator, until: Until) -> Outage:
    """KMS refuses all, and the backend has noticed."""

    @asynccontextmanager
    async def interrupt(client: httpx2.AsyncClient) -> AsyncIterator[None]:
        async def is_noticed() -> bool:
            return bool((await client.get("/healthz")).json()["crypto_mode"] == "env")

        emulator.faults.add(EmulatorFault(kind="status", status="UNAVAILABLE"))
        await until(is_noticed)
        yield
        emulator.faults.clear()

    return interrupt


async def test_a_row_that_changes_in_an_outage_is_opened_when_kms_is_back(
    configured: Callable[..., BackendSettings],
    empty_database: URL,
    versions: Versions,
    without_kms: Outage,
    until: Until,
) -> None:
    async with serve_backend(configured()) as client:
        keyring = ServedKeyring(client, empty_database)
        data_key_id, _ = await keyring.read_row()
        changed = await damage(keyring, versions)
        async with without_kms(client):
            await keyring.write_wrap(data_key_id, changed)
            assert await keyring.put("meanwhile") == 204
        await until(lambda: keyring.is_broken(data_key_id))


async def test_a_row_that_is_back_before_kms_encrypts(
    configured: Callable[..., BackendSettings], empty_database: URL, versions: Versions, without_kms: Outage
) -> None:
    async with serve_backend(configured()) as client:
        keyring = ServedKeyring(client, empty_database)
        data_key_id, wrapped = await keyring.read_row()
        changed = await damage(keyring, versions)
        async with without_kms(client):
            for each in (changed, wrapped):
                await keyring.write_wrap(data_key_id, each)
                assert await keyring.put("meanwhile") == 204
