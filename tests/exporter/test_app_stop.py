"""What is left of the exporter when it stops: nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.exporter.app import run_exporter
from services.exporter.backends.settings import Backend, ProbeSettings
from services.exporter.config import ExporterSettings, Target
from shared.config.settings import Address
from shared.http.server import serve
from shared.kms.gcp.settings import GcpKeySettings
from tests.connections import connections
from tests.stopwatch import Stopwatch

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
FREE = Address("127.0.0.1", 0)
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


async def test_when_it_stops_no_task_and_no_connection_is_left(
    emulator: Emulator, until: Until, tmp_path: Path
) -> None:
    """A probe and a key inspection hang, and somebody waits at `/probe`."""
    emulator.faults.add(EmulatorFault(kind="stall"))
    target = Target(
        name="ledger-kek",
        service="backend",
        kms=GcpKeySettings(key=KEY, endpoint=str(emulator.address), insecure=True),
        canary_dir=tmp_path,
    )
    settings = ExporterSettings(
        listen=FREE,
        probe=ProbeSettings.model_validate({"interval": "30s", "timeout": "30s"}),
        targets=(target,),
        backends=(Backend(service="backend", health_url="http://127.0.0.1:1/"),),
    )
    before = asyncio.all_tasks()

    async def is_disconnected() -> bool:
        return connections(emulator.address) == 0

    async with httpx2.AsyncClient(timeout=30) as client, asyncio.TaskGroup() as group:
        async with run_exporter(settings) as app, serve(app, FREE) as address:

            async def connected(address: Address = address) -> bool:
                return connections(emulator.address) == 2 and connections(address) == 1

            request = group.create_task(client.get(f"http://{address}/probe", params={"target": "ledger-kek"}))
            await until(connected)
            await client.get(f"http://{address}/-/healthy")  # came in after the other
            assert len(asyncio.all_tasks() - before) >= 6
            stopwatch = Stopwatch()
            app.state.stop()
        assert stopwatch.seconds < 4  # uvicorn would wait 5 s for the answer
        assert (await request).status_code == 503
    left = {task for task in asyncio.all_tasks() - before if "services.exporter" in str(task.get_coro())}
    assert left == set()
    await until(is_disconnected)
