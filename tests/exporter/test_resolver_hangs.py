"""A name server that does not answer harms what needs it, and nothing else."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from services.exporter.backends.reader import ReplicaReader
from tests import processes
from tests.fork_server import forked
from tests.hanging_name_server import hanging_for

HANGS = "backend.hangs"


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever asks for HANGS waits."""
    with hanging_for(HANGS, monkeypatch):
        yield


@pytest.mark.usefixtures("hanging")
async def test_backends_whose_names_hang_are_down_and_one_beside_them_is_healthy(
    backend: Callable[..., Any], reader: Callable[..., Any]
) -> None:
    async def healthy(_request: web.BaseRequest) -> web.Response:
        return web.json_response({"crypto_mode": "kms", "crypto_ready": True})

    async with backend(healthy) as url, asyncio.timeout(30):
        port = urlsplit(url).port
        hang = [reader(f"http://{n}.{HANGS}:{port}/healthz", timeout=0.2).read() for n in range(64)]
        replicas = [
            ReplicaReader("backend", f"all-{n}.{HANGS}", reader(url).read, timeout=0.2).read() for n in range(64)
        ]
        down, unknown = await asyncio.gather(*hang), await asyncio.gather(*replicas)
        assert {state.problems for state in down} == {("health check: no complete answer within 0.2 s",)}
        assert all(states[0].health is None for states in unknown)
        result = await reader(f"http://localhost:{port}/healthz", timeout=10).read()
        assert await asyncio.to_thread(lambda: "done") == "done"
    assert result.health is not None


LOOK_UP = f"""
import socket, time
real = socket.getaddrinfo
def look_up(host, *arguments, **named):
    if host == {HANGS!r}:
        print("asked", file=__import__("sys").stderr, flush=True)
        time.sleep(60)
    return real(host, *arguments, **named)
socket.getaddrinfo = look_up
"""
SERVER = """
import pathlib, sys
sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for the process that reads the backends
from services.exporter.__main__ import main
main()
"""


@pytest.mark.parametrize("resolve", ["null", "all"])
def test_a_sigterm_while_a_name_hangs_ends_the_exporter_with_0(tmp_path: Path, resolve: str) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text(
        "listen: 127.0.0.1:0\nprobe: {interval: 60s, timeout: 60s}\n"
        f"backends: [{{service: backend, health_url: 'http://{HANGS}/healthz', resolve: {resolve}}}]\n"
    )
    (tmp_path / "sitecustomize.py").write_text(LOOK_UP)
    (tmp_path / "server.py").write_text(SERVER)
    command = [*forked(str(tmp_path / "server.py")), "--config", str(file)]
    with processes.running(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if "asked" in line:  # another thread may write into the same line
                break
        begin = time.monotonic()
        log = processes.end_and_read(process)
        duration = time.monotonic() - begin
    assert (process.returncode, "Thread" in log) == (0, False), log
    assert duration < 13  # by then the process would have been ended by force
