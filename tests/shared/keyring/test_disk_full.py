"""A disk that is full in the middle of a rotation: nothing is lost, and with room it goes on."""

from pathlib import Path

import pytest
from sqlalchemy import text

from shared.keyring.administration import RotationState, UnreachableError
from shared.sql.database_url import create_sqlite_url
from tests.shared.keyring.fake_kms import FakeKms
from tests.shared.keyring.keyring import NEW_DEK, Keyring, opened, secret_of


async def _leave_pages(keyring: Keyring, free: int | None) -> None:
    """How many pages the file may still grow by."""
    pages = await keyring.database.write(lambda it: it.execute(text("PRAGMA page_count")).scalar_one())
    most = 2**30 if free is None else pages + free
    await keyring.database.write(lambda it: it.execute(text(f"PRAGMA max_page_count={most}")))


@pytest.mark.parametrize("free", [0, 1, 3])
async def test_what_is_committed_stays_and_the_same_rotation_goes_on_or_back(free: int, tmp_path: Path) -> None:
    kms = FakeKms()
    async with opened(create_sqlite_url(tmp_path / "keyring.db"), kms) as keyring:
        await keyring.fill(60)
        before = await keyring.keys()
        await keyring.take_lease()
        kms.primary = 2
        await _leave_pages(keyring, free)
        with pytest.raises(UnreachableError, match="database or disk is full; try again"):
            await keyring.rotate()
        for name, key in (await keyring.keys()).items():
            assert await keyring.wrapping.unwrap(key) == secret_of(name)
        await _leave_pages(keyring, None)
        assert (await keyring.rotate()).done == 60
        assert (await keyring.rollback()).state is RotationState.ROLLED_BACK
        assert await keyring.keys() == before


async def _has_space(keyring: Keyring, rotation_id: str) -> bool:
    try:
        await keyring.rotate(NEW_DEK, rotation_id)
    except UnreachableError as error:
        return "full" not in str(error)
    return True


async def test_a_new_data_key_that_finds_no_space_is_not_there_at_all(tmp_path: Path) -> None:
    async with opened(create_sqlite_url(tmp_path / "keyring.db"), FakeKms()) as keyring:
        await keyring.take_lease()
        number = 1
        await _leave_pages(keyring, 0)
        while await _has_space(keyring, f"r{number}"):
            number += 1
        await _leave_pages(keyring, None)
        progress = await keyring.administration.get_progress(f"r{number}")
        assert len(await keyring.keys()) == number - (progress is None)
        assert (await keyring.rotate(NEW_DEK, f"r{number}")).state is RotationState.DONE
        assert len(await keyring.keys()) == number
