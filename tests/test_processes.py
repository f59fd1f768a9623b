"""A wait for a process has a limit, and behind it a kill."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest

from tests import processes

STUBBORN = [sys.executable, "-uc", "import signal, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(600)"]


@pytest.mark.parametrize("end", [processes.end, processes.end_and_read])
def test_one_that_ignores_sigterm_is_killed_and_named(end: Callable[..., object]) -> None:
    with processes.running(STUBBORN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(AssertionError, match=r"time.sleep\(600\).* was still there 0.1 s after SIGTERM"):
            end(process, seconds=0.1)
        assert process.returncode == -9


@pytest.mark.parametrize("end", [processes.stop, processes.finish])
async def test_one_of_asyncio_is_killed_and_named_too(end: Callable[..., Awaitable[object]]) -> None:
    process = await asyncio.create_subprocess_exec(*STUBBORN, stdout=subprocess.PIPE)
    assert process.stdout
    await process.stdout.readline()
    with pytest.raises(AssertionError, match=rf"process {process.pid} was still there 0.1 s after"):
        await end(process, seconds=0.1)
    assert process.returncode == -9


def test_one_that_ends_gives_its_code() -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    deadline = time.monotonic() + 30
    while process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert processes.end(process) == 3
