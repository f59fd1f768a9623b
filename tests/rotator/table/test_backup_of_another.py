"""Two tables with the same ids and one `state_dir`: no backup of the one gets into the other."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from sqlalchemy import URL

from shared.keyring.model import compute_fingerprint
from tests.memory_kms import StoredKey
from tests.rotator.command_line import type_command
from tests.rotator.table.tenants import PREFIX, Tenants, aad, secret

DAMAGE = "UPDATE tenant_keys SET dek_ciphertext = :damage WHERE tenant = 'acme'"


@pytest.fixture
def pair(build: Callable[[URL], Tenants], sqlite_url: URL, kms_key: StoredKey, tmp_path: Path) -> tuple[Tenants, Path]:
    """The second table, and the first one's backup."""

    async def fill() -> None:
        for table in (first, second):
            await table.create()
            await table.add(["acme", "beta"])
        other = await second.wrap(b"the data key of another acme", aad("acme"))
        await second.execute("UPDATE tenant_keys SET dek_ciphertext = :other WHERE tenant = 'acme'", {"other": other})

    first = build(sqlite_url)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "app.db").touch()
    second = replace(
        first, url=URL.create("sqlite", database=str(tmp_path / "second" / "app.db")), folder=tmp_path / "second"
    )
    asyncio.run(fill())
    kms_key.add_version("oak")
    assert type_command("run", "--type", "rewrap-kek", "--config", first.configuration()).exit_code == 0
    (backup,) = (tmp_path / "state" / "backups").iterdir()
    return second, backup


def configure(second: Tenants) -> Path:
    """With the state of the first one."""
    return second.configuration(state_dir=str(second.folder.parent / "state"))


@pytest.mark.parametrize("command", ["restore", "restore-check"])
@pytest.mark.parametrize("is_rotated", [False, True])
def test_the_backup_of_another_table_is_refused(pair: tuple[Tenants, Path], command: str, *, is_rotated: bool) -> None:
    second, backup = pair
    config = configure(second)
    if is_rotated:
        assert type_command("run", "--type", "rewrap-kek", "--config", config).exit_code == 0
    asyncio.run(second.execute(DAMAGE, {"damage": b"damaged"}))
    before = asyncio.run(second.rows())
    ended = type_command(command, backup, "--config", config)
    assert ended.exit_code == 1
    printed = ended.stdout.replace("\\", "")  # of Markdown
    assert f"the backup {backup} is of the keyring " in printed
    assert f"at sqlite:///{backup.parents[2]}/app.db tenant_keys.dek_ciphertext, and `driver` leads to " in printed
    assert "nothing was changed; use the configuration of that keyring" in printed
    assert asyncio.run(second.rows()) == before


@pytest.mark.parametrize("command", ["restore", "restore-check"])
def test_latest_is_no_backup_of_another_table(pair: tuple[Tenants, Path], command: str) -> None:
    second, backup = pair
    config = configure(second)
    ended = type_command(command, "latest", "--config", config)
    assert (ended.exit_code, f"there is no backup of this keyring in {backup.parent}" in ended.stdout) == (1, True)
    assert type_command("run", "--type", "rewrap-kek", "--config", config).exit_code == 0
    (own,) = {*backup.parent.iterdir()} - {backup}
    asyncio.run(second.execute(DAMAGE, {"damage": b"damaged"}))
    ended = type_command(command, "latest", "--config", config)
    assert (ended.exit_code, str(own) in ended.stdout) == (0, True)


def test_a_row_keeps_the_data_key_that_is_known_of_it(pair: tuple[Tenants, Path]) -> None:
    """As after the tables were copied from one database to the other: the id of the keyring is the same."""
    second, backup = pair
    config = configure(second)
    assert type_command("run", "--type", "rewrap-kek", "--config", config).exit_code == 0
    asyncio.run(second.execute(DAMAGE, {"damage": b"damaged"}))
    first_id = yaml.safe_load(backup.read_bytes().partition(b"\n")[0])["keyring"]
    asyncio.run(second.execute(f"UPDATE {PREFIX}_schema SET id = :id", {"id": first_id}))  # noqa: S608 - a test's
    ended = type_command("restore", backup, "--config", config)
    assert ended.exit_code == 1
    assert "acme (the keyring has another data key of this id)" in ended.stdout
    assert asyncio.run(second.rows())["acme"][0] == b"damaged"
    unknown = f"UPDATE {PREFIX}_fingerprints SET fingerprint = :its WHERE id = 'acme'"  # noqa: S608 - a test's
    asyncio.run(second.execute(unknown, {"its": compute_fingerprint(secret("acme"))}))
    assert type_command("restore", backup, "--config", config).exit_code == 0
    assert asyncio.run(second.unreadable()) == []
