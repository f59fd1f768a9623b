"""A rotation on the demo's backend while it is read from and written to: nobody is refused, and nothing changes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import pytest
from google.cloud.kms_v1 import CryptoKeyVersion, KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport

from ops.demo import stack
from ops.demo.configuration import KEY
from ops.demo.processes import Ports
from tests import processes
from tests.faults import summary
from tests.fork_server import forked

CLIENTS = 4
SECONDS = 1.0
"""Of load before the rotation and after it."""


class Load:
    """Clients that write a record, read it back and compare, again and again."""

    def __init__(self, backend: str) -> None:
        self.requests = 0
        self.failures: list[str] = []
        self.slowest = 0.0
        self._url = f"{backend}/v1/records"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
            tasks = [asyncio.create_task(self._client(http, n)) for n in range(CLIENTS)]
            try:
                await asyncio.sleep(SECONDS)
                yield
                await asyncio.sleep(SECONDS)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _client(self, http: aiohttp.ClientSession, number: int) -> None:
        count = 0
        while True:
            count += 1
            url, body = f"{self._url}/{number}-{count % 50}", b"record %d of client %d" % (count, number)
            await self._ask(http, "PUT", url, body)
            await self._ask(http, "GET", url, body)

    async def _ask(self, http: aiohttp.ClientSession, method: str, url: str, body: bytes) -> None:
        begin = time.monotonic()
        try:
            async with http.request(method, url, data=body if method == "PUT" else None) as response:
                found = await response.read()
                wrong = response.status != 204 if method == "PUT" else found != body
                if wrong:
                    self.failures.append(f"{method}: HTTP {response.status} {found[:200]!r}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failures.append(f"{method}: {error!r}")
        self.requests += 1
        self.slowest = max(self.slowest, time.monotonic() - begin)


async def rotate(folder: Path, *arguments: str) -> str:
    """What `keypulse-rotator` says; it has to end with 0."""
    command = [*forked("services.rotator"), *arguments, "--config", str(folder / "rotator.yml")]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await processes.finish(process))[0].decode()
    assert process.returncode == 0, output
    return output


async def new_version(address: str) -> int:
    """A new primary version of the KMS key; gives its number."""
    async with grpc.aio.insecure_channel(address) as channel:
        kms = KeyManagementServiceAsyncClient(transport=KeyManagementServiceGrpcAsyncIOTransport(channel=channel))
        version = await kms.create_crypto_key_version(
            parent=KEY, crypto_key_version=CryptoKeyVersion(), retry=None, timeout=5
        )
        number = version.name.rpartition("/")[2]
        await kms.update_crypto_key_primary_version(name=KEY, crypto_key_version_id=number, retry=None, timeout=5)
    return int(number)


@pytest.mark.played
async def test_both_rotations_under_load_fail_no_request(request: pytest.FixtureRequest) -> None:
    ports = Ports.pick_free()
    async with stack.run_stack(ports) as running:
        for what in ("new-dek", "rewrap-kek"):
            version = await new_version(f"127.0.0.1:{ports.emulator}") if what == "rewrap-kek" else 1
            load = Load(ports.build_url("backend"))
            async with load.running():
                begin = time.monotonic()
                output = await rotate(running.folder, "run", "--type", what)
                seconds = time.monotonic() - begin
            cells = {"rotation": what, "requests": str(load.requests), "failed": str(len(load.failures))}
            cells |= {"slowest": f"{load.slowest * 1000:.0f} ms", "rotation took": f"{seconds:.1f} s"}
            request.node.user_properties.append((summary.ROTATIONS, cells))
            assert load.failures == []
            assert load.requests > 100
            census = await rotate(running.folder, "census")
            assert f"| {KEY} | {version} | 2 | 200 |" in census, census
            assert "nothing to do" in (await rotate(running.folder, "run", "--type", what)).lower(), output
