"""Whatever goes wrong at a key: the call and the reason under which it is seen, and how soon it is over again."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from ops.kms_emulator.emulator import Emulator, run_emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState, Key
from services.exporter import app
from services.exporter.backends.settings import ProbeSettings
from services.exporter.config import ExporterSettings, Target
from services.exporter.model import Operation, ProbeResult
from services.exporter.results import Results
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.reason import Reason
from tests.exporter.running_exporter import FREE, scraped
from tests.faults import summary
from tests.reserved_port import reserve_port

INTERVAL = 2.0
TIMEOUT = 1.0
PROBE = ProbeSettings.model_validate({"interval": f"{INTERVAL}s", "timeout": f"{TIMEOUT}s"})
RING = "projects/demo/locations/global/keyRings/app/cryptoKeys"
Act = Callable[[Emulator], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    name: str
    operation: Operation
    reason: Reason
    breaks: Act
    heals: Act

    @property
    def key(self) -> str:
        return f"{RING}/{self.name.replace(' ', '-')}"


def fault(name: str, found_at: Operation, reason: Reason, **how: object) -> Row:
    """One of the emulator's faults, at one key."""
    ids: list[str] = []
    row: Row

    async def breaks(emulator: Emulator) -> None:
        ids.append(emulator.faults.add(EmulatorFault.model_validate({"key": row.key, **how})))

    async def heals(emulator: Emulator) -> None:
        emulator.faults.remove(ids.pop())

    row = Row(name, found_at, reason, breaks, heals)
    return row


def status(code: str, reason: Reason) -> Row:
    return fault(f"status {code}", Operation.ENCRYPT, reason, kind="status", status=code, operation="Encrypt")


def version(name: str, reason: Reason, breaks: Callable[[Key], Key], heals: Callable[[Key], Key]) -> Row:
    """Something happens to the key's only version, and is taken back."""
    row: Row

    async def broken(emulator: Emulator) -> None:
        await emulator.store.update_key(row.key, breaks)

    async def healed(emulator: Emulator) -> None:
        await emulator.store.update_key(row.key, heals)

    row = Row(name, Operation.ENCRYPT, reason, broken, healed)
    return row


def enabled(key: Key) -> Key:
    return key.with_state(1, EmulatedState.ENABLED)


ENCRYPT, DECRYPT = Operation.ENCRYPT, Operation.DECRYPT
ROWS = (
    fault("stalled encrypt", ENCRYPT, Reason.TIMEOUT, kind="stall", operation="Encrypt"),
    fault("stalled decrypt", DECRYPT, Reason.TIMEOUT, kind="stall", operation="Decrypt"),
    fault("slow encrypt", ENCRYPT, Reason.TIMEOUT, kind="latency", operation="Encrypt", seconds=2 * TIMEOUT),
    fault("denied encrypt", ENCRYPT, Reason.PERMISSION_DENIED, kind="denied", operation="Encrypt"),
    fault("denied decrypt", DECRYPT, Reason.PERMISSION_DENIED, kind="denied", operation="Decrypt"),
    fault("wrong checksum of encrypt", ENCRYPT, Reason.CRC_MISMATCH, kind="corrupt_crc", operation="Encrypt"),
    fault("wrong checksum of decrypt", DECRYPT, Reason.CRC_MISMATCH, kind="corrupt_crc", operation="Decrypt"),
    fault("wrong plaintext", DECRYPT, Reason.PLAINTEXT_MISMATCH, kind="wrong_plaintext"),
    status("UNAVAILABLE", Reason.UNAVAILABLE),
    status("INTERNAL", Reason.UNAVAILABLE),
    status("ABORTED", Reason.UNAVAILABLE),
    status("CANCELLED", Reason.UNAVAILABLE),
    status("DEADLINE_EXCEEDED", Reason.TIMEOUT),
    status("UNAUTHENTICATED", Reason.UNAUTHENTICATED),
    status("RESOURCE_EXHAUSTED", Reason.QUOTA_EXHAUSTED),
    status("NOT_FOUND", Reason.KEY_NOT_FOUND),
    status("INVALID_ARGUMENT", Reason.INVALID_REQUEST),
    version("disabled version", Reason.KEY_DISABLED, lambda key: key.with_state(1, EmulatedState.DISABLED), enabled),
    version(
        "version scheduled for destruction",
        Reason.KEY_DESTROYED,
        lambda key: key.with_destruction(1, time.time()),
        lambda key: enabled(key.with_restored_version(1)),
    ),
)


