"""`retire` and `destroy`: refused while anything needs the version or may need it, and not before its month is over.

Where KMS or the keyring refuses in the middle, the version is as before, or it is said how it is.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState
from services.rotator.inspection import show_key_usage
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.retirement import destroy_version, retire_version
from services.rotator.runner import restore_backup, resume, rollback, run
from services.rotator.session import CommandSession
from shared.keyring.administration import (
    AdministrationError,
    JournalBackup,
    KeyUsage,
    RefusedError,
    RotationType,
    UnreachableError,
)
from shared.keyring.model import UNREADABLE_VERSION, DataKey
from shared.keyring.tables import journal_entries
from shared.kms.port import KeyVersion, KmsError
from shared.kms.reason import Reason
from tests.rotator.keyring_to_rotate import KEY, SECONDS, NewVersion, Rotated, data_key_id, write_backup
from tests.rotator.versions import DAY, forgotten, passed, refusal, rewrap, state


async def test_a_version_that_nothing_needs_is_disabled_and_destroyed_after_its_month(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrap(rotated, new_version)
    assert (await rotated.do(retire_version, "1")).outcome is CommandOutcome.DONE
    assert await state(emulator, 1) is EmulatedState.DISABLED
    await passed(rotated, 29.9)
    assert "after 30 days" in (await refusal(rotated, destroy_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.DISABLED
    await passed(rotated, 0.2)
    report = await rotated.do(destroy_version, "1")
    assert "An older backup of the database" in report.summary
    assert await state(emulator, 1) is EmulatedState.DESTROY_SCHEDULED
    assert await rotated.broken() == []


async def put_back(keyring: Rotated, before: dict[str, DataKey]) -> None:
    """The first data key's old wrapped form, as a repair of that column alone does."""
    change = text("UPDATE data_keys SET wrapped = :old WHERE id = :id")
    values = {"old": before[data_key_id(0)].wrapped.ciphertext, "id": data_key_id(0)}
    async with keyring.database() as database:
        await database.write(lambda connection: connection.execute(change, values))


