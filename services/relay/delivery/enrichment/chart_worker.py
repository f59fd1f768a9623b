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

from services.relay.delivery.enrichment.chart_spec import READY, ChartSpec

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
        self._starting: asyncio.Task[Process] | None = None
        self._lock = asyncio.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        """Starts the process if there is none: it takes half a second, and longer on a busy machine."""
        if self._starting is None and (self._process is None or self._process.returncode is not None):
            self._starting = asyncio.create_task(self._start(), name="start the process that draws")

    async def draw(self, spec: ChartSpec) -> bytes:
        """A PNG. Raises DrawingError.

        A process that draws for longer than the caller waits is killed; one that starts is left to the next chart.
        """
        async with self._lock:
            try:
                self.start()
                if self._starting is not None:
                    self._process = await asyncio.shield(self._starting)
                    self._starting = None
                assert self._process is not None  # noqa: S101  # it was started
                return await self._draw(self._process, spec)
            except (OSError, asyncio.IncompleteReadError) as error:
                self._starting = None
                await self._kill()
                raise DrawingError(f"the process that draws ended: {type(error).__name__}") from None
            except BaseException:  # cancelled, too: what it still writes belongs to nobody
                await self._kill()
                raise

    async def close(self) -> None:
        """Ends the process."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            self._starting = None
        await self._kill()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    async def _draw(self, process: Process, spec: ChartSpec) -> bytes:
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
            self._folder = tempfile.TemporaryDirectory(prefix="keypulse-charts-")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),  # as of the process that sends
            "MPLCONFIGDIR": self._folder.name,  # its list of fonts
            "OPENBLAS_NUM_THREADS": "1",  # each thread takes memory, and nothing is computed
        }
        # In its own session, so that the terminal's Ctrl-C reaches only the relay.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", _MODULE),
            stdin=PIPE,
            stdout=PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        try:
            await process.stdout.readexactly(len(READY))  # everything is imported
        except BaseException:
            await _kill_process(process)
            raise
        return process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await _kill_process(process)


async def _kill_process(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