class Watched(Results):
    """A record that keeps the end of each round trip: how soon one was right again says nothing of a scrape."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, list[tuple[float, Reason | None]]] = {}
        """When each round trip ended, and why it failed."""

    def add_probe(self, result: ProbeResult) -> None:
        super().add_probe(result)
        failure = result.failed_call.failure if result.failed_call else None
        self.ends.setdefault(result.target, []).append((result.ended_at, failure.reason if failure else None))

    def first(self, name: str, since: float, reason: Reason | None) -> float | None:
        """Seconds after `since` until a round trip ended so."""
        return next((at - since for at, why in self.ends.get(name, ()) if at >= since and why is reason), None)

    def count(self, name: str, since: float, seconds: float, reason: Reason | None) -> int:
        """How many round trips ended so in that time."""
        return sum(since <= at < since + seconds and why is reason for at, why in self.ends[name])


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """That of the exporter that starts next."""
    watched = Watched()
    monkeypatch.setattr(app, "Results", lambda: watched)
    return watched


@pytest.fixture
async def kms() -> AsyncIterator[Emulator]:
    async with run_emulator(keys=[row.key for row in ROWS]) as running:
        yield running


@pytest.mark.played
async def test_each_fault_is_seen_under_its_reason_and_over_with_the_next_round_trips(
    kms: Emulator, record: Watched, request: pytest.FixtureRequest
) -> None:
    """All at once, each at a key of its own: so none of them spoils the others."""
    targets = tuple(
        Target(
            name=row.name,
            service="backend",
            kms=GcpKeySettings(key=row.key, endpoint=str(kms.address), insecure=True),
        )
        for row in ROWS
    )
    probe = PROBE.model_copy(update={"concurrency": len(ROWS)})
    async with scraped(ExporterSettings(listen=FREE, probe=probe, targets=targets)) as scrape:
        values: dict[str, float] = {}

        async def keep_reading() -> None:
            while True:
                values.update(await scrape.values())
                await asyncio.sleep(0.5)

        async def until(condition: Callable[[], bool]) -> None:
            begin = time.monotonic()
            while not condition():
                assert time.monotonic() - begin < 60, "the condition did not come true within a minute"
                await asyncio.sleep(0.05)

        async def ended(row: Row, since: float, reason: Reason | None) -> float:
            """Seconds after `since` until a round trip ended so, by the exporter's own clock."""
            await until(lambda: record.first(row.name, since, reason) is not None)
            return record.first(row.name, since, reason) or 0.0

        async def play(row: Row) -> None:
            success = f"kms_probe_success backend {row.name}"
            failures = f"kms_probe_failures_total {row.operation} {row.reason} backend {row.name}"
            await until(lambda: values.get(success) == 1)
            await row.breaks(kms)
            broken = time.time()
            metrics = await ended(row, broken, row.reason)
            await until(lambda: values[success] == 0 and values[failures] >= 1)
            others = {
                name
                for name, count in values.items()
                if name.startswith("kms_probe_failures_total ") and name.endswith(f" backend {row.name}") and count
            }
            # A busy machine may be late, too.
            assert {name for name in others if f" {Reason.TIMEOUT} " not in name} <= {failures}
            await row.heals(kms)
            mended = time.time()
            healed = await ended(row, mended, None)
            await until(lambda: values[success] == 1)
            cells = {"fault": row.name, "operation": row.operation.value, "reason": row.reason.value}
            cells |= {"seen after": f"{metrics:.2f} s", "right again after": f"{healed:.2f} s"}
            request.node.user_properties.append((summary.REASONS, cells))
            # By round trips, since a busy machine delays them: only one that was in progress may end as before.
            assert record.count(row.name, broken, metrics, None) <= 1, row.name
            assert row.reason is Reason.TIMEOUT or record.count(row.name, mended, healed, row.reason) <= 1, row.name

        reading = asyncio.create_task(keep_reading())
        try:
            async with asyncio.TaskGroup() as group:
                for row in ROWS:
                    group.create_task(play(row))
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def test_a_service_that_cannot_be_reached_is_unavailable_until_it_is_there(
    until: Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]], request: pytest.FixtureRequest
) -> None:
    key = f"{RING}/ledger"
    async with AsyncExitStack() as stack:
        address = stack.enter_context(reserve_port())
        settings = GcpKeySettings(key=key, endpoint=str(address), insecure=True)
        target = Target(name="ledger-kek", service="backend", kms=settings)
        scrape = await stack.enter_async_context(scraped(ExporterSettings(listen=FREE, probe=PROBE, targets=(target,))))

        async def unavailable() -> bool:
            failures = (await scrape.values()).get("kms_probe_failures_total encrypt unavailable backend ledger-kek", 0)
            return failures >= 2

        async def healthy() -> bool:
            return (await scrape.values())["kms_probe_success backend ledger-kek"] == 1

        await until(unavailable)
        await stack.enter_async_context(run_emulator(listen=address, keys=[key]))
        begin = time.monotonic()
        await until(healthy)
        cells = {"fault": "nobody listens", "operation": "encrypt", "reason": "unavailable"}
        cells |= {"seen after": "", "right again after": f"{time.monotonic() - begin:.2f} s"}
        request.node.user_properties.append((summary.REASONS, cells))
