"""A table of another program is re-wrapped by the same steps as a keyring, in each kind of database."""

from services.rotator.report import CommandOutcome
from services.rotator.runner import rollback, run
from shared.keyring.administration import RotationState, RotationType
from tests.memory_kms import StoredKey
from tests.rotator.table.tenants import Tenants

REWRAP = RotationType.REWRAP_KEK


async def test_every_row_is_wrapped_by_the_primary_version_and_unwraps_to_the_same_key(
    tenants: Tenants, kms_key: StoredKey
) -> None:
    before = await tenants.rows()
    kms_key.add_version("oak")
    async with tenants.session() as session:
        report = await run(session, REWRAP)
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ()), report
        assert report.rotation
        assert (report.rotation.done, report.rotation.total, report.rotation.target_version) == (3, 3, "oak")
        second = await run(session, REWRAP)
        assert second.outcome is CommandOutcome.NOTHING_TO_DO
    after = await tenants.rows()
    assert {version for _, version in after.values()} == {"oak"}
    assert all(after[name][0] != before[name][0] for name in before)
    assert await tenants.unreadable() == []
    assert [row.note for row in await tenants.execute("SELECT note FROM tenant_keys")] == ["x"] * 3


async def test_a_rollback_puts_every_row_back_as_it_was(tenants: Tenants, kms_key: StoredKey) -> None:
    before = await tenants.rows()
    kms_key.add_version("oak")
    async with tenants.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        report = await rollback(session)
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ())
        assert report.rotation
        assert report.rotation.state is RotationState.ROLLED_BACK
    assert await tenants.rows() == before
