"""A `where` that reads other rows: what a rotation takes out of it is no rotation that is done."""

import asyncio
from collections.abc import Callable

from sqlalchemy import URL

from tests.memory_kms import StoredKey
from tests.rotator.command_line import type_command
from tests.rotator.table.conftest import each_database
from tests.rotator.table.tenants import Tenants

OF_EACH = "NOT EXISTS (SELECT 1 FROM tenant_keys o WHERE o.kms_version = {} AND o.tenant < tenant_keys.tenant)"


@each_database
def test_rows_that_leave_where_as_others_are_wrapped_end_with_1(
    build: Callable[[URL], Tenants], any_database: URL, kms_key: StoredKey
) -> None:
    async def fill() -> None:
        await tenants.create()
        await tenants.add(["acme", "beta"])

    tenants = build(any_database)
    tenants.driver["where"] = OF_EACH.format("'oak'")
    asyncio.run(fill())
    before = asyncio.run(tenants.rows())
    kms_key.add_version("oak")
    ended = type_command("run", "--type", "rewrap-kek", "--config", tenants.configuration())
    assert ended.exit_code == 1
    assert "as soon as these are wrapped anew, and would not be rotated" in ended.stdout
    assert asyncio.run(tenants.rows()) == before
    assert type_command("rollback", "--config", tenants.configuration()).exit_code == 0
    tenants.driver["where"] = OF_EACH.format("'never'")
    assert type_command("run", "--type", "rewrap-kek", "--config", tenants.configuration()).exit_code == 0
    assert {version for _, version in asyncio.run(tenants.rows()).values()} == {"oak"}
