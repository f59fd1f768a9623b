"""`keypulse-demo` as a person starts it, on free ports, and what somebody at its side sees of it."""

import asyncio
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from tests import processes

ROOT = Path(__file__).parents[3]
START_SECONDS = 150.0
TIMEOUT = 90.0
"""Seconds that a command may take, or an alert: the machine may be busy with other tests."""
_ON_FREE_PORTS = """
from ops.demo import __main__ as demo
from ops.demo.processes import Ports

free = Ports.pick_free()
demo.Ports = lambda: free
demo.main([])
"""


@dataclass(frozen=True)
class Demo:
    """A running demo. `variables` are those of its file `env`."""

    variables: dict[str, str]
    file: str
    http: aiohttp.ClientSession

    async def bash(self, script: str) -> str:
        """Types `script` into a bash that has read the file; what it prints. Fails where a command of it does."""
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", f". {self.file}\n{script}"),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await processes.finish(process, TIMEOUT)
        assert process.returncode == 0, f"{script}\n{printed.decode()}"
        return printed.decode()

    async def wait_until_delivered(self, alert: str, status: str, since: float) -> float:
        """Waits until people are told, after `since`, that it fires or is over; the time at which that was seen."""
        while not await self._is_delivered(alert, status, since):
            assert time.time() < since + TIMEOUT, f"nobody was told that {alert} is {status}"
            await asyncio.sleep(0.2)
        return time.time()

    async def _is_delivered(self, alert: str, status: str, since: float) -> bool:
        """By the relay, or by Alertmanager's own mail, which goes around it."""
        url = f"{self.variables['RELAY']}/api/deliveries?limit=1000&state=delivered&alertname={alert}"
        rows = ((await self._get(url)) or {"deliveries": []})["deliveries"]
        times = [datetime.fromisoformat(row["accepted_at"]).timestamp() for row in rows if row["status"] == status]
        state = await self._get(f"{self.variables['STAND_INS']}/api/state") or {"mailbox": []}
        direct = re.compile(rf"\[{status.upper()}\S*\] {alert}\b")
        times += [mail["at"] for mail in state["mailbox"] if direct.match(mail["subject"])]
        return any(at >= since for at in times)

    async def _get(self, url: str) -> Any:
        try:
            async with self.http.get(url) as answer:
                return await answer.json() if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None  # it may be the one that was killed


@asynccontextmanager
async def demo() -> AsyncIterator[Demo]:
    """Starts it, and stops it with all that belongs to it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _ON_FREE_PORTS), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    found = None
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            printed = await process.stdout.readuntil(b"Ctrl-C")
        found = re.search(rb"^  \. (\S+/env)\b", printed, re.MULTILINE)
        assert found, printed.decode()
        file = found[1].decode()
        text = await asyncio.to_thread(Path(file).read_text)
        variables = dict(re.findall(r"^export (\w+)=(.*)$", text, re.MULTILINE))
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
            yield Demo(variables, file, http)
    finally:
        if process.returncode is None:
            process.terminate()
        await processes.finish(process)
        if found:  # on a busy machine it may have been cut off at its bound
            await asyncio.to_thread(shutil.rmtree, Path(found[1].decode()).parent, ignore_errors=True)
