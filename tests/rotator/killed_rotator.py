"""A rotator in its own process that is killed (`kill -9`) right after one of its commits."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final

from services.rotator.report import CommandReport
from shared.keyring.database import Database
from tests import memory_kms
from tests.rotator.keyring_to_rotate import Rotating

PROCESSES: Final = multiprocessing.get_context("forkserver")
# It imports once what each process needs.
PROCESSES.set_forkserver_preload([__name__, "tests.rotator.table.tenants", "psycopg", "pymysql"])
_SECONDS: Final = 120.0

Command = Callable[..., Awaitable[CommandReport]]


async def run_killed(
    rotating: Rotating, commits: int, command: Command, *arguments: object, **overrides: object
) -> bool:
    """Whether the process came to its end with fewer commits; else it was killed right after that many."""
    given = (rotating, commits, command, arguments, overrides, memory_kms.keys)
    process = PROCESSES.Process(target=_run_in_child, args=given)
    process.start()
    await asyncio.to_thread(process.join, _SECONDS)
    assert process.exitcode in {0, -signal.SIGKILL}, process.exitcode
    return process.exitcode == 0


def _run_in_child(
    rotating: Rotating, left: int, command: Command, arguments: Any, overrides: Any, keys: dict[str, Any]
) -> None:
    write = Database.write

    async def count(self: Database, work: Callable[[Any], Any]) -> Any:
        nonlocal left
        result = await write(self, work)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Database.write = count  # type: ignore[method-assign]
    with memory_kms.registered():
        memory_kms.keys.update(keys)
        asyncio.run(rotating.do(command, *arguments, **overrides))
