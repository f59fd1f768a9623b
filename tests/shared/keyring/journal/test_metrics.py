"""What a service's metrics say of its keyring, on both stores."""

from datetime import UTC, datetime

import pytest

from shared.keyring.administration import JournalStep, RotationType, StepOutcome
from shared.keyring.model import LOCAL_KEK, DataKeyStatus, WrappedKey
from shared.keyring.rotation_metrics import ROTATION_STEPS, KeyringMetrics, read_keyring_metrics
from shared.keyring.tables import journal_entries
from tests.key_versions import Versions
from tests.shared.keyring.keyring import NEW_DEK, REWRAP, Keyring, entry

SUCCEEDED, FAILED, PROBLEMS = StepOutcome.SUCCEEDED, StepOutcome.FAILED, StepOutcome.PROBLEMS
NOTHING_TO_DO = StepOutcome.NOTHING_TO_DO
BEGINNING = datetime(2026, 11, 25, tzinfo=UTC).timestamp()  # of each data key that `Keyring.add` makes


async def read_metrics(keyring: Keyring) -> KeyringMetrics:
    return await keyring.database.read(read_keyring_metrics)


async def test_an_empty_keyring_shows_that_nothing_failed_yet(keyring: Keyring) -> None:
    assert await read_metrics(keyring) == KeyringMetrics(
        {}, {}, {}, is_in_progress=False, failures_by_step=dict.fromkeys(ROTATION_STEPS, 0), unreadable_rows={}
    )


async def test_data_keys_are_counted_by_version_and_status(keyring: Keyring, versions: Versions) -> None:
    await keyring.fill(3)
    await versions.rotate()
    await keyring.add("new")
    await keyring.add("kept", WrappedKey(b"x", LOCAL_KEK, "0"))
    assert (await read_metrics(keyring)).data_keys == {
        ("0", DataKeyStatus.RETIRED): 1,
        ("1", DataKeyStatus.ACTIVE): 1,
        ("1", DataKeyStatus.RETIRED): 2,
        ("2", DataKeyStatus.RETIRED): 1,
    }


@pytest.mark.parametrize("type_", [NEW_DEK, REWRAP])
async def test_a_rotation_is_in_progress_until_it_is_done_and_then_a_success(
    keyring: Keyring, versions: Versions, type_: RotationType
) -> None:
    await keyring.fill(2)
    await versions.rotate()
    await keyring.administration.rotate(keyring.request(type_, batch_size=1))
    assert (await read_metrics(keyring)).is_in_progress
    assert (await read_metrics(keyring)).last_success == {NEW_DEK: BEGINNING}
    done = await keyring.rotate(type_)
    now = await read_metrics(keyring)
    assert not now.is_in_progress
    assert now.last_success[type_] == pytest.approx(done.updated_at.timestamp())


async def test_one_that_could_not_be_verified_is_no_success_until_it_is(keyring: Keyring) -> None:
    await keyring.fill(1)
    done = await keyring.rotate(NEW_DEK)
    add_entry = keyring.administration.add_journal_entry
    await add_entry(done.rotation_id, keyring.token, entry(JournalStep.VERIFY, PROBLEMS))
    failed = await read_metrics(keyring)
    assert failed.last_success == {NEW_DEK: BEGINNING}
    assert failed.failures_by_step == {**dict.fromkeys(ROTATION_STEPS, 0), "verify": 1}
    await add_entry(done.rotation_id, keyring.token, entry(JournalStep.VERIFY))
    now = await read_metrics(keyring)
    assert now.last_success[NEW_DEK] >= failed.last_failure[NEW_DEK]
    assert now.failures_by_step["verify"] == 1


async def test_one_whose_runner_was_killed_before_it_verified_is_in_progress_and_no_success(keyring: Keyring) -> None:
    await keyring.fill(1)
    done = await keyring.rotate(NEW_DEK)
    for step, outcome, in_progress in (
        (JournalStep.ROTATE, SUCCEEDED, True),
        (JournalStep.VERIFY, PROBLEMS, False),
        (JournalStep.SMOKE, SUCCEEDED, True),  # of a resume, which was killed, too
        (JournalStep.VERIFY, FAILED, False),
        (JournalStep.RELOAD, SUCCEEDED, True),
    ):
        await keyring.administration.add_journal_entry(done.rotation_id, keyring.token, entry(step, outcome))
        now = await read_metrics(keyring)
        assert (now.last_success, now.is_in_progress) == ({NEW_DEK: BEGINNING}, in_progress)


