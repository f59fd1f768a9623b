"""`run --all` of a table: it has no new data keys, and that is no failure."""

import asyncio

from tests.rotator.command_line import type_command
from tests.rotator.table.tenants import Tenants


def test_a_table_is_wrapped_anew(due: Tenants) -> None:
    ended = type_command("run", "--all", "--config", due.configuration())
    assert ended.exit_code == 0, ended.stdout
    assert {version for _, version in asyncio.run(due.rows()).values()} == {"oak"}
