"""`retire` and `destroy` are refused while a data key or a journal entry cannot be read: it may need any version."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.model import EmulatedState
from services.rotator.inspection import show_key_usage
from services.rotator.report import CommandOutcome
from services.rotator.retirement import destroy_version, retire_version
from services.rotator.runner import run
from shared.keyring.administration import RefusedError, RotationType
from shared.keyring.tables import journal_entries
from tests.rotator.keyring_to_rotate import KEY, NewVersion, Rotated, data_key_id
from tests.rotator.versions import DAY, forgotten, refusal, state


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


SPOILT = (
    "needs = 'version 1'",
    "sha256 = NULL",
    "step = 'backups'",
    "outcome = 'unreadable'",
    "outcome = 'failed'",
    "needs = '[]'",
)
"""What another program may make of the columns of a backup."""


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
