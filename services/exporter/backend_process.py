"""Reads the backends in a process of its own: what they answer, and how, must not delay the probes.

A backend decides how much work its answer makes, such as a megabyte in pieces of eight bytes. On the event loop that
probes, or in a thread beside it, that work would count as time of KMS.

Settings go in, states come out, over a socket that only the two have: the length of each pickle in eight bytes, then
the pickle. The process ends with the exporter. One that ends by itself, or says nothing for half a minute, is replaced,
and its backends count as not read.
"""

import asyncio
import gc
import os
import pickle
import socket
import sys
from contextlib import closing, suppress
from functools import partial
from random import Random
from typing import Any, Final, NamedTuple

import structlog

from services.exporter.backend_reads import AddStates, BackendReads, read_backends
from services.exporter.model import BackendState
from shared import VERSION
from shared.process import logs

# Not `-m`: pickle finds the classes in this module, not in one called `__main__`.
COMMAND: Final = (
    "import gc; gc.disable()\n"  # to look for garbage among what is imported is a third of the start
    "from services.exporter.backend_process import main; main()"
)
_LENGTH: Final = 8
_HEARTBEAT_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 30.0
_RESTART_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


class _Start(NamedTuple):
    """To the process."""

    reads: BackendReads
    random: Random
    logging: tuple[Any, ...] | None
    """What `logs.configure` was called with."""


async def read_backends_in_process(reads: BackendReads, add_states: AddStates, random: Random) -> None:
    """See `read_backends`."""
    while True:
        try:
            cause = await _run_process(_Start(reads, random, logs.get_configuration()), add_states)
        except OSError as error:
            cause = error.strerror or type(error).__name__
        log.error("process that reads backends ended; restarting it", error=cause)
        for backend in reads.backends:
            add_states((BackendState(backend.service, None, problems=("the process that reads backends ended",)),))
        await asyncio.sleep(_RESTART_SECONDS)


async def _run_process(start: _Start, add_states: AddStates) -> str:
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
                _send(writer, start)
                while True:
                    async with asyncio.timeout(_SILENCE_SECONDS):
                        states = await _receive(reader)
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


def _send(writer: asyncio.StreamWriter, message: object) -> None:
    frame = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    writer.write(len(frame).to_bytes(_LENGTH, "big") + frame)


async def _receive(reader: asyncio.StreamReader) -> Any:
    length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    return pickle.loads(await reader.readexactly(length))  # noqa: S301  # nobody else has the socket


def main() -> None:
    """Runs the process, with the number of its socket and the exporter's version as arguments."""
    gc.freeze()
    gc.enable()
    if sys.argv[2] != VERSION:
        sys.exit(f"version {VERSION} is installed, and the exporter runs as {sys.argv[2]}: restart it")
    with suppress(asyncio.IncompleteReadError, ConnectionError):  # the exporter is gone
        asyncio.run(_read_until_closed(socket.socket(fileno=int(sys.argv[1]))))


async def _read_until_closed(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=connection)
    start: _Start = await _receive(reader)
    if start.logging:
        logs.configure(*start.logging)
    tasks = [
        asyncio.create_task(_receive(reader)),  # which ends with the exporter: nothing else comes
        asyncio.create_task(_send_heartbeats(writer)),
        asyncio.create_task(read_backends(start.reads, partial(_send, writer), start.random)),
    ]
    for task in (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]:
        task.result()


async def _send_heartbeats(writer: asyncio.StreamWriter) -> None:
    while True:
        _send(writer, ())
        await asyncio.sleep(_HEARTBEAT_SECONDS)
