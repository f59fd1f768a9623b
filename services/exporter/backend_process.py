"""Reads the backends in a process of its own: what they answer, and how, must not delay the probes.

A backend decides how much work its answer makes, such as a megabyte in pieces of eight bytes. On the event loop that
probes, or in a thread beside it, that work would count as time of KMS.

Settings go in, states come out, over a socket that only the two have: the length of each pickle in eight bytes, then
the pickle. The process ends with the exporter. One that ends by itself, or says nothing for half a minute, is replaced,
and its backends count as not read.
"""

import asyncio
import os
import pickle
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from random import Random
from typing import Any, Final, NamedTuple

import structlog

from services.exporter.backends.settings import Backend, ProbeSettings
from services.exporter.model import BackendState
from shared import VERSION
from shared.process import logs

COMMAND: Final = (
    "import gc; gc.disable()\n"  # to look for garbage among what is imported is a third of the start
    "from services.exporter.backend_reads import main; main()"
)
AddStates = Callable[[Sequence[BackendState]], object]
"""Takes the states of all replicas of one service."""
_LENGTH: Final = 8
_SILENCE_SECONDS: Final = 30.0
_RESTART_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


class Start(NamedTuple):
    backends: Sequence[Backend]
    probe: ProbeSettings
    random: Random
    logging: tuple[Any, ...] | None
    """What `logs.configure` was called with."""


async def read_backends_in_process(
    backends: Sequence[Backend], probe: ProbeSettings, add_states: AddStates, random: Random
) -> None:
    """Reads until it is cancelled; `backend_reads.read_backends` does it in the process that calls it."""
    while True:
        try:
            cause = await _run_process(Start(backends, probe, random, logs.get_configuration()), add_states)
        except OSError as error:
            cause = error.strerror or type(error).__name__
        log.error("process that reads backends ended; restarting it", error=cause)
        for backend in backends:
            problems, unread = ("the process that reads backends ended",), backend.unread_metrics
            add_states((BackendState(backend.service, None, problems=problems, metrics_up=unread),))
        await asyncio.sleep(_RESTART_SECONDS)


async def _run_process(start: Start, add_states: AddStates) -> str:
    """Runs one process to its end. Returns why it ended."""
    own, other = socket.socketpair()
    with own, other:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", COMMAND, str(other.fileno()), VERSION),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[other.fileno()],
            start_new_session=True,  # the terminal's Ctrl-C reaches only the exporter
            # It imports the same modules as this process, whatever its working directory contains.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        other.close()
        try:
            reader, writer = await asyncio.open_connection(sock=own)
            with closing(writer):
                send(writer, start)
                while True:
                    async with asyncio.timeout(_SILENCE_SECONDS):
                        states = await receive(reader)
                    if states:
                        add_states(states)
        except (asyncio.IncompleteReadError, ConnectionError):
            return "it closed its connection"
        except TimeoutError:
            return f"it said nothing for {_SILENCE_SECONDS:g} s"
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def send(writer: asyncio.StreamWriter, message: object) -> None:
    """Write a message to the other process."""
    frame = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    writer.write(len(frame).to_bytes(_LENGTH, "big") + frame)


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next message of the other process."""
    length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    return pickle.loads(await reader.readexactly(length))  # noqa: S301  # nobody else has the socket
