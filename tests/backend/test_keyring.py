"""The data keys on a real SQLite file, against a real KMS emulator over gRPC: none is lost, none is used wrongly."""

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.kms_emulator.emulator import Emulator, run_emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.aes_gcm import DecryptionError, UnwrappedKey, decrypt
from services.backend.keyring import KeyUnavailableError
from services.backend.local_key_file import read_or_create
from services.backend.records import decrypt_record
from shared.backend_contract import CryptoMode
from shared.keyring.model import DataKeyStatus, build_wrapping_aad
from shared.keyring.tables import local_key
from tests.backend.conftest import Backend
from tests.iterations import LONG
from tests.key_versions import KEY

OUTAGE = EmulatorFault(kind="status", status="UNAVAILABLE")

Open = Callable[..., AbstractAsyncContextManager[Any]]


async def test_what_is_read_while_kms_returns_is_served_as_soon_as_the_mode_is_kms(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.check()
        await backend.put("before", b"1")
    emulator.faults.add(OUTAGE)
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.check()
        assert len(backend.keyring.unwrap_errors) == 1
        emulator.faults.clear()
        emulator.faults.add(EmulatorFault(kind="latency", seconds=0.05))
        checking = asyncio.create_task(backend.checker.check())
        while not checking.done():
            with suppress(KeyUnavailableError):
                await backend.get("before")
        assert backend.keyring.mode is CryptoMode.KMS
        assert await backend.get("before") == b"1"
        assert not backend.keyring.unwrap_errors


async def test_on_return_every_key_of_the_outage_is_re_wrapped_by_kms_and_outlives_the_local_key(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    emulator.faults.add(OUTAGE)
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.check()
        await backend.put("r", b"kept")
        (local,) = await backend.store.list_all()
        emulator.faults.clear()
        await backend.check()
        rewrapped, successor = await backend.store.list_all()
        assert backend.keyring.mode is CryptoMode.KMS
        assert (rewrapped.status, successor.status, successor.wrapped.kek) == (
            DataKeyStatus.RETIRED,
            DataKeyStatus.ACTIVE,
            KEY,
        )
        assert (rewrapped.id, rewrapped.wrapped.kek, rewrapped.wrapped.kek_version) == (local.id, KEY, "1")
        assert rewrapped.wrapped.ciphertext != local.wrapped.ciphertext
    (tmp_path / "local.key").unlink()
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.check()
        assert await backend.get("r") == b"kept"


@pytest.mark.parametrize("rewrapped_first", [False, True])
async def test_a_copied_local_key_reads_nothing_that_is_written_after_kms_is_back(
    rewrapped_first: bool, emulator: Emulator, backend: Backend, tmp_path: Path
) -> None:
    emulator.faults.add(OUTAGE)
    await backend.checker.check()
    await backend.put("during", b"1")
    copied, (row,) = read_or_create(tmp_path / "local.key", may_create=False), await backend.store.list_all()
    leaked = UnwrappedKey(row.id, decrypt(copied.secret, row.wrapped.ciphertext, build_wrapping_aad(row.id)))
    during = await backend.records.find("during")
    assert during
    assert decrypt_record(during, leaked) == b"1"

    emulator.faults.clear()
    if rewrapped_first:  # as a rotation does that begins before the next check
        await backend.store.replace_wrap(row, await backend.keyring._wrapping.wrap(row.id, leaked.secret))
    await backend.checker.check()
    await backend.put("after", b"2")
    after = await backend.records.find("after")
    assert after
    assert (backend.keyring.mode, after.data_key_id == leaked.id) == (CryptoMode.KMS, False)
    with pytest.raises(DecryptionError):
        decrypt_record(after, leaked)
    assert (await backend.get("during"), await backend.get("after")) == (b"1", b"2")


async def test_an_instance_without_kms_keeps_its_data_key_and_does_not_depose_that_of_one_with_kms(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    emulator.faults.add(OUTAGE)
    async with (
        open_backend(tmp_path, str(emulator.address)) as one,
        open_backend(tmp_path, "127.0.0.1:1", timeout=0.5) as cut_off,
    ):
        await one.checker.check()
        await cut_off.checker.check()
        emulator.faults.clear()
        for _ in range(3):
            await one.check()
            await cut_off.checker.check()
        assert len(await one.store.list_all()) == 2
        assert (one.keyring.mode, cut_off.keyring.mode) == (CryptoMode.KMS, CryptoMode.ENV)
        await cut_off.put("r", b"kept")
        assert await one.get("r") == b"kept"


async def test_kms_that_fails_in_the_middle_of_its_return_leaves_the_local_wrap_as_it_is(
    emulator: Emulator, backend: Backend
) -> None:
    emulator.faults.add(OUTAGE)
    await backend.check()
    before = await backend.store.list_all()
    emulator.faults.clear()
    emulator.faults.add(EmulatorFault(kind="status", operation="Encrypt", probability=0.5))
    emulator.faults._random = iter([0.9, 0.1]).__next__  # the check's own call succeeds, the re-wrap's fails
    await backend.check()
    assert backend.keyring.mode is CryptoMode.ENV
    assert await backend.store.list_all() == before


async def test_a_wrongly_unwrapped_key_encrypts_nothing_and_the_right_one_is_used_later(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.check()
        await backend.put("r", b"kept")
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        emulator.faults.add(EmulatorFault(kind="wrong_plaintext", probability=0.5, count=1))
        emulator.faults._random = iter([0.9, 0.1]).__next__
        await backend.checker.check()
        with pytest.raises(KeyUnavailableError, match="not the key that was stored"):
            await backend.get("r")
        await backend.put("s", b"under a new key")
        await backend.check()
        assert (await backend.get("r"), await backend.get("s")) == (b"kept", b"under a new key")


async def test_a_key_under_another_kms_key_is_named_and_left_alone(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    other = KEY.replace("ledger", "other")
    await emulator.store.create_missing_keys([other])
    async with open_backend(tmp_path, str(emulator.address), key=other) as backend:
        await backend.check()
        await backend.put("r", b"kept")
        (foreign,) = await backend.store.list_all()
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.check()
        with pytest.raises(KeyUnavailableError, match=f"wrapped by {other}"):
            await backend.get("r")
        assert (await backend.store.list_all())[0].wrapped == foreign.wrapped


async def test_two_processes_that_start_at_once_agree_on_one_active_key(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with (
        open_backend(tmp_path, str(emulator.address)) as one,
        open_backend(tmp_path, str(emulator.address)) as other,
    ):
        await asyncio.gather(one.checker.check(), other.checker.check())
        assert one.keyring.get_active_key() == other.keyring.get_active_key()
        assert [key.status for key in await one.store.list_all()] == [DataKeyStatus.ACTIVE]


async def test_an_instance_whose_local_key_is_no_longer_the_known_one_makes_no_data_key(
    emulator: Emulator, backend: Backend
) -> None:
    emulator.faults.add(OUTAGE)
    await backend.store._database.write_exclusively(
        lambda connection: connection.execute(local_key.update().values(fingerprint=b"another one's"))
    )
    await backend.checker.check()
    assert await backend.store.list_all() == ()
    assert (backend.keyring.mode, backend.keyring.is_ready) == (CryptoMode.ENV, False)
    assert "the other instances have another local key; copy their file here" in str(backend.keyring.reason)


# Each example starts an emulator; the fixture is a function without state.
@settings(max_examples=30 if LONG else 12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["outage", "heal", "restart", "check", "put", "put"]), max_size=14))
def test_after_any_outages_and_restarts_every_record_is_readable_and_only_kms_wraps(
    steps: list[str], open_backend: Open
) -> None:
    async def scenario(folder: Path) -> None:
        stored: dict[str, bytes] = {}
        async with run_emulator(keys=[KEY]) as emulator, AsyncExitStack() as running:
            for number, step in enumerate(["restart", *steps, "heal", "check"]):
                if step == "outage":
                    emulator.faults.add(OUTAGE)
                elif step == "heal":
                    emulator.faults.clear()
                elif step == "restart":
                    await running.aclose()
                    backend = await running.enter_async_context(open_backend(folder, str(emulator.address)))
                    await backend.check()
                elif step == "put":
                    stored[f"r{number}"] = b"record %d" % number
                    await backend.put(f"r{number}", stored[f"r{number}"])
                else:
                    await backend.check()
            assert {record_id: await backend.get(record_id) for record_id in stored} == stored
            keys = await backend.store.list_all()
            assert {key.wrapped.kek for key in keys} == {KEY}
            assert [key.status for key in keys].count(DataKeyStatus.ACTIVE) == 1
            assert len({key.wrapped.ciphertext for key in keys}) == len(keys)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))
