"""The keyring on a real SQLite file, against a real KMS emulator over gRPC; each check is made by the test."""

import asyncio
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ops.kms_emulator.emulator import Emulator, start
from ops.kms_emulator.faults import Fault
from services.backend.keyring import KeyUnavailableError
from shared.contract import CryptoMode
from shared.keyring.database import DatabaseError
from shared.keyring.model import LOCAL_KEK, Status
from shared.kms.provider import Encrypted, KeyProvider

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
OUTAGE = Fault(kind="status", status="UNAVAILABLE")

Open = Callable[..., AbstractAsyncContextManager[Any]]


async def test_with_kms_healthy_the_first_data_key_is_wrapped_by_kms(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        (key,) = await backend.store.all()
        assert (backend.keyring.mode, backend.keyring.ready, backend.keyring.reason) == (CryptoMode.KMS, True, None)
        assert (key.status, key.wrapped.kek, key.wrapped.kek_version) == (Status.ACTIVE, KEY, 1)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OUTAGE, "unavailable"),
        (Fault(kind="denied", permission="cloudkms.cryptoKeyVersions.useToEncrypt"), "permission_denied"),
        (Fault(kind="denied", permission="cloudkms.cryptoKeyVersions.useToDecrypt"), "permission_denied"),
        (Fault(kind="stall"), "timeout"),
        (Fault(kind="corrupt_crc"), "crc_mismatch"),
        (Fault(kind="wrong_plaintext"), "plaintext_mismatch"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
async def test_a_start_without_kms_is_in_env_mode_with_its_reason_and_keeps_records(
    fault: Fault, reason: str, emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    emulator.faults.add(fault)
    timeout = 0.3 if fault.kind == "stall" else 5.0
    async with open_backend(tmp_path, str(emulator.address), timeout=timeout) as backend:
        await backend.keyring.check()
        assert (backend.keyring.mode, backend.keyring.ready) == (CryptoMode.ENV, True)
        assert reason in backend.keyring.reason
        (key,) = await backend.store.all()
        assert key.wrapped.kek == LOCAL_KEK
        await backend.put("r", b"kept")
        assert await backend.get("r") == b"kept"


async def test_one_failed_check_changes_nothing_and_the_second_in_a_row_falls_back(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        modes = []
        await backend.keyring.check()
        emulator.faults.add(OUTAGE)
        for _ in range(2):
            await backend.keyring.check()
            modes.append(backend.keyring.mode)
        assert modes == [CryptoMode.KMS, CryptoMode.ENV]


async def test_two_failed_checks_with_a_good_one_between_them_do_not_fall_back(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        for fault in (OUTAGE, None, OUTAGE):
            emulator.faults.clear()
            if fault:
                emulator.faults.add(fault)
            await backend.keyring.check()
        assert backend.keyring.mode is CryptoMode.KMS


async def test_an_outage_of_a_running_backend_stops_neither_reads_nor_writes_and_makes_no_key(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        await backend.put("before", b"1")
        emulator.faults.add(OUTAGE)
        await backend.keyring.check()
        await backend.keyring.check()
        await backend.put("during", b"2")
        assert (await backend.get("before"), await backend.get("during")) == (b"1", b"2")
        assert len(await backend.store.all()) == 1


async def test_a_restart_in_an_outage_writes_with_a_local_key_and_says_why_an_older_record_must_wait(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        await backend.put("before", b"1")
    emulator.faults.add(OUTAGE)
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        await backend.put("during", b"2")
        assert await backend.get("during") == b"2"
        with pytest.raises(KeyUnavailableError, match="it is wrapped by KMS, which cannot be used"):
            await backend.get("before")
        before, during = await backend.store.all()
        assert (before.status, during.status, during.wrapped.kek) == (Status.RETIRED, Status.ACTIVE, LOCAL_KEK)

        emulator.faults.clear()
        await backend.keyring.check()
        assert (await backend.get("before"), await backend.get("during")) == (b"1", b"2")


async def test_on_return_every_key_of_the_outage_is_wrapped_anew_by_kms_and_outlives_the_local_key(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    emulator.faults.add(OUTAGE)
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        await backend.put("r", b"kept")
        (local,) = await backend.store.all()
        emulator.faults.clear()
        await backend.keyring.check()
        (rewrapped,) = await backend.store.all()
        assert backend.keyring.mode is CryptoMode.KMS
        assert (rewrapped.id, rewrapped.wrapped.kek, rewrapped.wrapped.kek_version) == (local.id, KEY, 1)
        assert rewrapped.wrapped.ciphertext != local.wrapped.ciphertext
    (tmp_path / "local.key").unlink()
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        assert await backend.get("r") == b"kept"


async def test_kms_that_fails_in_the_middle_of_its_return_leaves_the_local_wrap_as_it_is(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    emulator.faults.add(OUTAGE)
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        before = await backend.store.all()
        emulator.faults.clear()
        emulator.faults.add(Fault(kind="status", operation="Encrypt", probability=0.5))
        emulator.faults._random = iter([0.9, 0.1]).__next__  # the check's own call succeeds, the re-wrap's fails
        await backend.keyring.check()
        assert backend.keyring.mode is CryptoMode.ENV
        assert await backend.store.all() == before


async def test_a_wrap_that_does_not_give_the_key_back_never_replaces_one_that_does(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    emulator.faults.add(OUTAGE)
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        before = await backend.store.all()
        emulator.faults.clear()
        emulator.faults.add(Fault(kind="wrong_plaintext", probability=0.5))
        emulator.faults._random = iter([0.9, 0.1]).__next__
        await backend.keyring.check()
        assert "plaintext_mismatch" in backend.keyring.reason
        assert await backend.store.all() == before


async def test_a_wrongly_unwrapped_key_encrypts_nothing_and_the_right_one_is_used_later(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        await backend.put("r", b"kept")
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        emulator.faults.add(Fault(kind="wrong_plaintext", probability=0.5, count=1))
        emulator.faults._random = iter([0.9, 0.1]).__next__
        await backend.keyring.check()
        with pytest.raises(KeyUnavailableError, match="not the key that was stored"):
            await backend.get("r")
        await backend.put("s", b"under a new key")
        await backend.keyring.check()
        assert (await backend.get("r"), await backend.get("s")) == (b"kept", b"under a new key")


async def test_a_restart_after_the_version_of_the_active_key_was_disabled_goes_on_with_a_new_key(
    emulator: Emulator, versions: Any, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        await backend.put("r", b"kept")
    await versions.rotate()
    await versions.disable(1)
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        assert backend.keyring.mode is CryptoMode.KMS
        assert backend.keyring.active().id == (await backend.store.all())[1].id
        with pytest.raises(KeyUnavailableError, match=r"key_disabled \(version 1\)"):
            await backend.get("r")
        await versions.enable(1)
        await backend.keyring.check()
        assert await backend.get("r") == b"kept"


async def test_a_key_under_another_kms_key_is_named_and_left_alone(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    other = KEY.replace("ledger", "other")
    await emulator.store.ensure([other])
    async with open_backend(tmp_path, str(emulator.address), key=other) as backend:
        await backend.keyring.check()
        await backend.put("r", b"kept")
        (foreign,) = await backend.store.all()
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        with pytest.raises(KeyUnavailableError, match=f"wrapped by {other}"):
            await backend.get("r")
        assert (await backend.store.all())[0].wrapped == foreign.wrapped


async def test_a_lost_local_key_costs_its_own_records_and_no_others(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    emulator.faults.add(OUTAGE)
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        await backend.put("lost", b"1")
    (tmp_path / "local.key").unlink()
    emulator.faults.clear()
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        assert backend.keyring.mode is CryptoMode.KMS
        await backend.put("new", b"2")
        assert await backend.get("new") == b"2"
        with pytest.raises(KeyUnavailableError, match="not the key that was stored"):
            await backend.get("lost")


async def test_two_processes_that_start_at_once_agree_on_one_active_key(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with (
        open_backend(tmp_path, str(emulator.address)) as one,
        open_backend(tmp_path, str(emulator.address)) as other,
    ):
        await asyncio.gather(one.keyring.check(), other.keyring.check())
        assert one.keyring.active() == other.keyring.active()
        assert [key.status for key in await one.store.all()] == [Status.ACTIVE]


async def test_each_change_of_mode_is_logged_once_with_its_reason(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        with capture_logs() as lines:
            for fault in (None, None, OUTAGE, None):
                emulator.faults.clear()
                if fault:
                    emulator.faults.add(fault)
                for _ in range(3):
                    await backend.keyring.check()
        told = [(line["mode"], line["reason"]) for line in lines if line["event"] == "crypto mode"]
        assert told == [("kms", None), ("env", "KMS cannot be used: unavailable"), ("kms", None)]


async def test_the_time_of_initialisation_moves_with_the_mode_and_stays_between(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    now = 100.0
    times = []
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        backend.keyring._clock = lambda: now
        for fault in (None, None, OUTAGE, OUTAGE, None):
            emulator.faults.clear()
            if fault:
                emulator.faults.add(fault)
            now += 1
            await backend.keyring.check()
            times.append(backend.keyring.initialised_at)
    assert times == [101, 101, 101, 104, 105]


async def test_a_locked_database_does_not_end_the_checks_and_is_told_as_the_reason(
    emulator: Emulator, open_backend: Open, tmp_path: Path, until: Any
) -> None:
    async def locked() -> bool:
        return str(backend.keyring.reason) == "the keyring's database cannot be used: database is locked"

    async def well() -> bool:
        return (backend.keyring.ready, backend.keyring.mode) == (True, CryptoMode.KMS)

    async with open_backend(tmp_path, str(emulator.address)) as backend:
        with closing(sqlite3.connect(tmp_path / "backend.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            watching = asyncio.create_task(backend.keyring.watch(0.02, asyncio.Event()))
            await until(locked)
            assert not backend.keyring.ready
            other.execute("ROLLBACK")
        await until(well)
        watching.cancel()


class _Defective:
    """A provider with a defect, whose calls may raise what the port does not allow."""

    def __init__(self, real: KeyProvider) -> None:
        self.real = real
        self.calls = 0
        self.decrypt = real.decrypt
        self.close = real.close

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> Encrypted:
        self.calls += 1
        if self.calls == 1:
            raise ZeroDivisionError
        return await self.real.encrypt(plaintext, aad, timeout=timeout)


async def test_a_defect_does_not_end_the_checks_and_is_logged_with_its_trace(
    emulator: Emulator, open_backend: Open, tmp_path: Path, until: Any
) -> None:
    async def well() -> bool:
        return (backend.keyring.ready, backend.keyring.mode) == (True, CryptoMode.KMS)

    async with open_backend(tmp_path, str(emulator.address)) as backend:
        backend.keyring._kms = _Defective(backend.keyring._kms)
        with capture_logs() as lines:
            watching = asyncio.create_task(backend.keyring.watch(0.02, asyncio.Event()))
            await until(well)
            watching.cancel()
    assert [line["event"] for line in lines if line.get("exc_info")] == [
        "the check of KMS failed in an unforeseen way; trying again"
    ]


async def test_the_mode_is_told_even_where_the_database_fails_as_well(
    emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, str(emulator.address)) as backend:
        await backend.keyring.check()
        emulator.faults.add(OUTAGE)
        await backend.keyring.check()
        with closing(sqlite3.connect(tmp_path / "backend.db", isolation_level=None)) as other:
            other.execute("DROP TABLE data_keys")
        with pytest.raises(DatabaseError, match="no such table"):
            await backend.keyring.check()
        assert backend.keyring.mode is CryptoMode.ENV


# Each example starts an emulator; the fixture is a function without state.
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["outage", "heal", "restart", "check", "put", "put"]), max_size=14))
def test_after_any_outages_and_restarts_every_record_is_readable_and_only_kms_wraps(
    steps: list[str], open_backend: Open
) -> None:
    async def scenario(folder: Path) -> None:
        stored: dict[str, bytes] = {}
        async with start(keys=[KEY]) as emulator, AsyncExitStack() as running:
            for number, step in enumerate(["restart", *steps, "heal", "check"]):
                if step == "outage":
                    emulator.faults.add(OUTAGE)
                elif step == "heal":
                    emulator.faults.clear()
                elif step == "restart":
                    await running.aclose()
                    backend = await running.enter_async_context(open_backend(folder, str(emulator.address)))
                    await backend.keyring.check()
                elif step == "put":
                    stored[f"r{number}"] = b"record %d" % number
                    await backend.put(f"r{number}", stored[f"r{number}"])
                else:
                    await backend.keyring.check()
            assert {record_id: await backend.get(record_id) for record_id in stored} == stored
            keys = await backend.store.all()
            assert {key.wrapped.kek for key in keys} == {KEY}
            assert [key.status for key in keys].count(Status.ACTIVE) == 1
            assert len({key.wrapped.ciphertext for key in keys}) == len(keys)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))
