"""Children of the demo are gone when it is, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ops.demo.processes import run_processes
from shared.http.server import StartError
from tests import processes

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def _until(condition: object, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)  # a bounded wait for another process


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it is gone, or goes while the file is read
        return False


async def test_children_are_stopped_at_the_end(tmp_path: Path) -> None:
    async with run_processes(tmp_path) as children:
        await children.start("sleeper", SLEEPER)
        pid = children._running["sleeper"].pid
        assert _alive(pid)
    assert not _alive(pid)


async def test_a_child_that_ended_is_named_with_its_last_output(tmp_path: Path) -> None:
    async with run_processes(tmp_path) as children:
        await children.start("relay", [sys.executable, "-c", "import sys; sys.exit('no such file')"])
        await processes.finish(children._running["relay"])
        with pytest.raises(StartError, match="relay ended with exit code 1: no such file"):
            children.check()


async def test_a_child_that_was_killed_is_started_again_and_its_last_output_stays(tmp_path: Path) -> None:
    async with run_processes(tmp_path) as children:
        first = await children.start("sleeper", SLEEPER)
        await children.start("other", SLEEPER)
        log, file = tmp_path / "sleeper.log", tmp_path / "sleeper.pid"
        _until(lambda: log.read_text() == "up\n")
        assert children.list_ended() == {}
        os.kill(int(file.read_text()), signal.SIGKILL)
        await processes.finish(children._running["sleeper"])
        assert children.list_ended() == {"sleeper": "sleeper ended with exit code -9: up"}
        assert await children.restart_ended() == ["sleeper"]
        assert children.list_ended() == {}
        new_pid = int(file.read_text())
        assert new_pid != first
        _until(lambda: log.read_text() == "up\nup\n")
    assert not _alive(new_pid)


def test_children_go_even_when_the_demo_is_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom ops.demo.processes import run_processes\n"
        "async def main():\n"
        f"    async with run_processes(Path({str(tmp_path)!r})) as children:\n"
        f"        await children.start('sleeper', {SLEEPER!r})\n"
        "        print(children._running['sleeper'].pid, flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with processes.running([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        pid = int(demo.stdout.readline())
        _until(lambda: "up" in (tmp_path / "sleeper.log").read_text())
        processes.end(demo, signal.SIGKILL)
        _until(lambda: not _alive(pid))
