"""A keyring that somebody else rotates while the backend runs."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.keyring import KeyUnavailableError
from shared.backend_contract import CryptoMode
from shared.keyring.administration import RotateRequest, RotationType
from shared.keyring.local_administration import LocalAdministration
from shared.keyring.model import LOCAL_KEK
from shared.keyring.tables import instances
from tests.backend.conftest import Backend


async def _new_dek(backend: Any) -> None:
    administration = LocalAdministration(backend.store._database, backend.keyring._wrapping)
    token = (await administration.acquire_lease("the test", 60)).token
    request = RotateRequest(rotation_id="r1", type=RotationType.NEW_DEK, token=token, caller="the test")
    while (await administration.rotate(request)).state == "running":
        await backend.keyring.reload()
    await administration.release_lease(token)


async def _forgotten(backend: Any) -> None:
    """As one whose checks were late three times: no rotation waits for it any more."""
    await backend.keyring._heartbeat.remove()


async def test_a_record_of_a_data_key_that_another_instance_has_since_is_read_at_once(
    emulator: Emulator, open_backend: Any, tmp_path: Path
) -> None:
    async with (
        open_backend(tmp_path, str(emulator.address)) as one,
        open_backend(tmp_path, str(emulator.address)) as other,
    ):
        await one.checker.check()
        await _forgotten(one)
        await other.checker.check()
        await _new_dek(other)
        await other.keyring.reload()
        await other.put("r", b"by the new key")
        assert one.keyring.get_active_key() != other.keyring.get_active_key()
        assert await one.get("r") == b"by the new key"
        await one.keyring.reload()
        assert one.keyring.get_active_key() == other.keyring.get_active_key()


async def test_kms_that_is_out_when_a_data_key_is_met_says_so_and_is_asked_again(
    emulator: Emulator, open_backend: Any, tmp_path: Path
) -> None:
    async with (
        open_backend(tmp_path, str(emulator.address)) as one,
        open_backend(tmp_path, str(emulator.address)) as other,
    ):
        await one.checker.check()
        await _forgotten(one)
        await other.checker.check()
        await _new_dek(other)
        await other.keyring.reload()
        await other.put("r", b"kept")
        emulator.faults.add(EmulatorFault(kind="status", status="UNAVAILABLE", count=2))
        with pytest.raises(KeyUnavailableError, match="KMS: unavailable"):
            await one.get("r")
        await one.keyring.reload()  # it meets the fault, and leaves mode and keys as they are
        assert one.keyring.mode is CryptoMode.KMS
        assert await one.get("r") == b"kept"


async def test_an_instance_claims_a_pending_data_key_only_once_it_has_unwrapped_it(backend: Backend) -> None:
    administration = LocalAdministration(backend.store._database, backend.keyring._wrapping)
    token = (await administration.acquire_lease("the test", 60)).token
    request = RotateRequest(rotation_id="r1", type=RotationType.NEW_DEK, token=token, caller="the test")
    await administration.rotate(request)
    (pending,) = await backend.store.list_all()

    async def condition() -> str:
        row = await backend.store._database.read(lambda connection: connection.execute(instances.select()).one())
        return str(row.unwrapped_keys)

    assert backend.keyring.mode is CryptoMode.ENV
    await backend.keyring.reload()
    assert await condition() == ""
    await backend.check()
    assert await condition() == pending.id


async def test_a_check_and_many_reloads_at_once_agree(backend: Backend) -> None:
    await asyncio.gather(backend.checker.check(), *(backend.keyring.reload() for _ in range(5)))
    await _new_dek(backend)
    await asyncio.gather(backend.checker.check(), *(backend.keyring.reload() for _ in range(5)))
    assert len(await backend.store.list_all()) == 2


async def test_a_primary_version_that_was_retired_wraps_nothing_and_is_reported(
    versions: Any, backend: Backend
) -> None:
    administration = LocalAdministration(backend.store._database, backend.keyring._wrapping)
    token = (await administration.acquire_lease("the test", 60)).token
    await administration.retire_version("1", token)
    await backend.check()
    assert (backend.keyring.mode, backend.keyring.is_ready) == (CryptoMode.ENV, True)
    assert [key.wrapped.kek for key in await backend.store.list_all()] == [LOCAL_KEK]
    await versions.rotate()
    await backend.check()
    assert backend.keyring.mode is CryptoMode.KMS
    assert [key.wrapped.kek_version for key in await backend.store.list_all()] == ["2", "2"]
