"""kill -9 after every single commit of a rotator: what was left is resumed, or rolled back, and nothing is lost."""

from collections.abc import Awaitable, Callable

import pytest

from services.rotator.report import CommandOutcome
from services.rotator.runner import resume, rollback, run
from shared.keyring.administration import RotationState, RotationType
from shared.keyring.model import DataKey, DataKeyStatus
from tests.faults.summary import KILLS
from tests.rotator.keyring_to_rotate import NewVersion, Rotated
from tests.rotator.killed_rotator import run_killed
from tests.rotator.test_resume import left_in_the_middle

Another = Callable[[], Awaitable[Rotated]]


@pytest.mark.played
@pytest.mark.parametrize("command", ["resume", "rollback"])
@pytest.mark.parametrize("type_", list(RotationType))
async def test_a_rotator_that_is_killed_after_any_commit_loses_nothing(
    another: Another,
    new_version: NewVersion,
    type_: RotationType,
    command: str,
    record_property: Callable[[str, object], None],
) -> None:
    await new_version()
    kills, lost, whole = 0, list[str](), False
    while not whole:
        rotated = await another()
        before = await rotated.keys()
        whole = await run_killed(rotated, kills + 1, run, type_)
        kills += not whole
        await rotated.lease_ends()
        if command == "resume":
            await _resumed(rotated, type_)
            await _is_done(rotated, type_, before)
        else:
            await _rolled_back(rotated)
            await _is_undone(rotated, type_, before)
        lost += await rotated.broken()
    store = rotated.url.drivername
    record_property(
        KILLS, {"store": store, "type": type_.value, "then": command, "kills": str(kills), "lost": str(len(lost))}
    )
    assert (kills > 10, lost) == (True, [])


@pytest.mark.played
async def test_a_resume_for_a_later_primary_version_that_is_killed_after_any_commit_loses_nothing(
    another: Another, new_version: NewVersion, record_property: Callable[[str, object], None]
) -> None:
    await new_version()
    kills, lost, whole, target = 0, list[str](), False, 2
    while not whole:
        rotated = await another()
        await left_in_the_middle(rotated)
        await new_version()
        target += 1
        whole = await run_killed(rotated, kills + 1, resume)
        kills += not whole
        await rotated.lease_ends()
        await _resumed(rotated, RotationType.REWRAP_KEK)
        assert {key.wrapped.kek_version for key in (await rotated.keys()).values()} == {str(target)}
        lost += await rotated.broken()
    store = rotated.url.drivername
    row = {"store": store, "type": "rewrap-kek", "then": "resume for a later version"}
    record_property(KILLS, row | {"kills": str(kills), "lost": str(len(lost))})
    assert (kills > 10, lost) == (True, [])


async def _resumed(rotated: Rotated, type_: RotationType) -> None:
    async with rotated.session() as session:
        resumed = await resume(session)
        if resumed.outcome is CommandOutcome.NOTHING_TO_DO:  # it had not begun, or was done
            resumed = await run(session, type_)
        assert resumed.outcome in {CommandOutcome.DONE, CommandOutcome.NOTHING_TO_DO}
        assert (await run(session, type_)).outcome is CommandOutcome.NOTHING_TO_DO


async def _rolled_back(rotated: Rotated) -> None:
    async with rotated.session() as session:
        assert (await rollback(session)).outcome in {CommandOutcome.DONE, CommandOutcome.NOTHING_TO_DO}
        assert (await rollback(session)).outcome is CommandOutcome.NOTHING_TO_DO
        latest = await session.administration.get_progress()
        assert latest is None or latest.state is RotationState.ROLLED_BACK


async def _is_done(rotated: Rotated, type_: RotationType, before: dict[str, DataKey]) -> None:
    after = await rotated.keys()
    assert _fingerprints(after, before) == _fingerprints(before, before)
    if type_ is RotationType.REWRAP_KEK:
        assert {key.wrapped.kek_version for key in after.values()} == {"2"}
    else:
        assert len(after) == len(before) + 1
        assert [key.id in before for key in after.values() if key.status is DataKeyStatus.ACTIVE] == [False]


async def _is_undone(rotated: Rotated, type_: RotationType, before: dict[str, DataKey]) -> None:
    after = await rotated.keys()
    assert {id_: after[id_] for id_ in before} == before
    assert [key.status for id_, key in after.items() if id_ not in before] in ([], [DataKeyStatus.RETIRED])


def _fingerprints(keys: dict[str, DataKey], of: dict[str, DataKey]) -> dict[str, bytes]:
    return {id_: keys[id_].fingerprint for id_ in of}
