from datetime import UTC, datetime

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.rotator.inspection import run_verification, show_plans
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.runner import rollback, run
from shared.keyring import verification
from shared.keyring.administration import RotationType
from tests.rotator.keyring_to_rotate import NewVersion, Rotated, data_key_id


@pytest.mark.parametrize("type_", [RotationType.REWRAP_KEK, RotationType.NEW_DEK])
async def test_a_failure_is_over_once_a_run_finds_all_in_order_and_nothing_to_do(
    in_a_file: Rotated, emulator: Emulator, type_: RotationType
) -> None:
    async with in_a_file.session() as session:
        if type_ is RotationType.NEW_DEK:
            await run(session, type_)
        emulator.faults.add(EmulatorFault(kind="denied", operation="Encrypt"))
        with pytest.raises(RotatorError, match="smoke test failed"):
            await run(session, type_)
        emulator.faults.clear()
        assert (await run(session, type_)).outcome is CommandOutcome.NOTHING_TO_DO
    found = await in_a_file.metrics()
    assert found.last_success[type_] > found.last_failure[type_]


async def test_a_failed_rotation_is_not_over_because_another_type_has_nothing_to_do(
    in_a_file: Rotated, new_version: NewVersion
) -> None:
    await new_version()
    async with in_a_file.session() as session:
        await run(session, RotationType.NEW_DEK)
        await in_a_file.execute("UPDATE data_keys SET wrapped = :junk WHERE id = :id", junk=b"junk", id=data_key_id(0))
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.FAILED
        assert (await run(session, RotationType.NEW_DEK)).outcome is CommandOutcome.NOTHING_TO_DO
    found = await in_a_file.metrics()
    assert RotationType.REWRAP_KEK in found.last_failure.keys() - found.last_success.keys()


async def test_a_new_data_key_is_not_replaced_within_its_day_whatever_was_rotated_since(
    rotated: Rotated, new_version: NewVersion
) -> None:
    async with rotated.session() as session:
        await run(session, RotationType.NEW_DEK)
        await new_version()
        await run(session, RotationType.REWRAP_KEK)
        assert (await run(session, RotationType.NEW_DEK)).outcome is CommandOutcome.NOTHING_TO_DO
    async with rotated.session(new_dek_min_age="1ms") as session:
        assert (await run(session, RotationType.NEW_DEK)).outcome is CommandOutcome.DONE
        await rollback(session)
    assert len(await rotated.keys()) == 5


async def test_what_a_plan_says_is_due_does_not_depend_on_the_clock_of_this_machine(in_a_file: Rotated) -> None:
    await in_a_file.do(run, RotationType.NEW_DEK)
    ahead = datetime.now(UTC).timestamp() + 3 * 365 * 86400
    async with in_a_file.session(now=[ahead]) as session:
        assert (await show_plans(session, (RotationType.NEW_DEK,))).outcome is CommandOutcome.NOTHING_TO_DO
        await rollback(session)
        assert (await show_plans(session, (RotationType.NEW_DEK,))).outcome is CommandOutcome.DONE


async def test_the_bar_counts_the_calls_of_kms_of_all_steps_verification_included(
    in_a_file: Rotated, new_version: NewVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "MAX_PAGE_SIZE", 2)
    await new_version()
    async with in_a_file.session(batch_size=2) as session:
        lines = session.progress.lines  # type: ignore[attr-defined]
        await run(session, RotationType.REWRAP_KEK)
        moved = [line for line in lines if "/" in line]
        # Three calls for each of three data keys, and then one for each.
        assert moved == ["rotate 2/3, 6/12", "rotate 3/3, 9/12", "verify 2/3, 11/12", "verify 3/3, 12/12"]
        lines.clear()
        await run_verification(session, full=False)
        assert lines == ["verify 2/3, 2/3", "verify 3/3, 3/3"]
        lines.clear()
        await rollback(session)
        assert [line for line in lines if "/" in line] == [
            "rollback 3/3, 3/6",
            "verify 2/3, 5/6",
            "verify 3/3, 6/6",
        ]


@pytest.mark.parametrize(
    ("cause", "first", "advice"),
    [
        ("perimeter", "perimeter (permission_denied)", "waiting changes nothing: repair that first. Let the owner"),
        ("ekm_unreachable", "ekm_unreachable (unavailable)", "it may pass by itself: wait. Check network, DNS"),
    ],
)
async def test_a_run_that_is_refused_says_the_cause_and_whether_it_is_worth_waiting(
    in_a_file: Rotated, emulator: Emulator, cause: str, first: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.kms.retries.PAUSES", ())
    emulator.faults.add(EmulatorFault(kind="cause", cause=cause, operation="Encrypt"))
    async with in_a_file.session() as session:
        with pytest.raises(RotatorError) as refused:
            await run(session, RotationType.REWRAP_KEK)
    assert first in str(refused.value)
    assert advice in str(refused.value)
