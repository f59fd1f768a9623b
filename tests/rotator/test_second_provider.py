"""A KMS whose versions are named by words: its data keys are rotated, backed up, restored, and its versions retired."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.retirement import destroy_version, retire_version
from services.rotator.runner import rollback, run
from shared.keyring.administration import AdministrationError, RotationType
from shared.kms.port import KeyVersion, VersionState
from shared.sql.database_url import create_sqlite_url
from tests import memory_kms
from tests.rotator.keyring_to_rotate import Rotating
from tests.shared.keyring.keyring import Keyring, opened


class Rotated(Rotating):
    """A keyring of the provider, and a rotator for it."""

    def __init__(self, folder: Path, stored: memory_kms.StoredKey, keyring: Keyring) -> None:
        self.folder, self.stored, self.keyring = folder, stored, keyring
        self.now = datetime.now(UTC).timestamp()

    def read_clock(self) -> float:
        return self.now

    def describe(self) -> dict[str, Any]:
        return {
            "driver": {"kind": "sql", "database": str(create_sqlite_url(self.folder / "keyring.db"))},
            "kms": {"provider": "memory", "key": "ledger"},
        }


@pytest.fixture
async def rotated(tmp_path: Path) -> AsyncIterator[Rotated]:
    with memory_kms.registered():
        stored = memory_kms.create_key("ledger", "spring")
        key = memory_kms.MemoryKey("ledger")
        async with opened(create_sqlite_url(tmp_path / "keyring.db"), key, kek="ledger") as keyring:
            await keyring.fill(3)
            yield Rotated(tmp_path, stored, keyring)


async def test_all_data_keys_are_wrapped_by_the_new_version_and_back(rotated: Rotated) -> None:
    before = await rotated.keyring.keys()
    assert set((await rotated.keyring.versions()).values()) == {"spring"}
    rotated.stored.add_version("autumn")
    async with rotated.session() as session:
        report = await run(session, RotationType.REWRAP_KEK)
        assert (report.outcome, report.rotation and report.rotation.target_version) == (CommandOutcome.DONE, "autumn")
        assert set((await rotated.keyring.versions()).values()) == {"autumn"}
        ((_, header),) = session.backups.list_backups()
        assert (header.kek, header.kek_version, header.needs) == ("ledger", "autumn", ("autumn", "spring"))
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.NOTHING_TO_DO
        assert (await rollback(session)).outcome is CommandOutcome.DONE
    assert await rotated.keyring.keys() == before


async def test_how_long_a_new_primary_needs_to_take_effect_is_what_the_provider_says(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    encrypt = memory_kms.MemoryKey.encrypt

    async def encrypt_by_spring(key: memory_kms.MemoryKey, plaintext: bytes, aad: bytes, *, timeout: float) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(rotated.stored, "primary", "spring")
            return await encrypt(key, plaintext, aad, timeout=timeout)

    monkeypatch.setattr(memory_kms.MemoryKey, "encrypt", encrypt_by_spring)
    rotated.stored.add_version("autumn")
    async with rotated.session(primary_timeout="50ms") as session:
        with pytest.raises(RotatorError, match="needs no time to take effect") as waited:
            await run(session, RotationType.REWRAP_KEK)
    await rotated.keyring.take_lease()
    with pytest.raises(AdministrationError, match=r"not autumn; .* needs no time to take effect") as refused:
        await rotated.keyring.rotate()
    assert "hours" not in f"{waited.value} {refused.value}"


async def test_a_version_is_retired_once_nothing_needs_it_and_destroyed_a_month_later(rotated: Rotated) -> None:
    async with rotated.session() as session:
        with pytest.raises(RotatorError, match="version spring is the primary one"):
            await retire_version(session, "spring")
    rotated.stored.add_version("autumn")
    async with rotated.session() as session:
        with pytest.raises(RotatorError, match="version spring is needed by 3 data keys"):
            await retire_version(session, "spring")
        await run(session, RotationType.REWRAP_KEK)
        with pytest.raises(RotatorError, match="version spring is needed by the backup"):
            await retire_version(session, "spring")
        for file, _ in session.backups.list_backups():
            file.unlink()
        with pytest.raises(RotatorError, match="is needed by 1 backups that are not in") as refused:
            await retire_version(session, "spring")
        assert refused.value.next_commands == ("retire spring --confirm spring --confirm-backups 1",)
        assert (await retire_version(session, "spring", 1)).outcome is CommandOutcome.DONE
        assert rotated.stored.versions["spring"].state is VersionState.DISABLED
        with pytest.raises(RotatorError, match="it can be destroyed from"):
            await destroy_version(session, "spring", 1)


async def test_a_version_that_is_destroyed_at_once_gets_no_date(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def destroy_at_once(key: memory_kms.MemoryKey, version: str, *, timeout: float) -> KeyVersion:
        return key._key.set_state(version, VersionState.DESTROYED)

    monkeypatch.setattr(memory_kms.MemoryKey, "schedule_destruction", destroy_at_once)
    rotated.stored.add_version("autumn")
    month_ago = text("UPDATE keyring_retired_versions SET retired_at = retired_at - 31 * 86400")
    async with rotated.session() as session:
        await run(session, RotationType.REWRAP_KEK)
        for file, _ in session.backups.list_backups():
            file.unlink()
        await retire_version(session, "spring", 1)
        await rotated.keyring.database.write(lambda connection: connection.execute(month_ago))
        report = await destroy_version(session, "spring", 1)
    assert report.summary.startswith("version spring is destroyed, at once and for good")
    assert "1970" not in report.summary
