from collections.abc import Awaitable, Callable

from services.rotator.report import Outcome
from services.rotator.run import run
from shared.keyring.administration import RotationState, RotationType
from shared.keyring.model import Status
from tests.rotator.rotated import Rotated

NewVersion = Callable[[], Awaitable[None]]


async def test_a_rewrap_leaves_every_data_key_what_it_was_and_wraps_it_by_the_primary_version(
    rotated: Rotated, new_version: NewVersion
) -> None:
    before = await rotated.keys()
    await new_version()
    async with rotated.session() as session:
        report = await run(session, RotationType.REWRAP_KEK)
    after = await rotated.keys()
    assert report.outcome is Outcome.DONE
    assert report.rotation
    assert (report.rotation.state, report.rotation.done, report.rotation.total) == (RotationState.DONE, 3, 3)
    assert {key.wrapped.kek_version for key in after.values()} == {2}
    assert {id_: key.fingerprint for id_, key in after.items()} == {id_: k.fingerprint for id_, k in before.items()}
    assert await rotated.broken() == []


async def test_a_new_data_key_becomes_the_active_one_and_the_old_one_still_reads(rotated: Rotated) -> None:
    before = await rotated.keys()
    async with rotated.session() as session:
        report = await run(session, RotationType.NEW_DEK)
    after = await rotated.keys()
    assert report.outcome is Outcome.DONE
    assert len(after) == 4
    (active,) = (key.id for key in after.values() if key.status is Status.ACTIVE)
    assert active not in before
    assert await rotated.broken() == []


async def test_a_second_run_is_told_to_have_nothing_to_do_and_changes_no_key(
    rotated: Rotated, new_version: NewVersion
) -> None:
    await new_version()
    for type_ in (RotationType.REWRAP_KEK, RotationType.NEW_DEK):
        async with rotated.session() as session:
            assert (await run(session, type_)).outcome is Outcome.DONE
        before = await rotated.keys()
        async with rotated.session() as session:
            report = await run(session, type_)
        assert report.outcome is Outcome.NOTHING_TO_DO
        assert report.sentence.startswith("nothing to do")
        assert await rotated.keys() == before
