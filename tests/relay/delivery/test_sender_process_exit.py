"""The sender process exits with its relay, whatever it is doing: otherwise it could send outdated messages."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from services.relay.delivery.sender_process import COMMAND
from shared import VERSION
from tests import processes
from tests.relay.delivery.sender_tasks import has_exited
from tests.relay.served_relay import until

ROOT = Path(__file__).parents[3]
RELAY = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from services.relay.delivery.sender_process import open_sender_process
from tests.relay.delivery.sender_tasks import SETTINGS, process_of

async def main():
    async with open_sender_process(SETTINGS) as send:
        print(await process_of(send), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_one_that_is_stopped_ends_when_its_relay_is_killed_and_imports_nothing_from_its_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "__init__.py").write_text("raise SystemExit('of somebody else')")
    relay = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", RELAY, str(ROOT), stdout=PIPE, cwd=tmp_path
    )
    assert relay.stdout is not None
    try:
        sender = int(await asyncio.wait_for(relay.stdout.readline(), 60))
        os.kill(sender, signal.SIGSTOP)
    finally:
        await processes.kill(relay)
    try:
        await until(lambda: has_exited(sender))
    finally:
        if not has_exited(sender):
            os.kill(sender, signal.SIGKILL)


async def test_one_whose_relay_ended_before_it_started_does_nothing() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:  # whose end it would wait for
        command = (sys.executable, "-c", COMMAND, str(theirs.fileno()), VERSION, str(os.getpid() + 1))
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, pass_fds=[theirs.fileno()])
        await processes.finish(process)
        assert process.returncode == 0
