"""A running exporter, and its `/metrics` as Prometheus reads it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from ops.kms_emulator.emulator import Emulator
from services.exporter.app import run_exporter
from services.exporter.backend_reads import read_backends
from services.exporter.backends.settings import Backend, ProbeSettings
from services.exporter.config import ExporterSettings, Target
from shared.config.settings import Address
from shared.http.server import serve
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsKey
from shared.kms.registry import connect_key
from shared.kms.settings import ProviderSettings

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
INTERVAL = 1.0
FREE = Address("127.0.0.1", 0)


class Scrape:
    """Reads `/metrics` as Prometheus does."""

    def __init__(self, address: Address, session: aiohttp.ClientSession) -> None:
        self.address = address
        self._url = f"http://{address}/metrics"
        self._session = session

    async def text(self) -> str:
        async with self._session.get(self._url) as response:
            assert response.status == 200
            return await response.text()

    async def page(self, path: str = "/") -> str:
        """A page for people; without a path, the board."""
        async with self._session.get(self._url.removesuffix("/metrics") + path) as response:
            assert response.status == 200
            return await response.text()

    async def wait_for(self, sample: str, value: float) -> dict[str, float]:
        """All values, once the sample has this one."""
        async with asyncio.timeout(60):
            while (values := await self.values()).get(sample) != value:  # noqa: ASYNC110  over HTTP
                await asyncio.sleep(0.05)
        return values

    async def values(self) -> dict[str, float]:
        """Each sample's value by its name and the values of its labels, such as `kms_probe_success backend ledger`."""
        return {
            " ".join([sample.name, *(sample.labels[label] for label in sorted(sample.labels))]): sample.value
            for family in text_string_to_metric_families(await self.text())
            for sample in family.samples
        }


def target(emulator: Emulator, name: str = "ledger-kek", key: str = KEY) -> Target:
    kms = GcpKeySettings(key=key, endpoint=str(emulator.address), insecure=True)
    return Target(name=name, service="backend", kms=kms)


def configured(
    *, targets: tuple[Target, ...] = (), backends: tuple[Backend, ...] = (), interval: float = INTERVAL
) -> ExporterSettings:
    probe = ProbeSettings.model_validate({"interval": f"{interval}s", "timeout": f"{interval}s"})
    return ExporterSettings(listen=FREE, probe=probe, targets=targets, backends=backends)


@asynccontextmanager
async def scraped(
    settings: ExporterSettings,
    connect: Callable[[ProviderSettings], KmsKey] = connect_key,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Scrape]:
    async with (
        run_exporter(settings, connect=connect, read_backends=read_backends, clock=clock) as application,
        serve(application, FREE) as address,
        aiohttp.ClientSession() as session,
    ):
        yield Scrape(address, session)
