"""A rotator in its own process that is killed (`kill -9`) right after one of its commits."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sqlalchemy import make_url

from services.rotator.runner import resume, rollback, run
from shared.config.settings import Address
from shared.keyring.administration import RotationType
from shared.keyring.database import Database
from tests.rotator.keyring_to_rotate import Rotated

PROCESSES: Final = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "psycopg"])  # it imports once what each process needs
_SECONDS: Final = 60.0


async def killed(rotated: Rotated, command: str, type_: RotationType, commits: int) -> bool:
    """Whether the process came to its end with fewer commits; else it was killed right after that many."""
    where = (rotated.url.render_as_string(hide_password=False), str(rotated.kms), str(rotated.folder))
    process = PROCESSES.Process(target=_child, args=(where, command, type_, commits))
    process.start()
    await asyncio.to_thread(process.join, _SECONDS)
    assert process.exitcode in {0, -signal.SIGKILL}, process.exitcode
    return process.exitcode == 0


def _child(where: tuple[str, str, str], command: str, type_: RotationType, commits: int) -> None:
    write, left = Database.write, commits

    async def counted(self: Database, work: Callable[[Any], Any]) -> Any:
        nonlocal left
        result = await write(self, work)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Database.write = counted  # type: ignore[method-assign]
    url, kms, folder = where
    host, _, port = kms.rpartition(":")
    rotated = Rotated(make_url(url), Address(host, int(port)), Path(folder))
    asyncio.run(_run(rotated, command, type_))


async def _run(rotated: Rotated, command: str, type_: RotationType) -> None:
    async with rotated.session() as session:
        if command == "run":
            await run(session, type_)
        elif command == "resume":
            await resume(session)
        else:
            await rollback(session)
