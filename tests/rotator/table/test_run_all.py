"""`run --all` of a table: it has no new data keys, and that is no failure."""

import asyncio
from collections.abc import Callable

from sqlalchemy import URL

from tests.memory_kms import StoredKey
from tests.rotator.command_line import type_command
from tests.rotator.table.tenants import Tenants


def test_a_table_is_wrapped_anew(build: Callable[[URL], Tenants], sqlite_url: URL, kms_key: StoredKey) -> None:
    async def fill() -> None:
        await tenants.create()
        await tenants.add(["acme", "beta"])

    tenants = build(sqlite_url)
    asyncio.run(fill())
    kms_key.add_version("oak")
    ended = type_command("run", "--all", "--config", tenants.configuration())
    assert ended.exit_code == 0, ended.stdout
    assert {version for _, version in asyncio.run(tenants.rows()).values()} == {"oak"}
