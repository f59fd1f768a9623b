"""A real Alertmanager with a given configuration."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from ops.demo.processes import pick_free_ports
from tests import processes
from tests.relay.served_relay import until


@asynccontextmanager
async def run_alertmanager(folder: Path, configuration: str) -> AsyncIterator[str]:
    """Runs it while the body runs; gives its URL."""
    program = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
    assert program, "install alertmanager"
    file = folder / "alertmanager.yml"
    file.write_text(configuration)
    address = f"127.0.0.1:{pick_free_ports(1)[0]}"
    options = (f"--config.file={file}", f"--storage.path={folder / 'alertmanager'}", "--cluster.listen-address=")
    process = await asyncio.create_subprocess_exec(
        program,
        *options,
        f"--web.listen-address={address}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession(f"http://{address}") as http:

            async def is_ready() -> bool:
                try:
                    async with http.get("/-/ready") as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

            await until(is_ready)
        yield f"http://{address}"
    finally:
        await processes.kill(process)
