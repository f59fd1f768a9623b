"""What a runner left is finished by the next one, on this machine or another."""

import shutil
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.runner import resume, rollback, run
from services.rotator.session import CommandSession
from shared.keyring.administration import (
    Problem,
    RefusedError,
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
    UnreachableError,
    VerificationResult,
)
from shared.keyring.model import DataKeyStatus
from tests.rotator.keyring_to_rotate import NewVersion, Rotated, data_key_id, find_latest_backup, write_backup
from tests.rotator.killed_rotator import run_killed

REWRAP, NEW = RotationType.REWRAP_KEK, RotationType.NEW_DEK


async def left_in_the_middle(rotated: Rotated) -> None:
    """One of three data keys is wrapped anew, and the runner is gone."""
    async with rotated.session(batch_size=1) as session:
        await _unreachable_after(session, 1)
        with pytest.raises(RotatorError, match="nobody answers") as failed:
            await run(session, REWRAP)
    assert failed.value.next_commands == ("resume", "rollback")


async def _unreachable_after(session: CommandSession, batches: int) -> None:
    rotate = session.administration.rotate
    left = batches

    async def some(request: RotateRequest) -> RotationProgress:
        nonlocal left
        if left == 0:
            raise UnreachableError("nobody answers")
        left -= 1
        return await rotate(request)

    session.administration.rotate = some  # type: ignore[method-assign]


async def test_a_backup_that_is_there_and_whole_is_kept(rotated: Rotated, new_version: NewVersion) -> None:
    await new_version()
    await left_in_the_middle(rotated)
    async with rotated.session() as session:
        ((file, _),) = session.backups.list_backups()
        report = await resume(session)
        assert [backup for backup, _ in session.backups.list_backups()] == [file]
    assert report.backup
    assert (report.outcome, report.backup.file) == (CommandOutcome.DONE, str(file))
    assert "backup" not in [step.step for step in report.steps]


@pytest.mark.parametrize("damage", ["gone", "cut", "another"])
async def test_a_backup_that_is_not_the_one_of_the_journal_is_created_again(
    in_a_file: Rotated, new_version: NewVersion, damage: str
) -> None:
    await new_version()
    await left_in_the_middle(in_a_file)
    async with in_a_file.session() as session:
        ((file, _),) = session.backups.list_backups()
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            file.unlink()
        if damage == "another":
            async with in_a_file.session(state_dir=str(in_a_file.folder / "other")) as other:
                await run_another(other, file)
        assert (await resume(session)).outcome is CommandOutcome.DONE
        newest = await find_latest_backup(session)
        assert newest != file
        assert session.steps[2].step == "backup"


async def run_another(session: CommandSession, file: Path) -> None:
    """A whole backup, of the half-done keyring, in the place of the first."""
    target, _ = await write_backup(session, "other")
    shutil.move(target, file)


async def test_what_cannot_be_verified_is_not_finished_until_it_is_resumed(
    in_a_file: Rotated, new_version: NewVersion
) -> None:
    await new_version()
    async with in_a_file.session(verify_attempts=2) as session:

        async def nobody(mode: object, after: object = None) -> VerificationResult:
            raise UnreachableError("nobody answers")

        verify = session.administration.verify
        session.administration.verify = nobody  # type: ignore[method-assign]
        with pytest.raises(RotatorError) as failed:
            await run(session, REWRAP)
        assert failed.value.next_commands == ("resume", "rollback")
        session.administration.verify = verify  # type: ignore[method-assign]
        with pytest.raises(RotatorError, match="is not finished"):
            await run(session, REWRAP)
        assert (await resume(session)).outcome is CommandOutcome.DONE
        assert (await resume(session)).outcome is CommandOutcome.NOTHING_TO_DO
    assert (await in_a_file.metrics()).failures_by_step["verify"] == 1


async def test_a_verification_is_retried_before_it_is_believed(in_a_file: Rotated) -> None:
    async with in_a_file.session() as session:
        verify, tries = session.administration.verify, 0

        async def late(mode: str, after: str | None = None) -> VerificationResult:
            nonlocal tries
            tries += 1
            found = await verify("full" if mode == "full" else "sample")
            return found if tries == 3 else found.model_copy(update={"problems": (Problem(id="x", error="not yet"),)})

        session.administration.verify = late  # type: ignore[method-assign]
        assert (await run(session, NEW)).outcome is CommandOutcome.DONE
        tries = 4
        report = await rollback(session)
        assert (report.outcome, [each.id for each in report.problems]) == (CommandOutcome.FAILED, ["x"])


async def test_a_data_key_that_was_backed_up_and_is_gone_after_the_rotation_is_named(in_a_file: Rotated) -> None:
    async with in_a_file.session() as session:
        reload = session.administration.reload_instances

        async def loses() -> None:
            def delete_record(connection: Connection) -> None:  # with its records, so that nothing else misses it
                connection.execute(text("DELETE FROM records WHERE data_key_id = :id"), {"id": data_key_id(0)})
                connection.execute(text("DELETE FROM data_keys WHERE id = :id"), {"id": data_key_id(0)})

            async with in_a_file.database() as database:
                await database.write(delete_record)
            await reload()

        session.administration.reload_instances = loses  # type: ignore[method-assign]
        report = await run(session, NEW)
    assert report.outcome is CommandOutcome.FAILED
    assert [(each.id, each.error) for each in report.problems] == [
        (data_key_id(0), "it is in the backup, and no longer in the keyring")
    ]


async def test_every_instance_knows_a_new_data_key_before_it_becomes_the_active_one(in_a_file: Rotated) -> None:
    states_at_reload: list[set[DataKeyStatus]] = []
    async with in_a_file.session() as session:

        async def reload() -> None:
            states_at_reload.append({key.status for key in (await in_a_file.keys()).values()})

        session.administration.reload_instances = reload  # type: ignore[method-assign]
        await run(session, NEW)
    assert DataKeyStatus.PENDING in states_at_reload[0]
    assert DataKeyStatus.PENDING not in states_at_reload[-1]


async def test_a_keyring_that_changes_nothing_ends_the_run(in_a_file: Rotated, new_version: NewVersion) -> None:
    await new_version()
    async with in_a_file.session(batch_size=1) as session:
        rotate, first = session.administration.rotate, list[RotationProgress]()

        async def stuck(request: RotateRequest) -> RotationProgress:
            first.append(first[0] if first else await rotate(request))
            return first[0]

        session.administration.rotate = stuck  # type: ignore[method-assign]
        with pytest.raises(RotatorError, match="does not go on"):
            await run(session, REWRAP)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.played), 5])
async def test_a_rollback_that_was_killed_can_only_be_finished(
    in_a_file: Rotated, new_version: NewVersion, step: int
) -> None:
    before = await in_a_file.keys()
    await new_version()
    await in_a_file.do(run, REWRAP)
    commits = 1
    while not await run_killed(in_a_file, commits, rollback):
        async with in_a_file.session() as session:
            latest = await session.administration.get_progress()
            assert latest
            if latest.state is RotationState.RUNNING:
                with pytest.raises((RotatorError, RefusedError)):
                    await run(session, REWRAP)
        await in_a_file.lease_ends()
        commits += step
    assert await in_a_file.keys() == before
    assert await in_a_file.broken() == []
