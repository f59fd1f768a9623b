import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.exporter.backends.settings import Backend, ProbeSettings
from services.exporter.config import ExporterSettings
from shared.http.server import serve
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import EncryptResult
from tests.exporter.running_exporter import FREE, configured, scraped, target

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class Health:
    """A backend whose answers a test changes."""

    def __init__(self) -> None:
        self.document: object = {"crypto_mode": "kms", "crypto_ready": True}
        self.metrics = "crypto_decryption_errors_total 17\ncrypto_init_timestamp_seconds 1700000000\n"

    def app(self) -> Starlette:
        async def healthz(_request: Request) -> Response:
            return JSONResponse(self.document)

        async def metrics(_request: Request) -> Response:
            return PlainTextResponse(self.metrics)

        return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", metrics)])


async def test_a_scrape_does_not_wait_for_probes_that_hang(emulator: Emulator, until: Until) -> None:
    emulator.faults.add(EmulatorFault(kind="stall", count=16))
    targets = tuple(target(emulator, f"kek-{n}") for n in range(20))
    probe = ProbeSettings.model_validate({"interval": "60s", "timeout": "60s"})
    async with scraped(ExporterSettings(listen=FREE, probe=probe, targets=targets)) as scrape:

        async def all_hang() -> bool:
            return not emulator.faults.list_active()  # it has met its 16 calls, and holds them all

        await until(all_hang)
        begin = time.monotonic()
        values = await scrape.values()
        assert time.monotonic() - begin < 30  # the probes hang for 60 s
        assert values["kms_probes_total backend kek-0"] == 0
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 30


async def test_backends_are_read_while_every_probe_hangs(emulator: Emulator, until: Until) -> None:
    emulator.faults.add(EmulatorFault(kind="stall"))
    health = Health()
    async with serve(health.app(), FREE) as address:
        backend = Backend(service="backend", health_url=f"http://{address}/healthz")
        probe = ProbeSettings.model_validate({"interval": "30s", "timeout": "30s", "concurrency": 1})
        targets = (target(emulator, "a"), target(emulator, "b"))
        settings = ExporterSettings(listen=FREE, probe=probe, targets=targets, backends=(backend,))
        async with scraped(settings) as scrape:

            async def read() -> bool:
                return (await scrape.values()).get("crypto_backend_up backend") == 1

            await until(read)


async def test_a_backend_that_goes_leaves_nothing_stale_and_comes_back(until: Until) -> None:
    health = Health()
    async with serve(health.app(), FREE) as address:
        urls = {"health_url": f"http://{address}/healthz", "metrics_url": f"http://{address}/metrics"}
        async with scraped(configured(backends=(Backend(service="backend", **urls),))) as scrape:

            async def read_metrics() -> dict[str, float]:
                return {name: value for name, value in (await scrape.values()).items() if name.startswith("crypto_")}

            whole = {
                "crypto_backend_up backend": 1,
                "crypto_backend_metrics_up backend": 1,
                "crypto_mode backend": 1,
                "crypto_mode_unknown backend": 0,
                "crypto_ready backend": 1,
                "crypto_init_timestamp_seconds backend": 1_700_000_000,
                "crypto_decryption_errors_total backend": 17,
            }

            async def is_whole() -> bool:
                return await read_metrics() == whole

            async def only_down() -> bool:
                return await read_metrics() == {
                    "crypto_backend_up backend": 0,
                    "crypto_backend_metrics_up backend": 1,
                }

            await until(is_whole)
            health.document = ["junk"]
            await until(only_down)
            health.document = {"crypto_mode": "kms", "crypto_ready": True}
            await until(is_whole)


class Broken(GcpKmsKey):
    """A provider with a defect that no port foresees."""

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        raise ZeroDivisionError(f"{len(plaintext)} {len(aad)} {timeout}")


async def test_a_defect_in_a_probe_counts_as_internal_and_the_next_probe_comes(
    emulator: Emulator, until: Until
) -> None:
    async with scraped(configured(targets=(target(emulator),)), connect=lambda key: Broken(key.key)) as scrape:

        async def counted_twice() -> bool:
            return (await scrape.values())["kms_probe_failures_total encrypt internal backend ledger-kek"] >= 2

        await until(counted_twice)
