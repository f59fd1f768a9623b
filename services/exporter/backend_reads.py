"""Reads every backend at its times: settings in, states out.

The exporter does it in a process of its own, see `backend_process`; tests do it in theirs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from random import Random
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from services.exporter.backends.documents import OWN_NAMES
from services.exporter.backends.reader import BackendCredentials, BackendReader, ReplicaReader, open_http_client
from services.exporter.backends.settings import Backend
from services.exporter.model import BackendState
from services.exporter.scheduler import NextRun, ScheduledJob, run_schedule
from shared.net.egress import DIRECT, Egress, EgressSettings
from shared.process.concurrency import is_task_cancelled

ReadBackend = Callable[[], Awaitable[Sequence[BackendState]]]
AddStates = Callable[[Sequence[BackendState]], object]
"""Takes the states of all replicas of one service."""


class BackendReads(NamedTuple):
    """What is read, and how often."""

    backends: tuple[Backend, ...]
    interval: float
    """Seconds between two reads of a backend."""
    timeout: float
    """Seconds for each document."""
    concurrency: int
    """Backends that are read at the same time."""


ReadBackends = Callable[[BackendReads, AddStates, Random], Coroutine[Any, Any, None]]
"""Reads until it is cancelled. Its arguments are those of `read_backends`."""


async def read_backends(reads: BackendReads, add_states: AddStates, random: Random) -> None:
    """Reads in this process until it is cancelled.

    Args:
        reads: which backends, and how often.
        add_states: takes what each read finds.
        random: for the schedule's jitter.
    """
    async with AsyncExitStack() as stack:
        jobs = [
            _build_job(
                backend.service,
                build_read(backend, await open_backend_reader(backend, reads.timeout, stack)),
                add_states,
            )
            for backend in reads.backends
        ]
        await run_schedule(jobs, interval=reads.interval, concurrency=reads.concurrency, random=random)


async def open_backend_reader(backend: Backend, timeout: float, stack: AsyncExitStack) -> BackendReader:
    """What reads a backend.

    Args:
        backend: its settings.
        timeout: seconds for each document.
        stack: ends what the reader needs.
    """
    # Replicas are reached by their addresses, which no proxy has to know.
    egress = EgressSettings(proxy=DIRECT) if backend.resolve == "all" else backend
    session = await stack.enter_async_context(open_http_client(Egress(egress)))
    parser = ThreadPoolExecutor(1, "metrics-parser")
    stack.callback(parser.shutdown, wait=False, cancel_futures=True)
    return BackendReader(
        backend.service,
        backend.health_url,
        backend.metrics_url,
        session,
        parser,
        timeout,
        backend.health,
        {backend.metrics.get(name, name): name for name in OWN_NAMES},
        BackendCredentials(backend),
    )


def build_read(backend: Backend, reader: BackendReader) -> ReadBackend:
    """What reads each replica of a backend once."""
    if backend.resolve == "all":
        host = urlsplit(backend.health_url).hostname or ""
        return ReplicaReader(backend.service, host, reader.read, reader.timeout).read

    async def read() -> tuple[BackendState, ...]:
        return (await reader.read(),)

    return read


def _build_job(service: str, read: ReadBackend, add_states: AddStates) -> ScheduledJob:
    async def run() -> NextRun:
        try:
            states = await read()
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, Exception) or not is_task_cancelled():  # a library may raise CancelledError, too
                # The metrics never show a state that is older than the last read.
                add_states((BackendState(service, None, problems=("a defect of the exporter; its log says which",)),))
            raise
        add_states(states)
        return NextRun.ON_GRID

    return ScheduledJob(f"read of {service}", run)
