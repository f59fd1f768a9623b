"""A backup is put back: what was damaged is healed, and nothing that works is displaced by what does not."""

from datetime import UTC, datetime

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.rotator.backups import BackupError
from services.rotator.inspection import check_backup
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.runner import restore_backup, run
from shared.keyring.administration import RotationType
from shared.keyring.model import DataKeyStatus
from tests.rotator.keyring_to_rotate import NewVersion, Rotated, data_key_id, find_latest_backup, write_backup


async def test_damaged_and_lost_data_keys_come_back(rotated: Rotated) -> None:
    before = await rotated.keys()
    async with rotated.session() as session:
        await run(session, RotationType.NEW_DEK)
        await rotated.execute("UPDATE data_keys SET wrapped = :junk WHERE id = :id", junk=b"junk", id=data_key_id(0))
        await rotated.execute("DELETE FROM data_keys WHERE id = :id", id=data_key_id(1))
        report = await restore_backup(session, "latest")
    after = await rotated.keys()
    assert (report.outcome, report.summary) == (
        CommandOutcome.DONE,
        "2 data keys as in the backup again; everything can be read",
    )
    assert {id_: after[id_].wrapped for id_ in before} == {id_: key.wrapped for id_, key in before.items()}
    assert [key.id in before for key in after.values() if key.status is DataKeyStatus.ACTIVE] == [False]
    assert await rotated.broken() == []


async def test_a_damaged_backup_changes_nothing(in_a_file: Rotated) -> None:
    async with in_a_file.session() as session:
        await run(session, RotationType.NEW_DEK)
        file = await find_latest_backup(session)
        file.write_bytes(file.read_bytes()[:-1])
        await in_a_file.execute("DELETE FROM data_keys WHERE id = :id", id=data_key_id(1))
        before = await in_a_file.keys()
        with pytest.raises(BackupError, match="is damaged"):
            await restore_backup(session, "latest")
    assert await in_a_file.keys() == before


async def test_what_cannot_be_put_back_is_named(in_a_file: Rotated) -> None:
    async with in_a_file.session() as session:
        await in_a_file.execute("UPDATE data_keys SET wrapped = :junk WHERE id = :id", junk=b"junk", id=data_key_id(0))
        await run(session, RotationType.NEW_DEK)  # its backup holds the junk, too
        await in_a_file.execute(
            "UPDATE data_keys SET wrapped = :other WHERE id = :id", other=b"other", id=data_key_id(0)
        )
        report = await restore_backup(session, "latest")
    assert (report.outcome, report.summary) == (
        CommandOutcome.FAILED,
        "what can be put back is as in the backup; what is named below is not",
    )
    assert data_key_id(0) in report.problems[0].error


async def test_no_backup_is_put_back_in_the_middle_of_a_rotation(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await new_version()
    async with in_a_file.session(batch_size=1) as session:
        denied = EmulatorFault(kind="denied", operation="Encrypt")
        session.progress.report_progress = lambda *_: emulator.faults.add(denied)  # type: ignore[method-assign,assignment]
        with pytest.raises(RotatorError):
            await run(session, RotationType.REWRAP_KEK)
        emulator.faults.clear()
        with pytest.raises(RotatorError, match="is not finished") as refused:
            await restore_backup(session, "latest")
    assert refused.value.next_commands == ("resume", "rollback")


async def test_the_latest_backup_is_that_of_the_latest_rotation_whatever_the_clock_of_this_machine_says(
    in_a_file: Rotated,
) -> None:
    ahead = [datetime.now(UTC).timestamp() + 3 * 365 * 86400]
    async with in_a_file.session(now=ahead) as session:
        await run(session, RotationType.NEW_DEK)
        ((file, header),) = session.backups.list_backups()
        assert header.created_at < datetime.now(UTC)
        later, _ = await write_backup(session, "later")  # as a database on such a machine, too, would have it
        for command in (check_backup, restore_backup):
            report = await command(session, "latest")
            assert report.backup
            assert report.backup.file == str(file)
        file.unlink()
        assert await find_latest_backup(session) == later
