"""One contract for all drivers: each behaves alike towards a real backend; where it speaks SQL itself, on each store.

What `conformance` checks of an admin API, it checks of the backend's in `test_admin_api_document.py`.
`keyring` is a driver of each kind in the registry, so that a new one is tested the day it arrives.
"""

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.keyring.administration import (
    Administration,
    AdministrationError,
    JournalBackup,
    JournalEntry,
    JournalStep,
    RefusedError,
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
    StepOutcome,
    UnreachableError,
)
from shared.kms import retries
from tests.key_versions import Versions
from tests.rotator.drivers.conftest import KINDS, Backend
from tests.stores import each_empty_database

NEW_DEK, REWRAP = RotationType.NEW_DEK, RotationType.REWRAP_KEK
RELOADED = JournalEntry(step=JournalStep.RELOAD, outcome=StepOutcome.SUCCEEDED)


async def rotate(
    keyring: Administration, type_: RotationType, rotation_id: str, *, batch: int = 100
) -> RotationProgress:
    """To the end, and gives the lease up."""
    lease = await keyring.acquire_lease("a test", 60)
    request = RotateRequest(rotation_id=rotation_id, type=type_, token=lease.token, caller="a test", batch_size=batch)
    for _ in range(20):
        progress = await keyring.rotate(request)
        if progress.state is not RotationState.RUNNING:
            await keyring.release_lease(lease.token)
            return progress
    pytest.fail("the rotation does not end")


def test_every_kind_is_listed() -> None:
    assert KINDS == ("admin_api", "command", "sql")


@each_empty_database
async def test_a_new_data_key_is_rotated_once_whoever_asks_again(keyring: Administration, backend: Backend) -> None:
    await backend.put("before", b"kept")
    done = await rotate(keyring, NEW_DEK, "once")
    assert (done.state, done.type, done.caller, done.problems) == (RotationState.DONE, NEW_DEK, "a test", ())
    keys = list(await keyring.list_keys())
    assert sorted(key.status for key in keys) == ["active", "retired"]
    assert await rotate(keyring, NEW_DEK, "once") == done
    assert list(await keyring.list_keys()) == keys
    assert await keyring.get_progress("once") == await keyring.get_progress() == done
    assert await keyring.get_progress("another") is None
    await keyring.reload_instances()
    await backend.put("after", b"new")
    assert [await backend.get(record) for record in ("before", "after")] == [b"kept", b"new"]


@each_empty_database
async def test_data_keys_are_re_wrapped_in_batches_and_stay_what_they_are(
    keyring: Administration, backend: Backend, versions: Versions
) -> None:
    await backend.put("before", b"kept")
    await rotate(keyring, NEW_DEK, "another-key")
    before = {key.id: key.fingerprint for key in await keyring.list_keys()}
    await versions.rotate()
    done = await rotate(keyring, REWRAP, "rewrap", batch=1)
    assert (done.state, done.total, done.done, done.target_version) == (RotationState.DONE, 2, 2, "2")
    keys = await keyring.list_keys()
    assert {key.kek_version for key in keys} == {"2"}
    assert {key.id: key.fingerprint for key in keys} == before
    assert await backend.get("before") == b"kept"


@each_empty_database
async def test_without_the_lease_nothing_is_changed(keyring: Administration) -> None:
    request = RotateRequest(rotation_id="r", type=NEW_DEK, token="none", caller="a test")
    done = (await rotate(keyring, NEW_DEK, "done")).rotation_id
    rows = await keyring.list_backup_rows()
    before = list(await keyring.list_keys())
    for holder in ("another", None):
        lease = await keyring.acquire_lease(holder, 60) if holder else None
        sentence = "the lease is not yours; " + ("another holds the lease" if holder else "take it, then resume")
        for change in (
            lambda: keyring.rotate(request),
            lambda: keyring.add_journal_entry("r", "none", RELOADED),
            lambda: keyring.retire_version("2", "none"),
            lambda: keyring.rollback(done, "none"),
            lambda: keyring.restore(rows, "none"),
        ):
            with pytest.raises(RefusedError, match=sentence):
                await change()
        assert list(await keyring.list_keys()) == before
        if lease:
            await keyring.release_lease(lease.token)


