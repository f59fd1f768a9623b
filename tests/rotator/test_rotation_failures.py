"""Failures in the middle of a rotation: nothing is lost, and one sentence says what failed and what to type next."""

import asyncio
from collections.abc import Callable

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState
from services.rotator.report import CommandOutcome, RotatorError, StepProgress
from services.rotator.runner import resume, rollback, run
from services.rotator.session import CommandSession
from shared.keyring.administration import (
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
    UnreachableError,
    VerificationResult,
)
from shared.kms import retries
from tests.rotator.keyring_to_rotate import KEY, NewVersion, Rotated, data_key_id

REWRAP, NEW = RotationType.REWRAP_KEK, RotationType.NEW_DEK


async def failing(session: CommandSession, type_: RotationType = REWRAP) -> RotatorError:
    with pytest.raises(RotatorError) as failed:
        await run(session, type_)
    return failed.value


def at_progress(session: CommandSession, act: Callable[[int], object]) -> None:
    """Calls `act` with the number of data keys done, after each batch."""

    def report_progress(progress: StepProgress) -> None:
        if progress.step != "verify":
            act(progress.done)

    session.progress.report_progress = report_progress  # type: ignore[method-assign]


@pytest.mark.parametrize("type_", [REWRAP, NEW])
async def test_a_primary_version_that_is_not_enabled_stops_a_run_before_anything_is_changed(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator, type_: RotationType
) -> None:
    before = await in_a_file.keys()
    await new_version()
    await emulator.store.update_key(KEY, lambda key: key.with_state(2, EmulatedState.DISABLED))
    async with in_a_file.session() as session:
        failed = await failing(session, type_)
        assert await session.administration.get_progress() is None
    assert "the primary version 2 of the KMS key is DISABLED: nothing can be wrapped by it" in failed.message
    assert failed.next_commands == (f"run --type {type_}",)
    assert await in_a_file.keys() == before


async def test_a_kms_that_refuses_halfway_leaves_a_rotation_that_can_be_resumed(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await new_version()
    denied = EmulatorFault(kind="denied", operation="Encrypt")
    async with rotated.session(batch_size=1) as session:
        at_progress(session, lambda done: emulator.faults.add(denied) if done == 1 else None)
        failed = await failing(session)
    assert "permission_denied" in failed.message
    assert failed.next_commands == ("resume", "rollback")
    assert sorted(key.wrapped.kek_version for key in (await rotated.keys()).values()) == ["1", "1", "2"]
    assert await rotated.broken() == []
    counted = await rotated.metrics()
    assert (counted.failures_by_step["rotate"], counted.is_in_progress) == (1, True)
    emulator.faults.clear()
    async with rotated.session() as session:
        assert (await failing(session)).next_commands == ("resume", "rollback")
        assert (await resume(session)).outcome is CommandOutcome.DONE
    assert {key.wrapped.kek_version for key in (await rotated.keys()).values()} == {"2"}


@pytest.mark.parametrize("operation", ["Encrypt", "Decrypt", "GetCryptoKey", "ListCryptoKeyVersions"])
async def test_a_call_that_kms_does_not_answer_once_is_made_again_at_the_start_and_halfway(
    in_a_file: Rotated,
    new_version: NewVersion,
    emulator: Emulator,
    operation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "PAUSES", (0.01,))  # one try more, at once
    await new_version()
    lost = EmulatorFault(kind="status", status="UNAVAILABLE", operation=operation, count=1)
    faults = [emulator.faults.add(lost)]
    async with in_a_file.session(batch_size=1) as session:
        at_progress(session, lambda done: faults.append(emulator.faults.add(lost)) if done == 1 else None)
        report = await run(session, REWRAP)
    assert (report.outcome, report.problems, len(faults)) == (CommandOutcome.DONE, (), 2), report
    assert emulator.faults.list_active() == {}


async def test_an_encrypt_that_never_uses_it_ends_a_run_before_anything_is_changed(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    emulator.faults.add(EmulatorFault(kind="slow_primary", seconds=3600.0))
    before = await in_a_file.keys()
    await new_version()
    async with in_a_file.session(primary_timeout="300ms") as session:
        failed = await failing(session)
        assert await session.administration.get_progress() is None
    assert "the last answer: version 1" in failed.message
    assert failed.next_commands == ("run --type rewrap-kek",)
    assert await in_a_file.keys() == before


async def test_who_loses_the_lease_in_the_middle_writes_nothing_more(rotated: Rotated, new_version: NewVersion) -> None:
    await new_version()
    async with rotated.session(batch_size=1) as session, rotated.session() as other:
        rotate = session.administration.rotate

        async def rotate_and_lose(request: RotateRequest) -> RotationProgress:
            progress = await rotate(request)
            await rotated.lease_ends()
            await other.administration.acquire_lease("somebody else", 60)
            return progress

        session.administration.rotate = rotate_and_lose  # type: ignore[method-assign]
        failed = await failing(session)
    assert "somebody else" in failed.message
    assert failed.next_commands == ("status", "resume", "rollback")
    assert sorted(key.wrapped.kek_version for key in (await rotated.keys()).values()) == ["1", "1", "2"]


async def test_a_run_that_is_stopped_gives_the_lease_up_and_can_be_rolled_back(
    rotated: Rotated, new_version: NewVersion
) -> None:
    before = await rotated.keys()
    await new_version()
    async with rotated.session(batch_size=1) as session:
        running = asyncio.ensure_future(run(session, REWRAP))
        at_progress(session, lambda done: running.cancel() if done == 1 else None)
        with pytest.raises(asyncio.CancelledError):
            await running
    async with rotated.session() as session:
        report = await rollback(session)
        assert report.outcome is CommandOutcome.DONE
        assert report.rotation
        assert report.rotation.state is RotationState.ROLLED_BACK
    assert await rotated.keys() == before


async def test_what_failed_for_a_version_that_is_no_longer_the_primary_is_left_to_another_run(
    in_a_file: Rotated, new_version: NewVersion
) -> None:
    await in_a_file.execute("UPDATE data_keys SET wrapped = :junk WHERE id = :id", junk=b"junk", id=data_key_id(1))
    await new_version()
    async with in_a_file.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.FAILED
        await new_version()
        report = await resume(session)
        assert (report.outcome, report.next_commands) == (CommandOutcome.NOTHING_TO_DO, ("run --type rewrap-kek",))
        assert [problem.id for problem in report.problems] == [data_key_id(1)]
        assert (await run(session, REWRAP)).outcome is CommandOutcome.FAILED
    assert [key.wrapped.kek_version for key in (await in_a_file.keys()).values()] == ["3", "1", "3"]


async def test_what_is_done_and_was_not_verified_is_verified_though_another_version_is_the_primary_by_now(
    in_a_file: Rotated, new_version: NewVersion
) -> None:
    async with in_a_file.session() as session:
        await new_version()
        verify = session.administration.verify

        async def nobody(mode: object, after: object = None) -> VerificationResult:
            raise UnreachableError("nobody answers")

        session.administration.verify = nobody  # type: ignore[method-assign]
        await failing(session)
        session.administration.verify = verify  # type: ignore[method-assign]
        await new_version()
        assert (await resume(session)).outcome is CommandOutcome.DONE
