"""Data keys wrapped by a real Transit are re-wrapped; versions are retired by its floor, then trimmed."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.retirement import destroy_version, retire_version
from services.rotator.runner import rollback, run
from shared.keyring.administration import RotationType
from shared.kms.registry import validate_key_settings
from shared.sql.database_url import create_sqlite_url
from tests.bao import Bao, Transit
from tests.rotator.keyring_to_rotate import Rotating
from tests.shared.keyring.keyring import Keyring, opened


class Rotated(Rotating):
    """A keyring of the provider, and a rotator for it."""

    def __init__(self, folder: Path, mounted: Transit, kms: dict[str, Any], keyring: Keyring) -> None:
        self.folder, self.mounted, self.kms, self.keyring = folder, mounted, kms, keyring
        self.now = datetime.now(UTC).timestamp()

    def read_clock(self) -> float:
        return self.now

    def describe(self) -> dict[str, Any]:
        return {
            "driver": {"kind": "sql", "database": str(create_sqlite_url(self.folder / "keyring.db"))},
            "kms": self.kms,
        }


@pytest.fixture
async def rotated(shared_bao: Bao, tmp_path: Path) -> AsyncIterator[Rotated]:
    mounted = shared_bao.mount()
    settings = mounted.build_settings(tmp_path)
    validated = validate_key_settings(settings)
    key = validated.connect()
    async with opened(create_sqlite_url(tmp_path / "keyring.db"), key, kek=validated.key_name) as keyring:
        await keyring.fill(3)
        yield Rotated(tmp_path, mounted, settings, keyring)
    await key.close()


async def test_data_keys_are_re_wrapped_and_back_and_no_version_that_is_needed_is_shut_out(rotated: Rotated) -> None:
    before = await rotated.keyring.keys()
    rotated.mounted.change("keys/ledger/rotate")
    async with rotated.session() as session:
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.DONE
        assert set((await rotated.keyring.versions()).values()) == {"2"}
        with pytest.raises(RotatorError, match="version 1 is needed by the backup"):
            await retire_version(session, "1")
        assert (await rollback(session)).outcome is CommandOutcome.DONE
    assert await rotated.keyring.keys() == before
    rotated.mounted.change("keys/ledger/rotate")
    async with rotated.session() as session:
        with pytest.raises(RotatorError, match="version 1 is needed by 3 data keys"):
            await retire_version(session, "1")
        await run(session, RotationType.REWRAP_KEK)
        for file, _ in session.backups.list_backups():
            file.unlink()
        with pytest.raises(RotatorError, match="shuts out older ones: disable version 1 first"):
            await retire_version(session, "2", 2)
    assert rotated.mounted.read()["min_decryption_version"] == 1


async def test_retire_raises_the_floor_and_destroy_trims_at_once_a_month_later(rotated: Rotated) -> None:
    rotated.mounted.change("keys/ledger/rotate")
    month_ago = text("UPDATE keyring_retired_versions SET retired_at = retired_at - 31 * 86400")
    async with rotated.session() as session:
        await run(session, RotationType.REWRAP_KEK)
        for file, _ in session.backups.list_backups():
            file.unlink()
        assert (await retire_version(session, "1", 1)).outcome is CommandOutcome.DONE
        assert rotated.mounted.read()["min_decryption_version"] == 2
        with pytest.raises(RotatorError, match="it can be destroyed from"):
            await destroy_version(session, "1", 1)
        await rotated.keyring.database.write(lambda connection: connection.execute(month_ago))
        report = await destroy_version(session, "1", 1)
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.NOTHING_TO_DO
    assert report.summary.startswith("version 1 is destroyed, at once and for good")
    assert rotated.mounted.read()["min_available_version"] == 2
