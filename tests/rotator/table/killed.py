"""A rotator of a table in a process of its own that is killed, as by `kill -9`, right after one of its commits."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from services.rotator.runner import resume, rollback, run
from shared.keyring.administration import RotationType
from shared.keyring.database import Database
from tests import memory_kms
from tests.rotator.killed_rotator import PROCESSES
from tests.rotator.table.tenants import Tenants

_SECONDS = 120.0
PROCESSES.set_forkserver_preload(["tests.rotator.killed_rotator", __name__, "psycopg", "pymysql"])


async def run_killed(tenants: Tenants, command: str, commits: int, **overrides: Any) -> bool:
    """Whether the process came to its end with fewer commits; else it was killed right after that many."""
    url = tenants.url.render_as_string(hide_password=False)
    where = (url, tenants.kms, str(tenants.folder), tenants.driver, overrides, memory_kms.keys)
    process = PROCESSES.Process(target=_run_in_child, args=(where, command, commits))
    process.start()
    await asyncio.to_thread(process.join, _SECONDS)
    assert process.exitcode in {0, -signal.SIGKILL}, process.exitcode
    return process.exitcode == 0


def _run_in_child(where: tuple[Any, ...], command: str, left: int) -> None:
    write = Database.write

    async def count(self: Database, work: Callable[[Any], Any]) -> Any:
        nonlocal left
        result = await write(self, work)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Database.write = count  # type: ignore[method-assign]
    url, kms, folder, driver, overrides, keys = where
    with memory_kms.registered():
        memory_kms.keys.update(keys)
        asyncio.run(_run(Tenants(make_url(url), kms, Path(folder), driver), command, overrides))


async def _run(tenants: Tenants, command: str, overrides: dict[str, Any]) -> None:
    async with tenants.session(**overrides) as session:
        if command == "run":
            await run(session, RotationType.REWRAP_KEK)
        else:
            await (resume if command == "resume" else rollback)(session)


async def end_lease(tenants: Tenants, prefix: str) -> None:
    """As if the time of the killed one's lease had passed."""
    await tenants.execute(f"UPDATE {prefix}_lease SET expires_at = 0")  # noqa: S608 - a test's
