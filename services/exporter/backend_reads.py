"""The process that reads the backends, each at its times; `backend_process` starts it."""

import asyncio
import gc
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from random import Random
from typing import Final
from urllib.parse import urlsplit

from services.exporter.backend_process import AddStates, Start, receive, send
from services.exporter.backends.reader import BackendReader, ReplicaReader, open_http_client
from services.exporter.backends.settings import Backend, ProbeSettings
from services.exporter.model import BackendState
from services.exporter.scheduler import NextRun, ScheduledJob, run_schedule
from shared import VERSION
from shared.net.egress import DIRECT, Egress, EgressSettings
from shared.process import logs
from shared.process.concurrency import is_task_cancelled

ReadBackend = Callable[[], Awaitable[Sequence[BackendState]]]
_HEARTBEAT_SECONDS: Final = 5.0


async def read_backends(
    backends: Sequence[Backend], probe: ProbeSettings, add_states: AddStates, random: Random
) -> None:
    """Reads in this process until it is cancelled."""
    async with AsyncExitStack() as stack:
        readers = [await open_backend_reader(backend, probe.timeout, stack) for backend in backends]
        jobs = [_build_job(reader.backend, build_read(reader), add_states) for reader in readers]
        await run_schedule(jobs, interval=probe.interval, concurrency=probe.concurrency, random=random)


async def open_backend_reader(backend: Backend, timeout: float, stack: AsyncExitStack) -> BackendReader:
    # Replicas are reached by their addresses, which no proxy has to know.
    egress = EgressSettings(proxy=DIRECT) if backend.resolve == "all" else backend
    session = await stack.enter_async_context(open_http_client(Egress(egress)))
    parser = ThreadPoolExecutor(1, "metrics-parser")
    stack.callback(parser.shutdown, wait=False, cancel_futures=True)
    return BackendReader(backend, session, parser, timeout)


def build_read(reader: BackendReader) -> ReadBackend:
    """What reads each replica of a backend once."""
    backend = reader.backend
    if backend.resolve == "all":
        host = urlsplit(backend.health_url).hostname or ""
        return ReplicaReader(backend.service, host, reader.read, reader.timeout, backend.unread_metrics).read

    async def read() -> tuple[BackendState, ...]:
        return (await reader.read(),)

    return read


def _build_job(backend: Backend, read: ReadBackend, add_states: AddStates) -> ScheduledJob:
    async def run() -> NextRun:
        try:
            states = await read()
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, Exception) or not is_task_cancelled():  # a library may raise CancelledError, too
                # The metrics never show a state that is older than the last read.
                problems = ("a defect of the exporter; its log says which",)
                unread = backend.unread_metrics
                add_states((BackendState(backend.service, None, problems=problems, metrics_up=unread),))
            raise
        add_states(states)
        return NextRun.ON_GRID

    return ScheduledJob(f"read of {backend.service}", run)


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
    start: Start = await receive(reader)
    if start.logging:
        logs.configure(*start.logging)
    tasks = [
        asyncio.create_task(receive(reader)),  # which ends with the exporter: nothing else comes
        asyncio.create_task(_send_heartbeats(writer)),
        asyncio.create_task(read_backends(start.backends, start.probe, partial(send, writer), start.random)),
    ]
    for task in (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]:
        task.result()


async def _send_heartbeats(writer: asyncio.StreamWriter) -> None:
    while True:
        send(writer, ())
        await asyncio.sleep(_HEARTBEAT_SECONDS)
