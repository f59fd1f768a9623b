"""The primary version changes in the middle of a rotation, as Cloud KMS does by schedule: `resume` goes on with it."""

import pytest
from sqlalchemy import text

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.model import EmulatedState
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.runner import resume, rollback, run
from services.rotator.steps import RotationSteps
from shared.keyring.administration import JournalStep, RotationProgress, RotationType
from shared.keyring.model import DataKeyStatus
from tests.rotator.keyring_to_rotate import KEY, NewVersion, Rotated
from tests.rotator.test_resume import left_in_the_middle

NEW = RotationType.NEW_DEK


def retargets(rotation: RotationProgress) -> list[str]:
    return [entry.detail for entry in rotation.journal if entry.step is JournalStep.RETARGET]


async def versions(rotated: Rotated) -> set[str]:
    return {key.wrapped.kek_version for key in (await rotated.keys()).values()}


async def entries(rotated: Rotated) -> list[tuple[str, str]]:
    """Of the journal: which version each data key had before the rotation, and has by now."""
    async with rotated.database() as database:
        found = text("SELECT old_kek_version, new_kek_version FROM keyring_rewraps")
        return [(row[0], row[1]) for row in await database.read(lambda it: it.execute(found).all())]


async def test_what_was_wrapped_for_the_version_before_is_wrapped_once_more(
    rotated: Rotated, new_version: NewVersion
) -> None:
    before = await rotated.keys()
    await new_version()
    await left_in_the_middle(rotated)
    assert await versions(rotated) == {"1", "2"}
    await new_version()
    async with rotated.session() as session:
        ((file, _),) = session.backups.list_backups()
        report = await resume(session)
        assert [backup for backup, _ in session.backups.list_backups()] == [file]
        steps = [step.step for step in session.steps]
    assert (report.outcome, await versions(rotated), await rotated.broken()) == (CommandOutcome.DONE, {"3"}, [])
    assert report.rotation
    assert (report.rotation.target_version, report.rotation.done, report.rotation.total) == ("3", 3, 3)
    assert "from version 2 to version 3" in retargets(report.rotation)
    assert steps == ["primary_version", "smoke", "primary_in_use", "rotate", "reload", "verify"]
    assert await entries(rotated) == [("1", "3")] * 3
    async with rotated.session() as session:
        assert (await resume(session)).outcome is CommandOutcome.NOTHING_TO_DO
        assert (await rollback(session)).outcome is CommandOutcome.DONE
    assert await rotated.keys() == before


async def test_a_rollback_goes_back_to_before_the_rotation_though_the_version_in_between_is_disabled(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    before = await in_a_file.keys()
    await new_version()
    await left_in_the_middle(in_a_file)
    await new_version()
    async with in_a_file.session() as session:
        await resume(session)
        await emulator.store.update_key(KEY, lambda key: key.with_state(2, EmulatedState.DISABLED))
        for file, _ in session.backups.list_backups():
            file.unlink()  # version 2 encrypts it
        assert (await rollback(session)).outcome is CommandOutcome.DONE
    assert await in_a_file.keys() == before


async def test_a_new_data_key_becomes_active_wrapped_by_the_new_primary_version(
    in_a_file: Rotated, new_version: NewVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotate = RotationSteps.rotate

    async def killed(self: RotationSteps, version: str, *, retarget: bool = False) -> RotationProgress:
        async def fail() -> None:
            raise RotatorError("it is gone")

        self._administration.reload_instances = fail  # type: ignore[method-assign]  # between the two commits
        return await rotate(self, version, retarget=retarget)

    monkeypatch.setattr(RotationSteps, "rotate", killed)
    async with in_a_file.session() as session:
        with pytest.raises(RotatorError, match="it is gone"):
            await run(session, NEW)
    monkeypatch.undo()
    await new_version()
    report = await in_a_file.do(resume)
    assert report.outcome is CommandOutcome.DONE
    assert report.rotation
    assert "from version 1 to version 2" in retargets(report.rotation)
    active = [
        key.wrapped.kek_version for key in (await in_a_file.keys()).values() if key.status is DataKeyStatus.ACTIVE
    ]
    assert (active, await in_a_file.broken()) == (["2"], [])


async def test_without_being_asked_to_no_rotation_changes_its_version(
    in_a_file: Rotated, new_version: NewVersion
) -> None:
    """A runner that began before the change, and goes on."""
    await new_version()
    await left_in_the_middle(in_a_file)
    await new_version()
    async with in_a_file.session() as session:
        latest = await session.administration.get_progress()
        assert latest
        lease = await session.administration.acquire_lease("a runner", 60)
        steps = RotationSteps(session, lease.token, latest.type, latest.rotation_id, "resume")
        with pytest.raises(Exception, match="is to version 2, not 3"):
            await steps.rotate("3")
        with pytest.raises(Exception, match="Encrypt uses version 3, not 2"):
            await steps.rotate("2")
    assert await versions(in_a_file) == {"1", "2"}
