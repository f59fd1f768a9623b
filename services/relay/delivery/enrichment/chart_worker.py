"""The process that draws, seen from the one that sends: one chart at a time, and killed when it is late."""

import asyncio
import importlib.util
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Final

import msgspec

from services.relay.delivery.enrichment.chart_spec import ChartSpec

_MODULE: Final = "services.relay.delivery.enrichment.drawing"
_MAX_PNG_BYTES: Final = 1024 * 1024
_ENCODER: Final = msgspec.json.Encoder()


class DrawingError(Exception):
    """No chart was drawn; the text says why."""


def can_draw() -> bool:
    """Whether matplotlib, the extra `charts`, is installed."""
    return importlib.util.find_spec("matplotlib") is not None


class ChartWorker:
    """Draws in a process that starts when it is needed, and ends by itself when it is not."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._lock = asyncio.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def draw(self, spec: ChartSpec) -> bytes:
        """A PNG; the process is killed when the caller no longer waits. Raises DrawingError."""
        async with self._lock:
            try:
                return await self._draw(spec)
            except (OSError, asyncio.IncompleteReadError) as error:
                await self._kill()
                raise DrawingError(f"the process that draws ended: {type(error).__name__}") from None
            except BaseException:  # cancelled, too: what it still writes belongs to nobody
                await self._kill()
                raise

    async def close(self) -> None:
        """Ends the process."""
        await self._kill()
        if self._folder is not None:
            await asyncio.to_thread(self._folder.cleanup)
            self._folder = None

    async def _draw(self, spec: ChartSpec) -> bytes:
        process = self._process
        if process is None or process.returncode is not None:
            self._process = process = await self._start()
        assert process.stdin is not None  # noqa: S101  # both are pipes
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(_ENCODER.encode(spec) + b"\n")
        await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(4), "big")
        if not 0 < size <= _MAX_PNG_BYTES:
            raise DrawingError("the chart could not be drawn")
        return await process.stdout.readexactly(size)

    async def _start(self) -> Process:
        if self._folder is None:
            self._folder = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="keypulse-charts-")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),  # as of the process that sends
            "MPLCONFIGDIR": self._folder.name,  # its list of fonts
            "OPENBLAS_NUM_THREADS": "1",  # each thread takes memory, and nothing is computed
        }
        # In its own session, so that the terminal's Ctrl-C reaches only the relay.
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", _MODULE),
            stdin=PIPE,
            stdout=PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
