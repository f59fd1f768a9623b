"""A column that names the KMS key in another spelling names no other key; retire tries what does."""

import base64
from pathlib import Path

import pytest
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.model import EmulatedState
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.retirement import destroy_version, retire_version
from services.rotator.runner import rollback, run
from shared.keyring.administration import RotationType
from tests.rotator.keyring_to_rotate import KEY, NewVersion
from tests.rotator.table.tenants import PREFIX, Tenants
from tests.rotator.versions import state

REWRAP = RotationType.REWRAP_KEK
SPELLINGS = (
    f"{KEY}/cryptoKeyVersions/%s",
    f"gcp-kms://{KEY}/cryptoKeyVersions/%s",
    f"//cloudkms.googleapis.com/{KEY}/cryptoKeyVersions/%s",
    f"https://cloudkms.googleapis.com/v1/{KEY}/cryptoKeyVersions/%s",
    f"/{KEY}/cryptoKeyVersions/%s",
    f" {KEY}/cryptoKeyVersions/%s/",
    "%s ",
)
WITHOUT_VERSION = (KEY, f"gcp-kms://{KEY}", f"https://cloudkms.googleapis.com/v1/{KEY}/")
NO_NAMES = ("gcp-kms:/ledger", f"{KEY}:encrypt", "arn:aws:kms:eu-central-1:111122223333:key/1234abcd", "?/1", "")
OTHER = f"{KEY}-of-another-service/cryptoKeyVersions/1"


@pytest.fixture
async def shop(any_database: URL, emulator: Emulator, tmp_path: Path) -> Tenants:
    """No row yet, in each kind of database; the key is one of Cloud KMS."""
    kms = {"provider": "gcp", "key": KEY, "endpoint": str(emulator.address), "insecure": True}
    tenants = Tenants(any_database, kms, tmp_path)
    await tenants.create()
    return tenants


async def fill(tenants: Tenants, *columns: str) -> None:
    """A row for each of these texts in its column of the version; version 1 wraps all."""
    names = [f"t{number}" for number in range(len(columns))]
    await tenants.add(names)
    change = "UPDATE tenant_keys SET kms_version = :text WHERE tenant = :name"
    await tenants.execute(change, *({"name": name, "text": text} for name, text in zip(names, columns, strict=True)))


async def columns_of(tenants: Tenants) -> list[str]:
    return [text for (text,) in await tenants.execute("SELECT kms_version FROM tenant_keys ORDER BY tenant")]


async def forget_backups(tenants: Tenants) -> None:
    await tenants.execute(f"DELETE FROM {PREFIX}_journal_entries WHERE step = 'backup'")  # noqa: S608 - a test's


async def retire_1(tenants: Tenants) -> None:
    """As whoever needs no backup any more."""
    async with tenants.session() as session:
        for file, _ in session.backups.list_backups():
            file.unlink()
        await forget_backups(tenants)
        await retire_version(session, "1")


async def test_each_spelling_is_the_configured_key_and_is_kept(
    shop: Tenants, emulator: Emulator, new_version: NewVersion
) -> None:
    before = [text % 1 for text in SPELLINGS]
    await fill(shop, *before, *WITHOUT_VERSION)
    await new_version()
    async with shop.session() as session:
        report = await run(session, REWRAP)
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ())
        assert report.rotation
        assert report.rotation.done == len(before) + len(WITHOUT_VERSION)
        assert (await run(session, REWRAP)).outcome is CommandOutcome.NOTHING_TO_DO
        assert await columns_of(shop) == [*(text % 2 for text in SPELLINGS[:-1]), "2", *WITHOUT_VERSION]
        assert (await rollback(session)).outcome is CommandOutcome.DONE
        assert await columns_of(shop) == [*before[:-1], "1", *WITHOUT_VERSION]
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
    await retire_1(shop)
    assert await state(emulator, 1) is EmulatedState.DISABLED
    assert await shop.unreadable() == []


async def test_what_is_no_name_of_a_key_is_unwrapped_and_never_passed_over(
    shop: Tenants, emulator: Emulator, new_version: NewVersion
) -> None:
    await fill(shop, *NO_NAMES)
    await new_version()
    async with shop.session() as session:
        with pytest.raises(RotatorError, match="may be needed by 5 data keys whose version cannot be read"):
            await retire_version(session, "1")
        report = await run(session, REWRAP)
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ())
    assert await columns_of(shop) == ["2"] * len(NO_NAMES)
    await retire_1(shop)
    assert await state(emulator, 1) is EmulatedState.DISABLED
    assert await shop.unreadable() == []


async def test_a_row_that_names_another_key_is_left_alone_and_tried_before_a_version_is_retired(
    shop: Tenants, emulator: Emulator, new_version: NewVersion
) -> None:
    await fill(shop, "1", OTHER)
    await new_version()
    async with shop.session() as session:
        report = await run(session, REWRAP)
        assert (report.outcome, [each.id for each in report.problems]) == (CommandOutcome.DONE, ["t1"])
    with pytest.raises(RotatorError, match=rf"t1 \(it names {OTHER.partition('/cryptoKeyV')[0]}, and the configured"):
        await retire_1(shop)
    assert await state(emulator, 1) is EmulatedState.ENABLED
    await shop.execute("UPDATE tenant_keys SET dek_ciphertext = :its WHERE tenant = 't1'", {"its": b"another key's"})
    await retire_1(shop)
    assert await state(emulator, 1) is EmulatedState.DISABLED


async def test_a_backup_that_names_another_key_is_tried_before_a_version_is_retired_and_destroyed(
    shop: Tenants, emulator: Emulator, new_version: NewVersion
) -> None:
    await fill(shop, "1")
    await new_version()
    async with shop.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        await forget_backups(shop)
        ((file, header),) = session.backups.list_backups()

        def write_header(wrapped: str) -> None:
            line = header.model_copy(update={"kek": OTHER.partition("/cryptoKeyV")[0], "wrapped": wrapped})
            file.write_text(line.model_dump_json() + "\n")

        for command, expected in ((retire_version, EmulatedState.ENABLED), (destroy_version, EmulatedState.DISABLED)):
            write_header(header.wrapped)
            with pytest.raises(RotatorError, match=f"version 1 is needed by the backup {file}"):
                await command(session, "1")
            assert await state(emulator, 1) is expected
            write_header(base64.b64encode(b"another key's").decode())
            await command(session, "1")
            await shop.execute(f"UPDATE {PREFIX}_retired_versions SET retired_at = retired_at - 31 * 86400")  # noqa: S608
    assert await state(emulator, 1) is EmulatedState.DESTROY_SCHEDULED
