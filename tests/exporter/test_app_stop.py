"""What is left of the exporter when it stops: nothing."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import Fault
from services.exporter.app import running
from services.exporter.config import Backend, ProbeSettings, Settings, Target
from shared.settings import Address

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
FREE = Address("127.0.0.1", 0)
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


async def test_when_it_stops_no_task_is_left(emulator: Emulator) -> None:
    emulator.faults.add(Fault(kind="stall"))
    settings = Settings(
        listen=FREE,
        probe=ProbeSettings(interval=1, timeout=1),
        targets=(Target(name="ledger-kek", service="backend", key=KEY, endpoint=str(emulator.address), insecure=True),),
        backends=(Backend(service="backend", health_url="http://127.0.0.1:1/"),),
    )
    before = asyncio.all_tasks()
    async with running(settings):
        await asyncio.sleep(0.2)
        assert len(asyncio.all_tasks() - before) >= 4
    left = {task for task in asyncio.all_tasks() - before if "services.exporter" in str(task.get_coro())}
    assert left == set()


async def test_when_it_stops_no_thread_of_a_parser_is_left(until: Until, backend: Callable[..., Any]) -> None:
    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response(text="crypto_decryption_errors_total 17\n")

    def parsers() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("metrics-parser")}

    async def one_has_begun() -> bool:
        return len(parsers()) == 1

    async def all_have_ended() -> bool:
        return not parsers()

    async with backend(answer) as url:
        entry = Backend(service="backend", health_url=url, metrics_url=url)
        async with running(Settings(listen=FREE, backends=(entry,))):
            await until(one_has_begun)
    await until(all_have_ended)
