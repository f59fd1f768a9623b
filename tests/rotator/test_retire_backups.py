"""Backups that `retire` and `destroy` know of by the journal alone: artifacts of a job, or files on another machine."""

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.model import EmulatedState
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.retirement import destroy_version, retire_version
from services.rotator.runner import run
from shared.keyring.administration import JournalBackup, RotationType
from shared.keyring.model import UNREADABLE_VERSION
from tests.rotator.keyring_to_rotate import NewVersion, Rotated
from tests.rotator.versions import passed, refusal, rewrapped, state


async def test_a_version_that_a_backup_elsewhere_needs_is_retired_and_destroyed_only_where_that_is_confirmed(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    await new_version()
    async with in_a_file.session() as session:
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.DONE
        ((file, _),) = session.backups.list_backups()
        (backup,) = (await session.administration.count_key_usage()).backups
        assert (backup.name, backup.needs) == (file.name, ("1", "2", "3"))  # only of 3 it would be proven
        file.unlink()  # the job's machine is thrown away
    refused = await refusal(in_a_file, retire_version, 2)
    assert f"needed by 1 backups that are not in {file.parent}, the latest {file.name}" in refused.message
    assert refused.next_commands == ("retire 2 --confirm 2 --confirm-backups 1",)
    assert await state(emulator, 2) is EmulatedState.ENABLED
    async with in_a_file.session() as session:
        with pytest.raises(RotatorError, match="needed by 1 backups that are not in"):
            await retire_version(session, "2", 2)  # somebody has another number in mind
        await retire_version(session, "1", 1)
        await retire_version(session, "2", 1)
    assert await state(emulator, 2) is EmulatedState.DISABLED
    await passed(in_a_file, 31)
    assert (await refusal(in_a_file, destroy_version, 2)).next_commands == (
        "destroy 2 --confirm 2 --confirm-backups 1",
    )
    await in_a_file.do(destroy_version, "2", 1)
    assert await state(emulator, 2) is EmulatedState.DESTROY_SCHEDULED


async def test_while_the_version_of_a_data_key_or_of_a_backups_cannot_be_read_none_is_retired(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    await in_a_file.execute("UPDATE data_keys SET kek_version = '' WHERE status = 'active'")
    refused = await refusal(in_a_file, retire_version, 1)
    assert "version 1 may be needed by 1 data keys whose version cannot be read" in refused.message
    assert refused.next_commands == ("run --type rewrap-kek",)
    assert await state(emulator, 1) is EmulatedState.ENABLED
    async with in_a_file.session() as session:
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.DONE
        ((file, header),) = session.backups.list_backups()
        assert header.needs == ("1", "2")
    assert f"needed by the backup {file}" in (await refusal(in_a_file, retire_version, 1)).message
    file.unlink()
    refused = await refusal(in_a_file, retire_version, 1)
    assert refused.next_commands == ("retire 1 --confirm 1 --confirm-backups 1",)


async def test_what_a_backup_that_is_stored_needs_is_what_it_says_itself(
    in_a_file: Rotated, new_version: NewVersion
) -> None:
    await rewrapped(in_a_file, new_version)
    async with in_a_file.session() as session:
        await run(session, RotationType.NEW_DEK)  # its backup needs version 2 alone
        await in_a_file.execute("UPDATE keyring_journal_entries SET needs = NULL WHERE step = 'backup'")
        ((_file, _),) = session.backups.list_backups()
        assert (await session.administration.count_key_usage()).backups[0].needs is None
        assert (await retire_version(session, "1")).outcome is CommandOutcome.DONE


async def test_a_backup_that_needs_a_version_which_the_key_does_not_have_may_need_any(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await new_version()
    async with in_a_file.session() as session:
        await run(session, RotationType.REWRAP_KEK)
        ((file, _),) = session.backups.list_backups()
    file.unlink()
    typed = "UPDATE keyring_journal_entries SET needs = :needs WHERE step = 'backup'"
    await in_a_file.execute(typed, needs='["v1", "2"]')
    refused = await refusal(in_a_file, retire_version, 1)
    assert refused.next_commands == ("retire 1 --confirm 1 --confirm-backups 1",)
    assert await state(emulator, 1) is EmulatedState.ENABLED
    await in_a_file.execute(typed, needs='["2"]')
    assert (await in_a_file.do(retire_version, "1")).outcome is CommandOutcome.DONE


@pytest.mark.parametrize(
    ("needs", "versions"),
    [
        (None, {"1", "2", "11"}),
        (("2", "11"), {"2", "11"}),
        ((UNREADABLE_VERSION, "2"), {"1", "2", "11"}),
        ((), {"1", "2", "11"}),  # each backup is encrypted by a version
    ],
)
def test_a_backup_whose_needs_were_not_written_may_need_every_version(
    needs: tuple[str, ...] | None, versions: set[str]
) -> None:
    backup = JournalBackup(name="a.backup", sha256="0123", needs=needs)
    assert {version for version in ("1", "2", "11") if backup.may_need(version)} == versions
