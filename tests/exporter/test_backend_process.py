"""What a backend answers is read in another process than the one that probes, which ends with the exporter."""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Self

import pytest

from services.exporter.backend_process import read_backends_in_process
from services.exporter.backend_reads import read_backends
from services.exporter.backends.settings import Backend, ProbeSettings
from services.exporter.jobs import ReadBackends
from services.exporter.model import BackendState
from tests.conftest import Until
from tests.exporter.test_main import started

CHUNK = b"8\r\n%s\r\n"
CHUNKS = 100_000


@pytest.fixture
def slow_to_read() -> Iterator[str]:
    """The URL of a health document of 800 kB in chunks of eight bytes, served by a thread of its own."""
    start, end = b'{"crypto_mode": "kms",  ', b' "crypto_ready": true } '
    chunks = [*(start[n : n + 8] for n in (0, 8, 16)), *[b"        "] * CHUNKS, *(end[n : n + 8] for n in (0, 8, 16))]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = head + b"".join(CHUNK % chunk for chunk in chunks) + b"0\r\n\r\n"

    def serve() -> None:
        with suppress(OSError):  # closed at the end of the test
            while True:
                connection, _ = server.accept()
                with closing(connection), suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(answer)

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/healthz"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


PROBE = ProbeSettings.model_construct(interval=0.05, timeout=30.0, concurrency=4)


class Reading:
    """Reads until it is left, and keeps what comes."""

    def __init__(self, read: ReadBackends, url: str) -> None:
        self.states: list[BackendState] = []
        backend, jitter = Backend(service="backend", health_url=url), Random(1)  # noqa: S311
        self._task = asyncio.create_task(read([backend], PROBE, self._add, jitter))

    def _add(self, states: Sequence[BackendState]) -> None:
        self.states += states

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def has_read(self) -> bool:
        return any(state.health is not None for state in self.states)


def list_children(pid: int) -> list[int]:
    """The processes that it has started."""
    found = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if b"backend_reads" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


async def test_what_an_answer_costs_is_no_work_of_the_loop_that_probes(slow_to_read: str, until: Until) -> None:
    async def measure(read: ReadBackends) -> float:
        before = time.thread_time()
        async with Reading(read, slow_to_read) as reading:
            await until(reading.has_read)
        return time.thread_time() - before

    assert await measure(read_backends_in_process) < await measure(read_backends) / 3


async def test_a_process_that_ends_is_replaced_and_until_then_nothing_stale_is_shown(
    slow_to_read: str, until: Until
) -> None:
    async with Reading(read_backends_in_process, slow_to_read) as reading:
        await until(reading.has_read)
        (process,) = list_children(os.getpid())
        os.kill(process, signal.SIGKILL)

        async def is_not_read() -> bool:
            return reading.states[-1].problems == ("the process that reads backends ended",)

        await until(is_not_read)
        assert reading.states[-1].health is None
        reading.states.clear()
        await until(reading.has_read)
        assert list_children(os.getpid()) != [process]
    assert list_children(os.getpid()) == []


async def test_a_process_that_says_nothing_any_more_is_replaced(
    slow_to_read: str, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Reading(read_backends_in_process, slow_to_read) as reading:
        await until(reading.has_read)
        monkeypatch.setattr("services.exporter.backend_process._SILENCE_SECONDS", 5.0)
        reading.states.clear()
        await until(reading.has_read)
        (process,) = list_children(os.getpid())
        os.kill(process, signal.SIGSTOP)

        async def is_replaced() -> bool:
            return list_children(os.getpid()) not in ([process], [])

        await until(is_replaced)
        reading.states.clear()
        await until(reading.has_read)


async def test_the_command_reads_in_another_process_which_ends_when_it_is_killed(
    slow_to_read: str, until: Until, tmp_path: Path
) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text(f"listen: 127.0.0.1:0\nbackends: [{{service: backend, health_url: '{slow_to_read}'}}]\n")
    with started(file, [sys.executable, "-m", "services.exporter"]) as (exporter, _):

        async def has_child() -> bool:
            return bool(list_children(exporter.pid))

        await until(has_child)
        (process,) = list_children(exporter.pid)
        exporter.kill()

        async def has_ended() -> bool:
            return not os.path.exists(f"/proc/{process}")  # noqa: ASYNC240, PTH110  a file of the kernel's

        await until(has_ended)
