"""The versions of the KMS key in the tests of `retire` and `destroy`."""

from collections.abc import Awaitable, Callable

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.model import EmulatedState
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.runner import run
from shared.keyring.administration import RotationType
from tests.rotator.keyring_to_rotate import KEY, NewVersion, Rotated

DAY = 86400


async def rewrap(rotated: Rotated, new_version: NewVersion) -> None:
    """All is wrapped by version 2, and no backup is kept that needs version 1."""
    await new_version()
    async with rotated.session() as session:
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.DONE
        for file, _ in session.backups.list_backups():
            file.unlink()
    await forgotten(rotated)


async def forgotten(rotated: Rotated) -> None:
    """As if no runner had noted a backup."""
    await rotated.execute("DELETE FROM keyring_journal_entries WHERE step = 'backup'")


async def state(emulator: Emulator, number: int) -> EmulatedState:
    return (await emulator.store.get_key(KEY)).version(number).state


async def refusal(rotated: Rotated, command: Callable[..., Awaitable[object]], version: int | str) -> RotatorError:
    async with rotated.session() as session:
        with pytest.raises(RotatorError) as refused:
            await command(session, str(version))
    return refused.value


async def passed(rotated: Rotated, days: float) -> None:
    """As if that had been so many days ago."""
    await rotated.execute("UPDATE keyring_retired_versions SET retired_at = retired_at - :seconds", seconds=days * DAY)
