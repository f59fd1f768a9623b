"""What the composition root does about defects of our own."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from random import Random

import aiohttp
import pytest

from services.exporter import backend_reads
from services.exporter.app import run_exporter
from services.exporter.backends.reader import BackendReader, open_http_client
from services.exporter.backends.settings import Backend
from services.exporter.config import ExporterSettings
from services.exporter.model import BackendState, Health
from services.exporter.results import Results
from shared.backend_contract import CryptoMode
from shared.config.settings import Address
from shared.http.server import serve
from tests.exporter.collected_metrics import collect_families

FREE = Address("127.0.0.1", 0)
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class Defective(BackendReader):
    async def _read_health(self, _address: str | None) -> Health:
        raise ZeroDivisionError


class Cancelled(BackendReader):
    async def _read_health(self, _address: str | None) -> Health:
        raise asyncio.CancelledError  # as a library may, although nobody cancelled it


@pytest.mark.parametrize(
    ("kind", "raised"),
    [(Defective, ExceptionGroup), (Cancelled, asyncio.CancelledError)],
    ids=lambda kind: kind.__name__,
)
async def test_a_read_that_fails_unexpectedly_leaves_nothing_stale(
    kind: type[BackendReader], raised: type[BaseException], parser: Executor
) -> None:
    record = Results()
    record.configure(ExporterSettings(backends=(Backend(service="backend", health_url="http://127.0.0.1:1/"),)))
    record.add_backend_states([BackendState("backend", Health(CryptoMode.KMS, ready=True), 1.0, 2.0)])
    async with open_http_client() as session:
        backend = Backend(service="backend", health_url="http://127.0.0.1:1/")
        reader = kind(backend, session, parser, 1)

        async def read() -> list[BackendState]:
            return [await reader.read()]

        with pytest.raises(raised):
            await backend_reads._build_job(backend, read, record.add_backend_states).run()
    exposed = [s for family in collect_families(record.metrics) for s in family.samples if s.name.startswith("crypto_")]
    assert [(sample.name, sample.value) for sample in exposed] == [("crypto_backend_up", 0)]


async def test_a_schedule_that_ends_makes_the_server_unready_and_ends_the_stop_with_its_error(until: Until) -> None:
    class NoJitter(Random):
        def uniform(self, a: float, b: float) -> float:
            raise ZeroDivisionError(a, b)

    settings = ExporterSettings(listen=FREE, backends=(Backend(service="backend", health_url="http://127.0.0.1:1/"),))

    async def run_until_unready() -> None:
        async with (
            run_exporter(settings, random=NoJitter(), read_backends=backend_reads.read_backends) as application,
            serve(application, FREE) as address,
            aiohttp.ClientSession() as session,
        ):

            async def unready() -> bool:
                async with session.get(f"http://{address}/-/ready") as response:
                    return (response.status, await response.text()) == (503, "a schedule has ended; restart\n")

            await until(unready)

    with pytest.raises(ExceptionGroup) as raised:
        await run_until_unready()
    assert raised.group_contains(ZeroDivisionError)
