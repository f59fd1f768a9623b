"""A round trip, and a key inspection, that end before their time: nothing is left of them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.exporter.probes.key_inspection import KeyInspector
from services.exporter.probes.round_trip import Prober
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import KmsKey
from tests.connections import connections

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


def probe(key: KmsKey) -> Awaitable[object]:
    return Prober("backend", "ledger-kek", key, 30).probe()


def inspect(key: KmsKey) -> Awaitable[object]:
    return KeyInspector("backend", "ledger-kek", key, 30).inspect()


def tasks() -> set[str]:
    """All that run, but for gRPC's server, which always has one that waits for the next call."""
    return {task.get_name() for task in asyncio.all_tasks() if "AioServer._request_call" not in repr(task)}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  the server's side of a call and of a connection ends on its own
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("work", [probe, inspect])
@pytest.mark.parametrize(
    "fault",
    [
        EmulatorFault(kind="stall", count=1),
        EmulatorFault(kind="stall", operation="Decrypt", count=1),
        EmulatorFault(kind="latency", seconds=20, count=1),
    ],
)
async def test_cancelled_it_ends_as_cancelled_and_leaves_neither_task_nor_channel(
    emulator: Emulator, work: Callable[[KmsKey], Awaitable[object]], fault: EmulatorFault
) -> None:
    key = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True)
    before = tasks()
    emulator.faults.add(fault)
    running = asyncio.ensure_future(work(key))
    await until(lambda: not emulator.faults.list_active())  # in the middle of a call
    assert connections(emulator.address) > 0
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(15):
            await running
    await until(lambda: tasks() <= before)
    await key.close()
    await until(lambda: connections(emulator.address) == 0)
