"""A keyring of three data keys, in each kind of database, under a running emulator."""

import itertools
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from tests.key_versions import Versions, emulator_fixture, versions_fixture  # noqa: F401 - fixtures
from tests.rotator.keyring_to_rotate import NewVersion, Rotated
from tests.rotator.versions import rewrap

Another = Callable[[], Awaitable[Rotated]]
Copied = Callable[[Rotated], Awaitable[Another]]


@pytest.fixture
def new_version(versions: Versions) -> NewVersion:
    return versions.rotate


@pytest.fixture
async def rotated(empty_database: URL, emulator: Emulator, tmp_path: Path) -> Rotated:
    keyring = Rotated(empty_database, emulator.address, tmp_path)
    await keyring.fill(3)
    return keyring


@pytest.fixture
async def in_a_file(emulator: Emulator, tmp_path: Path) -> Rotated:
    """In SQLite alone: what does not depend on the store."""
    keyring = Rotated(URL.create("sqlite", database=str(tmp_path / "keyring.db")), emulator.address, tmp_path)
    await keyring.fill(3)
    return keyring


@pytest.fixture
async def rewrapped(in_a_file: Rotated, new_version: NewVersion) -> Rotated:
    """The same, where nothing needs version 1 any more; what is to need it comes before it in a test."""
    await rewrap(in_a_file, new_version)
    return in_a_file


@pytest.fixture
def copied(tmp_path: Path) -> Copied:
    """Fills a keyring with two data keys, and gives what makes the same keyring again and again."""

    async def fill(first: Rotated) -> Another:
        await first.fill(2, records=1)
        keys, numbers = await first.keys(), itertools.count()

        async def copy() -> Rotated:
            folder = tmp_path / str(next(numbers))
            folder.mkdir()
            if first.url.drivername == "sqlite":
                file = shutil.copy(str(first.url.database), folder)
                return replace(first, url=URL.create("sqlite", database=str(file)), folder=folder)
            await first.reset(keys.values())  # a database of PostgreSQL takes longer to make than all the rest
            return replace(first, folder=folder)

        return copy

    return fill


@pytest.fixture
async def another(empty_database: URL, emulator: Emulator, tmp_path: Path, copied: Copied) -> Another:
    """Makes the same keyring of two data keys again and again."""
    return await copied(Rotated(empty_database, emulator.address, tmp_path))
