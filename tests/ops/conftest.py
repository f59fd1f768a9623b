"""A real Prometheus or Alertmanager on a port that the system picks."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests import processes

START_SECONDS = 60.0
Running = Callable[..., AbstractAsyncContextManager[str]]
Start = Callable[..., Awaitable[str]]


@pytest.fixture
def running(tmp_path: Path) -> Running:
    """Runs a program that logs where it listens, for as long as the context lasts; gives its URL."""

    @asynccontextmanager
    async def running(program: str, *arguments: str) -> AsyncIterator[str]:
        log = tmp_path / f"{Path(program).name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(program, *arguments, stdout=output, stderr=output)
        try:
            async with asyncio.timeout(START_SECONDS):
                while not (found := re.search(r'"Listening on" address=(\S+)', log.read_text())):
                    assert process.returncode is None, log.read_text()
                    await asyncio.sleep(0.05)
            yield f"http://{found[1]}"
        finally:
            await processes.stop(process, seconds=START_SECONDS)

    return running


@pytest.fixture
async def start(running: Running) -> AsyncIterator[Start]:
    """Starts such a program, and gives its URL; ended after the test."""
    async with AsyncExitStack() as programs:

        async def start(program: str, *arguments: str) -> str:
            return await programs.enter_async_context(running(program, *arguments))

        yield start
