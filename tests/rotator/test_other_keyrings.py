"""Two keyrings under one KMS key: a version that the other one needs is neither retired nor destroyed."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.model import EmulatedState
from services.rotator.inspection import show_key_usage, show_plans
from services.rotator.report import CommandOutcome, RotatorError, format_markdown
from services.rotator.retirement import destroy_version, retire_version
from services.rotator.runner import run
from shared.config.errors import ConfigurationError
from shared.keyring.administration import RotationType
from tests.rotator.keyring_to_rotate import KEY, NewVersion, Rotated
from tests.rotator.versions import forgotten, passed, rewrap, state

REWRAP = RotationType.REWRAP_KEK


@pytest.fixture
async def payments(emulator: Emulator, tmp_path: Path) -> Rotated:
    """Another service's keyring of two data keys, wrapped by the same key."""
    folder = tmp_path / "payments"
    folder.mkdir()
    keyring = Rotated(URL.create("sqlite", database=str(folder / "keyring.db")), emulator.address, folder)
    await keyring.fill(2)
    return keyring


def others(*keyrings: Rotated) -> dict[str, Any]:
    """As the configuration lists them."""
    records = {"table": "records", "data_key_column": "data_key_id"}
    databases = [each.url.render_as_string(hide_password=False) for each in keyrings]
    return {"other_keyrings": [{"kind": "sql", "database": each, "records": records} for each in databases]}


async def refused(rotated: Rotated, command: Any, listed: dict[str, Any]) -> RotatorError:
    async with rotated.session(**listed) as session:
        with pytest.raises(RotatorError) as failed:
            await command(session, "1")
    return failed.value


async def test_a_version_that_another_keyring_needs_is_neither_retired_nor_destroyed(
    rotated: Rotated, payments: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrap(rotated, new_version)
    why = (await refused(rotated, retire_version, others(payments))).message
    assert f"in the other keyring {payments.url} version 1 is needed by 2 data keys and 4 records" in why
    assert await state(emulator, 1) is EmulatedState.ENABLED
    await payments.do(run, REWRAP)
    away = await refused(rotated, retire_version, others(payments))
    assert "needed by 1 backups that are not in" in away.message
    assert away.next_commands == ("retire 1 --confirm 1 --confirm-backups 1",)
    await forgotten(payments)
    assert (await rotated.do(retire_version, "1", **others(payments))).outcome is CommandOutcome.DONE
    await passed(rotated, 31)
    # As a restored database has it.
    await payments.execute("UPDATE data_keys SET kek_version = 1 WHERE status = 'active'")
    why = (await refused(rotated, destroy_version, others(payments))).message
    assert "version 1 is needed by 1 data key and 2 records" in why
    assert await state(emulator, 1) is EmulatedState.DISABLED


async def test_a_data_key_of_another_keyring_is_unwrapped_too(
    payments: Rotated, rewrapped: Rotated, emulator: Emulator
) -> None:
    await payments.execute("UPDATE data_keys SET kek_version = '2'")
    why = (await refused(rewrapped, retire_version, others(payments))).message
    assert f"in the other keyring {payments.url} version 1 may be needed by what the primary version 2" in why
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_data_key_that_another_keyrings_database_lost_blocks(
    payments: Rotated, rewrapped: Rotated, emulator: Emulator
) -> None:
    await payments.do(run, REWRAP)
    await forgotten(payments)
    await payments.execute("DELETE FROM data_keys WHERE status = 'retired'")
    why = (await refused(rewrapped, retire_version, others(payments))).message
    assert f"in the other keyring {payments.url} version 1 may be needed by 1 data keys that records need and " in why
    assert await state(emulator, 1) is EmulatedState.ENABLED
    assert (
        f"the database lacks in {payments.url} may need any version"
        in (await rewrapped.do(show_key_usage, **others(payments))).summary
    )


async def test_nothing_is_retired_or_destroyed_before_somebody_has_said_which_other_keyrings_there_are(
    rewrapped: Rotated, emulator: Emulator
) -> None:
    for command in (retire_version, destroy_version):
        why = (await refused(rewrapped, command, {"other_keyrings": None})).message
        assert "Add `other_keyrings` with their drivers to the configuration, or `other_keyrings: []`" in why
    assert await state(emulator, 1) is EmulatedState.ENABLED
    assert (
        "which other keyrings this KMS key wraps is not known"
        in (await rewrapped.do(show_key_usage, other_keyrings=None)).summary
    )


async def test_a_keyring_that_cannot_be_reached_blocks(
    payments: Rotated, rewrapped: Rotated, emulator: Emulator
) -> None:
    (payments.folder / "keyring.db").unlink()
    why = (await refused(rewrapped, retire_version, others(payments))).message
    assert f"the other keyring {payments.url} cannot be read, so it may need any version: " in why
    assert "there is no such file" in why
    assert await state(emulator, 1) is EmulatedState.ENABLED
    counted = await rewrapped.do(show_key_usage, **others(payments))
    plans = await rewrapped.do(show_plans, (REWRAP,), **others(payments))
    assert (counted.outcome, plans.outcome) == (CommandOutcome.FAILED, CommandOutcome.NOTHING_TO_DO)
    for report in (counted, plans):
        assert "it may need any: database sqlite:" in format_markdown(report, "rotator.yml")


async def test_a_keyring_that_is_being_rotated_or_was_left_in_the_middle_blocks(
    payments: Rotated, rewrapped: Rotated, emulator: Emulator
) -> None:
    async with payments.session() as session:
        await run(session, REWRAP)
        await forgotten(payments)
        lease = await session.administration.acquire_lease("somebody else", 60)
        assert "somebody else holds the lease" in (await refused(rewrapped, retire_version, others(payments))).message
        await session.administration.release_lease(lease.token)
    # As if its runner had been killed before.
    await payments.execute("DELETE FROM keyring_journal_entries WHERE step = 'verify'")
    refusal = await refused(rewrapped, retire_version, others(payments))
    assert ("is not finished" in refusal.message, refusal.next_commands) == (True, ("census",))
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_plan_and_census_count_what_each_keyring_needs(
    in_a_file: Rotated, payments: Rotated, new_version: NewVersion
) -> None:
    await new_version()
    await payments.do(run, REWRAP)
    async with in_a_file.session(**others(payments)) as session:
        for report in (await show_plans(session, (REWRAP,)), await show_key_usage(session)):
            markdown = format_markdown(report, "rotator.yml")
            assert f"| {payments.url} | {KEY} | 1 | 0 | 0 | 1 |" in markdown
            assert f"| {payments.url} | {KEY} | 2 | 2 | 4 | 1 |" in markdown


def test_a_keyring_is_listed_once_and_the_drivers_own_not_at_all(in_a_file: Rotated, payments: Rotated) -> None:
    for listed in (others(in_a_file), others(payments, payments)):
        with pytest.raises(ConfigurationError, match="other_keyrings: expected each keyring once"):
            in_a_file.settings(**listed)
