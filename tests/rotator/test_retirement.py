"""`retire` and `destroy`: refused while anything needs the version, and not before its month is over."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.model import EmulatedState
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.retirement import destroy_version, retire_version
from services.rotator.runner import restore_backup, resume, rollback, run
from shared.keyring.administration import KeyUsage, RotationType
from shared.keyring.model import DataKey
from tests.rotator.keyring_to_rotate import KEY, NewVersion, Rotated, data_key_id, write_backup
from tests.rotator.versions import DAY, forgotten, passed, refusal, rewrapped, state


async def test_a_version_that_nothing_needs_is_disabled_and_destroyed_after_its_month(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(rotated, new_version)
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
    await rewrapped(rotated, new_version)
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
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    async with in_a_file.session() as session:
        key = (await in_a_file.keys())[data_key_id(0)]
        wrapped = (await session.kms.encrypt(bytes(32), key.wrapping_aad, timeout=5)).ciphertext
    await in_a_file.execute("UPDATE data_keys SET wrapped = :other WHERE id = :id", other=wrapped, id=key.id)
    refused = await refusal(in_a_file, retire_version, 1)
    assert f"{key.id} (what it unwraps to is not the key that was stored)" in refused.message
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_the_month_starts_again_where_the_version_was_enabled_meanwhile(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(rotated, new_version)
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
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    # As if its runner had been killed before.
    await in_a_file.execute("DELETE FROM keyring_journal_entries WHERE step = 'verify'")
    refused = await refusal(in_a_file, retire_version, 1)
    assert ("is not finished" in refused.message, refused.next_commands) == (True, ("resume", "rollback"))
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_wrong_clock_of_this_machine_destroys_nothing_early(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    await in_a_file.do(retire_version, "1")
    async with in_a_file.session(now=[emulator.store.clock() + 365 * DAY]) as session:
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
    assert "needed by 1 data keys and 0 records" in (await refusal(keyring, retire_version, 1)).message
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
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    commands = (
        lambda session: run(session, RotationType.NEW_DEK),
        resume,
        rollback,
        lambda session: restore_backup(session, "latest"),
        lambda session: retire_version(session, "1"),
        lambda session: destroy_version(session, "1"),
    )
    before = await in_a_file.keys()
    async with in_a_file.session() as session:
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
    assert await in_a_file.keys() == before
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_key_that_wraps_nothing_of_the_keyring_is_not_retired(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    await in_a_file.execute("UPDATE data_keys SET kek = :other", other=f"{KEY}-of-others")
    assert f"no data key is wrapped by {KEY}" in (await refusal(in_a_file, retire_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_the_primary_version_is_not_retired(in_a_file: Rotated, new_version: NewVersion) -> None:
    await rewrapped(in_a_file, new_version)
    assert "is the primary one" in (await refusal(in_a_file, retire_version, 2)).message
    assert "has no version 3" in (await refusal(in_a_file, retire_version, 3)).message


async def test_only_a_version_that_was_retired_and_is_still_disabled_is_destroyed(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    refused = await refusal(in_a_file, destroy_version, 1)
    assert ("is ENABLED" in refused.message, refused.next_commands) == (True, ("retire 1 --confirm 1",))
    await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.DISABLED))
    assert "is not retired" in (await refusal(in_a_file, destroy_version, 1)).message
    await in_a_file.do(retire_version, "1")
    await passed(in_a_file, 31)
    await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.ENABLED))
    assert "is ENABLED" in (await refusal(in_a_file, destroy_version, 1)).message