@each_empty_database
async def test_a_rotation_is_undone_and_its_steps_are_recorded(keyring: Administration) -> None:
    (before,) = await keyring.list_keys()
    await rotate(keyring, NEW_DEK, "undone")
    lease = await keyring.acquire_lease("a test", 60)
    backup = JournalEntry(
        step=JournalStep.BACKUP,
        outcome=StepOutcome.SUCCEEDED,
        rotation_type=NEW_DEK,
        backup_name="x.backup",
        sha256="abc",
        needs=("1", "12"),
        detail="x.backup, to a safe",
    )
    await keyring.add_journal_entry("undone", lease.token, RELOADED)
    await keyring.add_journal_entry("undone", lease.token, backup)
    back = await keyring.rollback("undone", lease.token)
    assert back.state is RotationState.ROLLED_BACK
    assert [entry.model_copy(update={"created_at": None}) for entry in back.journal] == [RELOADED, backup]
    assert all(entry.created_at for entry in back.journal)
    expected = JournalBackup(name="x.backup", sha256="abc", needs=("1", "12"))
    assert (back.backups, (await keyring.count_key_usage()).backups) == ((expected,), (expected,))
    assert {key.status for key in await keyring.list_keys() if key.id == before.id} == {"active"}
    with pytest.raises(RefusedError, match="no rotation"):
        await keyring.rollback("unheard-of", lease.token)


@each_empty_database
async def test_a_journal_entry_that_could_not_be_read_again_is_refused(keyring: Administration) -> None:
    lease = await keyring.acquire_lease("a test", 60)
    for entry in (
        JournalEntry(step=JournalStep.UNKNOWN, outcome=StepOutcome.SUCCEEDED),
        JournalEntry(step=JournalStep.RELOAD, outcome=StepOutcome.UNREADABLE),
        JournalEntry(step=JournalStep.BACKUP, outcome=StepOutcome.SUCCEEDED, backup_name="x.backup"),
        RELOADED.model_copy(update={"detail": "x" * 1001}),
        RELOADED.model_copy(update={"detail": "a NUL \0"}),
    ):
        with pytest.raises(RefusedError, match=r"this journal entry|(step|outcome|detail): "):
            await keyring.add_journal_entry("r", lease.token, entry)
    assert (await keyring.count_key_usage()).backups == ()


@each_empty_database
async def test_a_journal_entry_that_cannot_be_read_is_counted_and_blocks_retire(
    keyring: Administration, backend: Backend, versions: Versions
) -> None:
    await versions.rotate()
    lease = await keyring.acquire_lease("a test", 60)
    backup = JournalEntry(step=JournalStep.BACKUP, outcome=StepOutcome.SUCCEEDED, backup_name="x", sha256="abc")
    await keyring.add_journal_entry("r", lease.token, RELOADED)
    await keyring.add_journal_entry("r", lease.token, backup)
    await backend.execute("UPDATE keyring_journal_entries SET needs = '1 and 2' WHERE step = 'backup'")
    usage = await keyring.count_key_usage()
    assert (usage.unreadable_entries, usage.backups) == ((2,), ())
    with pytest.raises(RefusedError, match=r"may be needed by 1 journal entries that cannot be read \(number 2\)"):
        await keyring.retire_version("2", lease.token)
    await backend.execute("""UPDATE keyring_journal_entries SET needs = '["1"]' WHERE step = 'backup'""")
    assert (await keyring.count_key_usage()).backups == (JournalBackup(name="x", sha256="abc", needs=("1",)),)
    await keyring.retire_version("2", lease.token)


@each_empty_database
async def test_what_kms_refuses_is_reported_and_retried_by_nobody(keyring: Administration, emulator: Emulator) -> None:
    lease = await keyring.acquire_lease("a test", 60)
    emulator.faults.add(EmulatorFault(kind="denied", operation="Encrypt"))
    request = RotateRequest(rotation_id="r", type=NEW_DEK, token=lease.token, caller="a test")
    with pytest.raises(AdministrationError, match="permission_denied") as refused:
        await keyring.rotate(request)
    assert not isinstance(refused.value, (RefusedError, UnreachableError))


@each_empty_database
async def test_a_kms_that_is_not_there_for_longer_than_it_is_tried_may_be_retried(
    keyring: Administration, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PAUSES", (0.01,))
    lease = await keyring.acquire_lease("a test", 60)
    emulator.faults.add(EmulatorFault(kind="status", operation="Encrypt"))
    request = RotateRequest(rotation_id="r", type=NEW_DEK, token=lease.token, caller="a test")
    with pytest.raises(UnreachableError, match="unavailable"):
        await keyring.rotate(request)
