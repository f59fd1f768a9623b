"""kill -9 after every single commit of a rotator: what was left is resumed, or rolled back, and nothing is lost."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from services.rotator.report import CommandOutcome
from services.rotator.runner import resume, rollback, run
from shared.keyring.administration import RotationState, RotationType
from shared.keyring.model import DataKey, DataKeyStatus
from tests.bao import Bao
from tests.faults.summary import KILLS
from tests.rotator.conftest import Another, Copied
from tests.rotator.keyring_to_rotate import KEY, NewVersion, Rotated
from tests.rotator.killed_rotator import run_killed
from tests.rotator.served_keyring import Served
from tests.rotator.test_resume import left_in_the_middle


class Case(NamedTuple):
    """What is rotated, and from which KMS to which."""

    type: RotationType
    move: Literal["", "to Transit", "from Transit"] = ""

    def __str__(self) -> str:
        return f"{self.type} {self.move}".strip()


MOVES = [Case(RotationType.REWRAP_KEK, "to Transit"), Case(RotationType.REWRAP_KEK, "from Transit")]
Kill = Callable[[Rotated, Case, str], Awaitable[None]]


@pytest.fixture
def kill_after_each_commit(
    shared_bao: Bao, copied: Copied, new_version: NewVersion, record_property: Callable[[str, object], None]
) -> Kill:
    """Rotates, is killed, and resumes or rolls back; each time in the same keyring, and one commit later."""

    async def kill(keyring: Rotated, case: Case, command: str) -> None:
        if case.move:
            keyring = replace(keyring, transit=shared_bao.mount().build_settings(keyring.folder))
        another = await copied(replace(keyring, is_on_transit=case.move == "from Transit"))
        await new_version()
        kills, lost, whole = 0, list[str](), False
        while not whole:
            rotated = replace(await another(), is_on_transit=case.move == "to Transit")
            before = await rotated.keys()
            whole = await run_killed(rotated, kills + 1, run, case.type)
            kills += not whole
            lost += await rotated.broken()
            await rotated.lease_ends()
            if command == "resume":
                await _resumed(rotated, case.type)
                await _is_done(rotated, case.type, before)
            else:
                await _rolled_back(rotated)
                await _is_undone(rotated, case.type, before)
            lost += await rotated.broken()
        row = {"store": keyring.url.drivername, "driver": keyring.driver, "type": str(case), "then": command}
        record_property(KILLS, {**row, "kills": str(kills), "lost": str(len(lost))})
        assert (kills > 10, lost) == (True, [])

    return kill


@pytest.mark.played
@pytest.mark.parametrize("command", ["resume", "rollback"])
@pytest.mark.parametrize("case", [*map(Case, RotationType), *MOVES], ids=str)
async def test_a_rotator_that_is_killed_after_any_commit_loses_nothing(
    empty_database: URL, emulator: Emulator, tmp_path: Path, kill_after_each_commit: Kill, case: Case, command: str
) -> None:
    await kill_after_each_commit(Rotated(empty_database, emulator.address, tmp_path), case, command)


@pytest.mark.played
@pytest.mark.parametrize("command", ["resume", "rollback"])
@pytest.mark.parametrize("case", MOVES, ids=str)
async def test_a_rotator_and_a_backend_under_load_that_are_killed_after_any_commit_lose_no_record(
    emulator: Emulator, tmp_path: Path, kill_after_each_commit: Kill, case: Case, command: str
) -> None:
    url = URL.create("sqlite", database=str(tmp_path / "keyring.db"))
    await kill_after_each_commit(Served(url, emulator.address, tmp_path, home=tmp_path), case, command)


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
    row = {"store": store, "driver": "sql", "type": "rewrap-kek", "then": "resume for a later version"}
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
        async with rotated.wrapping() as wrapping:
            target = wrapping.kek, "2" if wrapping.kek == KEY else "1"
        assert {key.wrapped.by for key in after.values()} == {target}
    else:
        assert len(after) == len(before) + 1
        assert [key.id in before for key in after.values() if key.status is DataKeyStatus.ACTIVE] == [False]


async def _is_undone(rotated: Rotated, type_: RotationType, before: dict[str, DataKey]) -> None:
    after = await rotated.keys()
    assert {id_: after[id_] for id_ in before} == before
    assert [key.status for id_, key in after.items() if id_ not in before] in ([], [DataKeyStatus.RETIRED])


def _fingerprints(keys: dict[str, DataKey], of: dict[str, DataKey]) -> dict[str, bytes]:
    return {id_: keys[id_].fingerprint for id_ in of}
