"""What a check of a real KMS emulator makes of the mode; each check is made by the test."""

import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.backend_contract import CryptoMode
from shared.keyring.database import DatabaseError
from shared.keyring.model import LOCAL_KEK
from shared.keyring.tables import data_keys
from tests.backend.conftest import Backend

OUTAGE = EmulatorFault(kind="status", status="UNAVAILABLE")

Open = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OUTAGE, "unavailable"),
        (EmulatorFault(kind="denied", permission="cloudkms.cryptoKeyVersions.useToEncrypt"), "permission_denied"),
        (EmulatorFault(kind="denied", permission="cloudkms.cryptoKeyVersions.useToDecrypt"), "permission_denied"),
        (EmulatorFault(kind="stall"), "timeout"),
        (EmulatorFault(kind="corrupt_crc"), "crc_mismatch"),
        (EmulatorFault(kind="wrong_plaintext"), "plaintext_mismatch"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
async def test_a_start_without_kms_is_in_env_mode_with_its_reason_and_keeps_records(
    fault: EmulatorFault, reason: str, emulator: Emulator, open_backend: Open, tmp_path: Path
) -> None:
    emulator.faults.add(fault)
    timeout = 0.3 if fault.kind == "stall" else 30.0
    async with open_backend(tmp_path, str(emulator.address), timeout=timeout) as backend:
        await backend.checker.check()
        assert (backend.keyring.mode, backend.keyring.is_ready) == (CryptoMode.ENV, True)
        assert reason in backend.keyring.reason
        (key,) = await backend.store.list_all()
        assert key.wrapped.kek == LOCAL_KEK
        await backend.put("r", b"kept")
        assert await backend.get("r") == b"kept"


async def test_two_failed_checks_in_a_row_change_the_mode_and_each_change_has_its_time_and_is_logged_once(
    emulator: Emulator, backend: Backend
) -> None:
    found, now = [], 100.0
    backend.keyring._clock = lambda: now
    with capture_logs() as lines:
        for fault in (None, OUTAGE, None, OUTAGE, OUTAGE, OUTAGE, None, None):
            emulator.faults.clear()
            if fault:
                emulator.faults.add(fault)
            now += 1
            await backend.checker.check()
            found.append((backend.keyring.mode.value, backend.keyring.initialised_at))
    assert found == [("kms", 101)] * 4 + [("env", 105)] * 2 + [("kms", 107)] * 2
    changes = [(line["mode"], line["reason"]) for line in lines if line["event"] == "crypto mode changed"]
    assert changes == [("kms", None), ("env", "KMS cannot be used: unavailable"), ("kms", None)]


async def test_an_exhausted_quota_is_reported_and_changes_no_mode_for_kms_answers(
    emulator: Emulator, backend: Backend
) -> None:
    await backend.checker.check()
    emulator.faults.add(EmulatorFault(kind="status", status="RESOURCE_EXHAUSTED"))
    for _ in range(3):
        await backend.checker.check()
    assert (backend.keyring.mode, backend.keyring.reason) == (CryptoMode.KMS, "KMS refuses: quota_exhausted")
    await backend.store._database.write_exclusively(lambda connection: connection.execute(data_keys.delete()))
    await backend.checker.check()
    await backend.put("r", b"kept")
    assert await backend.get("r") == b"kept"
    emulator.faults.clear()
    await backend.checker.check()
    assert (backend.keyring.mode, backend.keyring.reason) == (CryptoMode.KMS, None)


async def test_the_mode_is_reported_even_where_the_database_fails_too(
    emulator: Emulator, backend: Backend, tmp_path: Path
) -> None:
    await backend.checker.check()
    emulator.faults.add(OUTAGE)
    await backend.checker.check()
    with closing(sqlite3.connect(tmp_path / "backend.db", isolation_level=None)) as other:
        other.execute("DROP TABLE data_keys")
    with pytest.raises(DatabaseError, match="no such table"):
        await backend.checker.check()
    assert backend.keyring.mode is CryptoMode.ENV