async def test_a_version_that_a_data_key_needs_is_neither_retired_nor_destroyed_whatever_its_row_says(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    before = await rotated.keys()
    await rewrap(rotated, new_version)
    await put_back(rotated, before)
    refused = await refusal(rotated, retire_version, 1)
    assert f"{data_key_id(0)} (its version is 2, and another one wraps it)" in refused.message
    assert refused.next_commands == ("run --type rewrap-kek",)
    assert await state(emulator, 1) is EmulatedState.ENABLED
    await rotated.execute("UPDATE data_keys SET kek_version = ''")
    async with rotated.session() as session:
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.DONE
        ((file, _),) = session.backups.list_backups()
        file.unlink()
    await forgotten(rotated)
    assert (await rotated.do(retire_version, "1")).outcome is CommandOutcome.DONE
    await passed(rotated, 31)
    await put_back(rotated, before)
    assert f"{data_key_id(0)} (KMS: key_disabled)" in (await refusal(rotated, destroy_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.DISABLED


async def test_no_version_is_retired_while_a_row_unwraps_to_another_data_key_than_was_stored(
    rewrapped: Rotated, emulator: Emulator
) -> None:
    async with rewrapped.session() as session:
        key = (await rewrapped.keys())[data_key_id(0)]
        wrapped = (await session.kms.encrypt(bytes(32), key.wrapping_aad, timeout=SECONDS)).ciphertext
    await rewrapped.execute("UPDATE data_keys SET wrapped = :other WHERE id = :id", other=wrapped, id=key.id)
    refused = await refusal(rewrapped, retire_version, 1)
    assert f"{key.id} (what it unwraps to is not the key that was stored)" in refused.message
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_the_month_starts_again_where_the_version_was_enabled_meanwhile(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrap(rotated, new_version)
    await rotated.do(retire_version, "1")
    await passed(rotated, 31)
    async with rotated.session() as session:
        report = await retire_version(session, "1")  # it is disabled all the time: these days count
        (before,) = (await session.administration.count_key_usage()).retired_versions
    assert "is retired since" in report.summary
    await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.ENABLED))
    async with rotated.session() as session:
        assert (await retire_version(session, "1")).outcome is CommandOutcome.DONE
        (after,) = (await session.administration.count_key_usage()).retired_versions
    assert after.retired_at - before.retired_at > timedelta(days=30.9)
    assert "after 30 days" in (await refusal(rotated, destroy_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.DISABLED


async def test_no_version_is_retired_while_a_rotation_that_may_have_to_be_undone_is_not_verified(
    rewrapped: Rotated, emulator: Emulator
) -> None:
    # As if its runner had been killed before.
    await rewrapped.execute("DELETE FROM keyring_journal_entries WHERE step = 'verify'")
    refused = await refusal(rewrapped, retire_version, 1)
    assert ("is not finished" in refused.message, refused.next_commands) == (True, ("resume", "rollback"))
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_wrong_clock_of_this_machine_destroys_nothing_early(rewrapped: Rotated, emulator: Emulator) -> None:
    await rewrapped.do(retire_version, "1")
    async with rewrapped.session(now=[emulator.store.clock() + 365 * DAY]) as session:
        with pytest.raises(RotatorError, match="after 30 days"):
            await destroy_version(session, "1")


async def test_a_version_is_not_retired_while_a_data_key_needs_it(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await new_version()
    refused = await refusal(in_a_file, retire_version, 1)
    assert "needed by 3 data keys and 6 records" in refused.message
    assert refused.next_commands == ("run --type rewrap-kek",)
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_version_is_not_retired_while_a_data_key_without_any_record_needs_it(
    emulator: Emulator, tmp_path: Path, new_version: NewVersion
) -> None:
    keyring = Rotated(URL.create("sqlite", database=str(tmp_path / "keyring.db")), emulator.address, tmp_path)
    await keyring.fill(1, records=0)
    await new_version()
    assert "needed by 1 data key and 0 records" in (await refusal(keyring, retire_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_version_is_not_retired_while_a_kept_backup_needs_it(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await new_version()
    async with in_a_file.session() as session:
        await run(session, RotationType.REWRAP_KEK)
        ((file, header),) = session.backups.list_backups()
    assert (header.kek_version, header.needs) == ("2", ("1", "2"))
    assert f"needed by the backup {file}" in (await refusal(in_a_file, retire_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_version_by_which_a_backup_itself_is_encrypted_is_not_retired(
    in_a_file: Rotated, new_version: NewVersion
) -> None:
    async with in_a_file.session() as session:
        file, _ = await write_backup(session, needs=())
    await new_version()
    async with in_a_file.session() as session:
        await run(session, RotationType.REWRAP_KEK)
        for other, _ in session.backups.list_backups():
            if other != file:
                other.unlink()
    assert f"needed by the backup {file}" in (await refusal(in_a_file, retire_version, 1)).message


async def test_a_key_whose_users_the_census_does_not_know_is_neither_rotated_nor_retired(
    rewrapped: Rotated, emulator: Emulator
) -> None:
    commands = (
        lambda session: run(session, RotationType.NEW_DEK),
        resume,
        rollback,
        lambda session: restore_backup(session, "latest"),
        lambda session: retire_version(session, "1"),
        lambda session: destroy_version(session, "1"),
    )
    before = await rewrapped.keys()
    async with rewrapped.session() as session:
        counted = await session.administration.count_key_usage()

        async def of(kek: str | None) -> None:
            async def census() -> KeyUsage:
                return counted.model_copy(update={"kek": kek})

            session.administration.count_key_usage = census  # type: ignore[method-assign]
            for command in commands:
                with pytest.raises(RotatorError, match=f"by .*{kek or 'an unknown KMS key'}.*`kms.key` is {KEY}"):
                    await command(session)

        await of("another/key")
        await of(None)
    assert await rewrapped.keys() == before
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_key_that_wraps_nothing_of_the_keyring_is_not_retired(rewrapped: Rotated, emulator: Emulator) -> None:
    await rewrapped.execute("UPDATE data_keys SET kek = :other", other=f"{KEY}-of-others")
    assert f"no data key is wrapped by {KEY}" in (await refusal(rewrapped, retire_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_the_primary_version_is_not_retired(rewrapped: Rotated) -> None:
    assert "is the primary one" in (await refusal(rewrapped, retire_version, 2)).message
    assert "has no version 3" in (await refusal(rewrapped, retire_version, 3)).message


async def test_only_a_version_that_was_retired_and_is_still_disabled_is_destroyed(
    rewrapped: Rotated, emulator: Emulator
) -> None:
    refused = await refusal(rewrapped, destroy_version, 1)
    assert ("is ENABLED" in refused.message, refused.next_commands) == (True, ("retire 1 --confirm 1",))
    await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.DISABLED))
    assert "is not retired" in (await refusal(rewrapped, destroy_version, 1)).message
    await rewrapped.do(retire_version, "1")
    await passed(rewrapped, 31)
    await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.ENABLED))
    assert "is ENABLED" in (await refusal(rewrapped, destroy_version, 1)).message


async def test_a_version_that_a_backup_elsewhere_needs_is_retired_and_destroyed_only_where_that_is_confirmed(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrap(in_a_file, new_version)
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
    rewrapped: Rotated, emulator: Emulator
) -> None:
    await rewrapped.execute("UPDATE data_keys SET kek_version = '' WHERE status = 'active'")
    refused = await refusal(rewrapped, retire_version, 1)
    assert "version 1 may be needed by 1 data key whose version cannot be read" in refused.message
    assert refused.next_commands == ("run --type rewrap-kek",)
    assert await state(emulator, 1) is EmulatedState.ENABLED
    async with rewrapped.session() as session:
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.DONE
        ((file, header),) = session.backups.list_backups()
        assert header.needs == ("1", "2")
    assert f"needed by the backup {file}" in (await refusal(rewrapped, retire_version, 1)).message
    file.unlink()
    refused = await refusal(rewrapped, retire_version, 1)
    assert refused.next_commands == ("retire 1 --confirm 1 --confirm-backups 1",)


async def test_what_a_backup_that_is_stored_needs_is_what_it_says_itself(rewrapped: Rotated) -> None:
    async with rewrapped.session() as session:
        await run(session, RotationType.NEW_DEK)  # its backup needs version 2 alone
        await rewrapped.execute("UPDATE keyring_journal_entries SET needs = NULL WHERE step = 'backup'")
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


async def test_a_row_that_cannot_be_read_may_need_any_version_and_blocks_retire_and_destroy(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await in_a_file.execute(
        "UPDATE data_keys SET algorithm = CAST(algorithm || X'FF' AS TEXT) WHERE id = :id", id=data_key_id(0)
    )
    await new_version()
    async with in_a_file.session() as session:
        await run(session, RotationType.REWRAP_KEK)
        for file, _ in session.backups.list_backups():
            file.unlink()
        lease = await session.administration.acquire_lease("a caller of its own", 60)
        with pytest.raises(RefusedError, match="1 rows of data keys that cannot be read"):
            await session.administration.retire_version("1", lease.token)
        await session.administration.release_lease(lease.token)
        assert "1 rows of data keys that cannot be read may need any version" in (await show_key_usage(session)).summary
    await forgotten(in_a_file)
    refused = await refusal(in_a_file, retire_version, 1)
    assert ("may be needed by 1 rows of data keys that cannot be read" in refused.message, refused.next_commands) == (
        True,
        ("verify",),
    )
    assert await state(emulator, 1) is EmulatedState.ENABLED
    await retired_before(in_a_file, emulator)
    assert "may be needed by 1 rows" in (await refusal(in_a_file, destroy_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.DISABLED


async def test_a_data_key_that_the_database_lost_may_need_any_version_and_blocks_retire_and_destroy(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rotated.execute("DELETE FROM data_keys WHERE id = :id", id=data_key_id(0))
    await new_version()
    async with rotated.session() as session:
        await run(session, RotationType.REWRAP_KEK)
        for file, _ in session.backups.list_backups():
            file.unlink()
    await forgotten(rotated)
    refused = await refusal(rotated, retire_version, 1)
    assert "may be needed by 1 data keys that records need and the database lacks" in refused.message
    assert await state(emulator, 1) is EmulatedState.ENABLED
    await retired_before(rotated, emulator)
    assert "may be needed by 1 data keys" in (await refusal(rotated, destroy_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.DISABLED


SPOILT = ("needs = 'version 1'", "outcome = 'failed'")
"""What another program may make of the columns of a backup; the keyring's tests have more."""


async def test_a_journal_entry_that_cannot_be_read_blocks_retire_and_destroy(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await new_version()
    async with rotated.session() as session:
        await run(session, RotationType.REWRAP_KEK)
        for file, _ in session.backups.list_backups():
            file.unlink()
    sentence = "version 1 may be needed by 1 journal entries that cannot be read"
    for change in SPOILT:
        async with spoilt(rotated, change):
            assert sentence in (await refusal(rotated, retire_version, 1)).message, change
            assert await state(emulator, 1) is EmulatedState.ENABLED
    await retired_before(rotated, emulator)
    for change in SPOILT:
        async with spoilt(rotated, change):
            assert sentence in (await refusal(rotated, destroy_version, 1)).message, change
            assert await state(emulator, 1) is EmulatedState.DISABLED
    await rotated.execute("DELETE FROM keyring_journal_entries WHERE step = 'backup'")
    assert (await rotated.do(destroy_version, "1")).outcome is CommandOutcome.DONE


@asynccontextmanager
async def spoilt(rotated: Rotated, change: str) -> AsyncIterator[None]:
    """The entry of the backup while another program has changed it so."""
    async with rotated.database() as database:
        find = journal_entries.select().where(journal_entries.c.step == "backup")
        (entry,) = await database.read(lambda connection: connection.execute(find).mappings().all())
        is_it = journal_entries.c.number == entry["number"]
        wrong = text(f"UPDATE keyring_journal_entries SET {change} WHERE number = {entry['number']}")  # noqa: S608
        await database.write(lambda connection: connection.execute(wrong))
        yield
        right = journal_entries.update().where(is_it).values(**entry)
        await database.write(lambda connection: connection.execute(right))


async def retired_before(rotated: Rotated, emulator: Emulator) -> None:
    """As if version 1 had been retired a month ago, before anything was lost."""
    await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.DISABLED))
    insert = text("INSERT INTO keyring_retired_versions (kek, kek_version, retired_at) VALUES (:kek, 1, :at)")
    async with rotated.database() as database:
        at = emulator.store.clock() - 31 * DAY
        await database.write(lambda connection: connection.execute(insert, {"kek": KEY, "at": at}))


async def test_a_refusal_of_kms_is_reported_and_nothing_is_written_down(rewrapped: Rotated, emulator: Emulator) -> None:
    emulator.faults.add(EmulatorFault(kind="denied", operation="UpdateCryptoKeyVersion"))
    refused = await refusal(rewrapped, retire_version, 1)
    assert "PERMISSION_DENIED" in refused.message.upper()
    assert refused.next_commands == ("retire 1 --confirm 1",)
    async with rewrapped.session() as session:
        assert (await session.administration.count_key_usage()).retired_versions == ()


def does_not_retire(session: CommandSession, why: BaseException) -> None:
    """As the keyring may answer once KMS has disabled the version."""

    async def answers(kek_version: str, token: str) -> None:
        raise why

    session.administration.retire_version = answers  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [RefusedError, UnreachableError, AdministrationError])
async def test_a_version_that_the_keyring_does_not_retire_is_enabled_again(
    rewrapped: Rotated, emulator: Emulator, error: type[AdministrationError]
) -> None:
    async with rewrapped.session() as session:
        does_not_retire(session, error("a data key needs it since"))
        with pytest.raises(RotatorError, match="a data key needs it since; it is enabled again") as failed:
            await retire_version(session, "1")
    assert failed.value.next_commands == ("retire 1 --confirm 1",)
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_version_is_enabled_again_where_the_command_is_stopped(rewrapped: Rotated, emulator: Emulator) -> None:
    async with rewrapped.session() as session:
        does_not_retire(session, asyncio.CancelledError())
        with pytest.raises(asyncio.CancelledError):
            await retire_version(session, "1")
    assert await state(emulator, 1) is EmulatedState.ENABLED


@pytest.mark.parametrize("ends", [KmsError(Reason.TIMEOUT, "no answer"), asyncio.CancelledError()])
async def test_a_version_is_enabled_again_where_kms_disables_it_and_nobody_hears_of_it(
    rewrapped: Rotated, emulator: Emulator, ends: BaseException
) -> None:
    async with rewrapped.session() as session:
        enable = session.kms.set_version_enabled

        async def unheard(version: str, *, is_enabled: bool, timeout: float) -> KeyVersion:
            done = await enable(version, is_enabled=is_enabled, timeout=timeout)
            if not is_enabled:
                raise ends
            return done

        session.kms.set_version_enabled = unheard  # type: ignore[method-assign]
        with pytest.raises((RotatorError, asyncio.CancelledError)):
            await retire_version(session, "1")
        assert (await session.administration.count_key_usage()).retired_versions == ()
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_version_that_somebody_had_disabled_stays_so(rewrapped: Rotated, emulator: Emulator) -> None:
    await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.DISABLED))
    async with rewrapped.session() as session:
        does_not_retire(session, RefusedError("a data key needs it since"))
        with pytest.raises(RotatorError, match="it is disabled in KMS, as it was before"):
            await retire_version(session, "1")
    assert await state(emulator, 1) is EmulatedState.DISABLED


async def test_a_version_that_kms_does_not_enable_again_is_reported_to_be_disabled(
    rewrapped: Rotated, emulator: Emulator
) -> None:
    async with rewrapped.session() as session:

        async def dies(kek_version: str, token: str) -> None:
            emulator.faults.add(EmulatorFault(kind="denied", operation="UpdateCryptoKeyVersion"))
            raise UnreachableError("nobody answers")

        session.administration.retire_version = dies  # type: ignore[method-assign]
        with pytest.raises(RotatorError, match="nobody answers; it may be left disabled in KMS") as failed:
            await retire_version(session, "1")
    assert failed.value.next_commands == ("retire 1 --confirm 1",)
    assert await state(emulator, 1) is EmulatedState.DISABLED
