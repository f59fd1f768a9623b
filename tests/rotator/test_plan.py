from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rotator.plan import build_plan, can_resume, get_next_commands, is_unfinished
from shared.keyring.administration import (
    JournalEntry,
    JournalStep,
    KeyUsage,
    RotationProgress,
    RotationState,
    RotationType,
    StepOutcome,
    VersionUsage,
)
from shared.keyring.model import LOCAL_KEK

KEY, OTHER = "projects/p/locations/l/keyRings/r/cryptoKeys/ours", "projects/p/locations/l/keyRings/r/cryptoKeys/other"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
REWRAP, NEW = RotationType.REWRAP_KEK, RotationType.NEW_DEK

counts = st.lists(
    st.builds(
        VersionUsage,
        kek=st.sampled_from([KEY, OTHER, LOCAL_KEK]),
        kek_version=st.sampled_from("01234"),
        data_keys=st.integers(0, 9),
        records=st.integers(0, 9),
    ),
    unique_by=lambda each: (each.kek, each.kek_version),
).map(tuple)


def census(*versions: VersionUsage) -> KeyUsage:
    return KeyUsage(versions=versions, active="a", active_since=NOW)


def entry(text: str) -> JournalEntry:
    """Such as `verify problems`; a step alone has succeeded."""
    step, _, outcome = text.partition(" ")
    return JournalEntry(step=JournalStep(step), outcome=StepOutcome(outcome or "succeeded"))


def rotation(
    type_: RotationType = NEW,
    state: RotationState = RotationState.DONE,
    steps: tuple[str, ...] = ("backup", "verify"),
    rolling_back: bool = False,
) -> RotationProgress:
    return RotationProgress(
        rotation_id="id",
        type=type_,
        state=state,
        target_version="1",
        caller="me",
        started_at=NOW,
        updated_at=NOW,
        total=1,
        done=1,
        journal=tuple(entry(step) for step in steps),
        is_rolling_back=rolling_back,
    )


@given(versions=counts, primary=st.sampled_from("1234"))
def test_a_rewrap_counts_each_of_our_data_keys_that_another_version_wraps_and_names_each_other_key(
    versions: tuple[VersionUsage, ...], primary: str
) -> None:
    plan = build_plan(REWRAP, census(*versions), key=KEY, primary=primary, min_age=60)
    due = [each for each in versions if each.kek == KEY and each.kek_version != primary]
    assert plan.data_keys == sum(each.data_keys for each in due)
    assert len(plan.excluded) == len([each for each in versions if each.kek != KEY])


@pytest.mark.parametrize(
    ("ago", "data_keys"),
    [
        (None, 1),
        (59, 0),
        (-59, 0),  # a clock that was set back a little
        (-3600, 1),  # one that was ahead must not keep the next data key from being made for years
        (60, 1),
    ],
)
def test_a_new_data_key_is_due_unless_one_was_just_made(ago: float | None, data_keys: int) -> None:
    created_at = None if ago is None else NOW - timedelta(seconds=ago)
    counted = census().model_copy(update={"new_dek_at": created_at, "counted_at": NOW})
    plan = build_plan(NEW, counted, key=KEY, primary="2", min_age=60)
    assert plan.data_keys == data_keys


@pytest.mark.parametrize(
    ("encryptions", "is_near_limit"), [(None, False), (0, False), (2**31, False), (2**31 + 1, True)]
)
def test_a_plan_says_that_the_active_data_key_is_near_the_limit_of_its_encryptions(
    encryptions: int | None, is_near_limit: bool
) -> None:
    counted = census().model_copy(update={"encryptions": encryptions})
    plan = build_plan(NEW, counted, key=KEY, primary="2", min_age=60)
    advice = ". Do not wait: a has encrypted 2,147,483,649 times, of 4,294,967,296 at most"
    assert (advice in plan.summary) is is_near_limit


@pytest.mark.parametrize(
    ("latest", "expected"),
    [
        (None, False),
        (rotation(), False),
        (rotation(state=RotationState.RUNNING), True),
        (rotation(state=RotationState.RUNNING, steps=()), True),
        (rotation(steps=("backup", "rotate")), True),  # killed before it was verified
        (rotation(steps=("rotate", "verify failed")), True),
        (rotation(steps=("rotate", "verify problems")), False),  # it was looked at: the next may come
        (rotation(steps=("verify problems", "primary_version")), False),  # a resume that was killed
        (rotation(steps=("verify problems", "rotate")), True),  # likewise, but it had rotated
        (rotation(steps=("verify", "rotate failed")), False),  # it changed nothing since
        (rotation(steps=("verify", "rotate problems")), True),
        (rotation(steps=("verify", "unknown unreadable")), False),
        (rotation(steps=("rotate", "reload")), True),
        (rotation(steps=()), False),  # nobody's runner made it
        (rotation(state=RotationState.FAILED), False),
        (rotation(state=RotationState.ROLLED_BACK, steps=("backup",)), False),
    ],
)
def test_a_rotation_is_finished_once_its_runner_has_verified_it(
    latest: RotationProgress | None, expected: bool
) -> None:
    assert is_unfinished(latest) is expected


@pytest.mark.parametrize(
    ("latest", "expected"),
    [
        (rotation(), False),
        (rotation(state=RotationState.ROLLED_BACK, steps=("rollback failed",)), False),
        (rotation(state=RotationState.FAILED), True),
        (rotation(state=RotationState.RUNNING), True),
        (rotation(steps=("rotate", "verify problems")), True),
        (rotation(steps=("rotate", "verify problems", "primary_version")), True),  # resumed, and killed
        (rotation(steps=("verify problems", "verify")), False),
    ],
)
def test_what_failed_can_be_retried(latest: RotationProgress, expected: bool) -> None:
    assert can_resume(latest) is expected


def test_a_rollback_that_has_started_can_only_be_finished() -> None:
    assert get_next_commands(rotation(state=RotationState.RUNNING, rolling_back=True)) == ("rollback",)
    assert get_next_commands(rotation(state=RotationState.RUNNING)) == ("resume", "rollback")
