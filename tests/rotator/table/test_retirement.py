"""`retire` and `destroy` believe no column of the table: a row that the primary version does not unwrap blocks both."""

import pytest

from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.retirement import destroy_version, retire_version
from services.rotator.runner import restore_backup, rollback, run
from services.rotator.session import CommandSession
from shared.keyring.administration import AdministrationError, RotationType
from shared.kms.port import VersionState
from tests.memory_kms import StoredKey
from tests.rotator.table.tenants import PREFIX, Tenants

REWRAP = RotationType.REWRAP_KEK
RESTORE_COLUMN = "UPDATE tenant_keys SET dek_ciphertext = :old WHERE tenant = 'beta'"
REFUSED = (RotatorError, AdministrationError)


async def rewrap(session: CommandSession) -> None:
    """All rows, and no backup is kept that needs another version; its entry in the journal goes, too."""
    assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
    for file, _ in session.backups.list_backups():
        file.unlink()


async def forget_backups(tenants: Tenants) -> None:
    await tenants.execute(f"DELETE FROM {PREFIX}_journal_entries WHERE step = 'backup'")  # noqa: S608 - a test's


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_version_that_a_row_needs_is_not_destroyed_whatever_its_column_says(
    tenants: Tenants, kms_key: StoredKey, *, is_late: bool
) -> None:
    old = (await tenants.rows())["beta"][0]
    kms_key.add_version("oak")
    async with tenants.session() as session:
        await rewrap(session)
        await forget_backups(tenants)
        assert (await retire_version(session, "elm")).outcome is CommandOutcome.DONE
        await tenants.execute(f"UPDATE {PREFIX}_retired_versions SET retired_at = retired_at - 31 * 86400")  # noqa: S608
        await tenants.execute(RESTORE_COLUMN, {"old": old})  # a repair of one column
        kms_key.late |= {"elm"} if is_late else set()
        with pytest.raises(REFUSED, match=r"beta \("):
            await destroy_version(session, "elm")
        assert kms_key.changes == [("elm", VersionState.DISABLED)]
        kms_key.set_state("elm", VersionState.USABLE)
        assert await tenants.unreadable() == []
        await tenants.execute("UPDATE tenant_keys SET kms_version = NULL WHERE tenant = 'beta'")
        await rewrap(session)
        await forget_backups(tenants)
        kms_key.set_state("elm", VersionState.DISABLED)
        assert (await destroy_version(session, "elm")).outcome is CommandOutcome.DONE
    assert kms_key.versions["elm"].state is VersionState.PENDING_DESTRUCTION
    assert await tenants.unreadable() == []


@pytest.mark.parametrize("column", ["oak", "pine"])
async def test_a_version_that_a_row_needs_is_not_disabled_for_a_moment(
    tenants: Tenants, kms_key: StoredKey, column: str
) -> None:
    old = (await tenants.rows())["beta"][0]
    kms_key.add_version("oak")
    kms_key.add_version("pine")
    async with tenants.session() as session:
        await rewrap(session)
        await forget_backups(tenants)
        await tenants.execute(RESTORE_COLUMN, {"old": old})
        await tenants.execute("UPDATE tenant_keys SET kms_version = :v WHERE tenant = 'beta'", {"v": column})
        with pytest.raises(REFUSED, match=r"beta \("):
            await retire_version(session, "elm")
    assert kms_key.changes == []


async def test_what_an_earlier_run_learned_by_a_column_is_no_proof(tenants: Tenants, kms_key: StoredKey) -> None:
    kms_key.add_version("oak")
    await tenants.execute("UPDATE tenant_keys SET kms_version = 'oak' WHERE tenant = 'beta'")  # `elm` wraps it
    kms_key.add_version("pine")
    async with tenants.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        assert (await rollback(session)).outcome is CommandOutcome.DONE
        kms_key.primary = "oak"
        await rewrap(session)
        await forget_backups(tenants)
        with pytest.raises(RotatorError, match=r"beta \(its version is oak, and another one wraps it\)"):
            await retire_version(session, "elm")
        assert kms_key.changes == []
        await tenants.execute("UPDATE tenant_keys SET kms_version = 'elm' WHERE tenant = 'beta'")
        await rewrap(session)
        await forget_backups(tenants)
        assert (await retire_version(session, "elm")).outcome is CommandOutcome.DONE
    assert await tenants.unreadable() == []


async def test_a_backup_may_need_every_version_but_those_that_came_later(tenants: Tenants, kms_key: StoredKey) -> None:
    before = await tenants.rows()
    kms_key.add_version("oak")
    await tenants.execute("UPDATE tenant_keys SET kms_version = 'oak'")  # `elm` wraps them all
    kms_key.add_version("pine")
    async with tenants.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        ((file, header),) = session.backups.list_backups()
        assert set(header.needs) == {"elm", "oak", "pine"}
        with pytest.raises(RotatorError, match=f"version elm is needed by the backup {file}"):
            await retire_version(session, "elm")
        assert kms_key.changes == []
        await tenants.execute("UPDATE tenant_keys SET dek_ciphertext = :bad", {"bad": b"bad"})
        await restore_backup(session, file.name)
    assert await tenants.unreadable() == []
    assert set(await tenants.rows()) == set(before)


async def test_a_row_that_where_leaves_out_is_unwrapped_too(tenants: Tenants, kms_key: StoredKey) -> None:
    kms_key.add_version("oak")
    await tenants.execute("UPDATE tenant_keys SET deleted_at = 'x', kms_version = 'oak' WHERE tenant = 'beta'")
    async with tenants.session() as session:
        await rewrap(session)
        await forget_backups(tenants)
        with pytest.raises(RotatorError, match=r"beta \(its version is oak, and another one wraps it\)"):
            await retire_version(session, "elm")
    assert kms_key.changes == []