async def test_a_rotation_that_has_nothing_to_do_is_a_success_of_its_type(keyring: Keyring) -> None:
    await keyring.fill(1)
    add_entry = keyring.administration.add_journal_entry
    await add_entry("rewrap-kek-1", keyring.token, entry(JournalStep.PRIMARY_VERSION, FAILED))
    await add_entry("rewrap-kek-2", keyring.token, entry(JournalStep.PRIMARY_VERSION, rotation_type=REWRAP))
    assert (await read_metrics(keyring)).last_success == {NEW_DEK: BEGINNING}
    await add_entry("rewrap-kek-2", keyring.token, entry(JournalStep.PLAN, NOTHING_TO_DO, rotation_type=REWRAP))
    now = await read_metrics(keyring)
    assert now.last_success[REWRAP] >= now.last_failure[REWRAP]
    assert now.last_success[NEW_DEK] == BEGINNING


@pytest.mark.parametrize(
    ("step", "outcome", "failures"),
    [
        (JournalStep.SMOKE, FAILED, {"smoke": 1}),
        (JournalStep.VERIFY, FAILED, {"verify": 1}),
        (JournalStep.VERIFY, PROBLEMS, {"verify": 1}),
        (JournalStep.ROTATE, PROBLEMS, {}),  # counted by the entry of `rotate` itself
        (JournalStep.VERIFY, SUCCEEDED, {}),
        (JournalStep.BACKUP, FAILED, {"backup": 1}),
        (JournalStep.PRIMARY_IN_USE, FAILED, {"primary_in_use": 1}),
    ],
)
async def test_a_failure_is_counted_by_its_step_and_only_a_verification_fails_by_problems(
    keyring: Keyring, step: JournalStep, outcome: StepOutcome, failures: dict[str, int]
) -> None:
    await keyring.administration.add_journal_entry("r", keyring.token, entry(step, outcome))
    now = await read_metrics(keyring)
    assert now.failures_by_step == {**dict.fromkeys(ROTATION_STEPS, 0), **failures}
    assert set(now.last_failure) == (set(RotationType) if failures else set())


async def test_a_step_that_nobody_knows_is_counted_without_its_name_and_named_as_unreadable(keyring: Keyring) -> None:
    await keyring.administration.add_journal_entry("r", keyring.token, entry(JournalStep.SMOKE, FAILED))
    await keyring.administration.add_journal_entry("r", keyring.token, entry(JournalStep.RELOAD, FAILED))
    change = journal_entries.update().where(journal_entries.c.step == "reload").values(step="frobnicate")
    await keyring.database.write(lambda connection: connection.execute(change))
    now = await read_metrics(keyring)
    assert now.failures_by_step == {**dict.fromkeys(ROTATION_STEPS, 0), "other": 1, "smoke": 1}
    why = "it cannot be read in the table keyring_journal_entries; correct its columns there"
    assert now.unreadable_rows == {"journal entry 2": why}


async def test_a_failure_is_of_its_own_type(keyring: Keyring) -> None:
    add_entry = keyring.administration.add_journal_entry
    await add_entry("rewrap-kek-1", keyring.token, entry(JournalStep.ROTATE, FAILED, rotation_type=REWRAP))
    await add_entry("new-dek-1", keyring.token, entry(JournalStep.PLAN, NOTHING_TO_DO, rotation_type=NEW_DEK))
    now = await read_metrics(keyring)
    assert (set(now.last_failure), set(now.last_success)) == ({REWRAP}, {NEW_DEK})


async def test_a_failure_stays_counted_when_the_rotation_is_made_good(keyring: Keyring, versions: Versions) -> None:
    (key,) = await keyring.fill(1)
    broken = WrappedKey(b"broken", key.wrapped.kek, key.wrapped.kek_version)
    await keyring.replace(key, broken)
    await versions.rotate()
    assert (await keyring.rotate(REWRAP)).state == "failed"
    failed = await read_metrics(keyring)
    assert (failed.failures_by_step["rotate"], failed.is_in_progress, REWRAP in failed.last_success) == (
        1,
        False,
        False,
    )
    assert set(failed.last_failure) == {REWRAP}
    await keyring.replace((await keyring.keys())[key.id], key.wrapped)
    assert (await keyring.rotate(REWRAP)).state == "done"
    now = await read_metrics(keyring)
    assert now.failures_by_step["rotate"] == 1
