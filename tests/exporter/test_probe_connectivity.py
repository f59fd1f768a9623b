"""Network or KMS? The connectivity is measured after a round trip that may have failed on the network."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
import structlog
from starlette.applications import Starlette

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.exporter.model import ProbeResult
from services.exporter.probes.round_trip import CONNECTIVITY_MAX_AGE, CoalescedProbe, Prober
from services.exporter.web.probe_endpoint import build_route
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import ConnectivityPhase, DecryptResult, EncryptResult, KmsError
from shared.kms.reason import Cause, Reason
from tests.exporter.explained_probe import coalesced, probe_and_ask

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
TIMEOUT = 5.0
REFUSED = (ConnectivityPhase("dns", 0.1), ConnectivityPhase("tcp", 0.1, "no connection: refused", Cause.CONNECT))


@pytest.fixture
async def key(emulator: Emulator) -> AsyncIterator[GcpKmsKey]:
    provider = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True)
    yield provider
    await provider.close()


def prober(key: GcpKmsKey, timeout: float = 1.0) -> Prober:
    return Prober("backend", "ledger-kek", key, timeout, clock=asyncio.get_running_loop().time)


async def show_phases(key: GcpKmsKey) -> list[tuple[str, str | None]]:
    async with coalesced(prober(key)) as probe:
        return [(phase.name, phase.error) for phase in (await probe_and_ask(probe)).connectivity]


async def test_where_nothing_listens_the_connectivity_shows_that_it_is_the_network() -> None:
    key = GcpKmsKey(KEY, endpoint="127.0.0.1:1", insecure=True)
    assert await show_phases(key) == [("dns", None), ("tcp", "no connection: Connection refused (127.0.0.1:1)")]
    await key.close()


@pytest.mark.parametrize("operation", ["Encrypt", "Decrypt"])
async def test_where_kms_stalls_the_connectivity_shows_that_the_network_is_healthy(
    emulator: Emulator, key: GcpKmsKey, operation: str
) -> None:
    emulator.faults.add(EmulatorFault(kind="stall", operation=operation))
    assert await show_phases(key) == [("dns", None), ("tcp", None)]


class Cut(GcpKmsKey):
    """A key whose round trips fail for `reason`."""

    def __init__(self) -> None:
        super().__init__(KEY, endpoint="127.0.0.1:1", insecure=True)
        self.reason: Reason | None = None
        self.phases: tuple[ConnectivityPhase, ...] = REFUSED
        self.measuring_seconds = 4.0
        self.measured: list[float] = []
        """When each measurement began."""
        self.defect: Exception | None = None
        """Raised instead of a measurement."""

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:  # noqa: ARG002  the port's
        await asyncio.sleep(timeout if self.reason is Reason.TIMEOUT else 0.05)
        if self.reason:
            raise KmsError(self.reason, "as told")
        return EncryptResult(plaintext, "1", "SOFTWARE")

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:  # noqa: ARG002  the port's
        return DecryptResult(ciphertext, is_primary=True)

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:  # noqa: ARG002  the port's
        self.measured.append(asyncio.get_running_loop().time())
        if self.defect:
            raise self.defect
        await asyncio.sleep(self.measuring_seconds)
        return self.phases


def get_found(result: ProbeResult) -> tuple[Cause, int]:
    """The cause of the failure, and the number of phases."""
    failure = result.calls[-1].failure
    return failure.cause if failure else Cause.NONE, len(result.connectivity)


async def probe_after(seconds: float, probe: CoalescedProbe) -> tuple[Cause, int]:
    await asyncio.sleep(seconds)
    return get_found(await probe.run())


UNKNOWN, KNOWN = (Cause.NONE, 0), (Cause.CONNECT, 2)


@pytest.mark.looptime
async def test_a_failure_is_known_before_the_connectivity_is_measured_which_the_next_ones_show() -> None:
    key, loop, results = Cut(), asyncio.get_running_loop(), list[ProbeResult]()
    async with coalesced(prober(key, TIMEOUT), results.append) as probe:
        key.reason = Reason.TIMEOUT
        assert get_found(await probe.run()) == UNKNOWN
        assert loop.time() == TIMEOUT
        assert [get_found(result) for result in results] == [UNKNOWN]
        assert await probe_after(0, probe) == KNOWN
        assert loop.time() == 2 * TIMEOUT
    assert key.measured == [TIMEOUT]


@pytest.mark.looptime
async def test_the_connectivity_is_measured_once_a_minute_for_each_reason_and_anew_after_a_success() -> None:
    key = Cut()
    async with coalesced(prober(key, TIMEOUT)) as probe:
        for reason in (Reason.PERMISSION_DENIED, None):
            key.reason = reason
            assert await probe_after(5, probe) == UNKNOWN
        assert key.measured == []
        found = []
        for reason in (Reason.UNAVAILABLE, Reason.UNAVAILABLE, Reason.TIMEOUT, Reason.UNAVAILABLE, Reason.TIMEOUT):
            key.reason = reason
            found.append(await probe_after(5, probe))
        assert found == [UNKNOWN, KNOWN, UNKNOWN, KNOWN, KNOWN]
        assert len(key.measured) == 2
        key.reason = None
        assert await probe_after(0, probe) == UNKNOWN
        key.reason = Reason.UNAVAILABLE
        found = [await probe_after(5, probe) for _ in range(14)]
        assert found == [UNKNOWN, *[KNOWN] * 13]
        assert len(key.measured) == 4
        assert key.measured[3] - key.measured[2] >= CONNECTIVITY_MAX_AGE


@pytest.mark.looptime
async def test_the_cause_of_a_failure_is_that_of_its_own_measurement_not_of_the_one_before() -> None:
    key, updated = Cut(), list[ProbeResult]()
    key.reason = Reason.UNAVAILABLE
    async with coalesced(prober(key, TIMEOUT), update_result=updated.append) as probe:
        for phases in (REFUSED, (ConnectivityPhase("tls", 0.1, "no trust", Cause.TLS),), ()):
            key.phases = phases
            await probe_after(CONNECTIVITY_MAX_AGE, probe)
            await asyncio.sleep(5)
        assert [get_found(result) for result in updated] == [KNOWN, (Cause.TLS, 1), UNKNOWN]
        assert get_found(await probe.run()) == UNKNOWN


@pytest.mark.looptime
async def test_the_steps_of_a_probe_do_not_wait_until_all_other_keys_are_measured() -> None:
    key, loop = Cut(), asyncio.get_running_loop()
    key.reason = Reason.UNAVAILABLE
    async with coalesced(prober(key, TIMEOUT)) as probe:
        assert get_found(await probe_and_ask(probe)) == KNOWN
        key.measuring_seconds = 300.0
        app, begun = Starlette(routes=[build_route(lambda: {"ledger-kek": probe})]), loop.time()
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://exporter") as browser:
            steps = (await browser.get("/probe?target=ledger-kek&debug=true")).text
        assert loop.time() - begun < 30
        assert "connect (unavailable): as told" in steps
        assert "no connection: refused" in steps


@pytest.mark.looptime
async def test_a_measurement_ends_with_its_target() -> None:
    before, key = asyncio.all_tasks(), Cut()
    key.reason = Reason.UNAVAILABLE
    async with coalesced(prober(key, TIMEOUT)) as probe:
        await probe.run()
        await asyncio.sleep(1)
        assert len(asyncio.all_tasks() - before) == 1
    assert asyncio.all_tasks() == before


@pytest.mark.looptime
async def test_what_was_measured_before_a_success_is_not_told_of_the_failure_after_it() -> None:
    key = Cut()
    async with coalesced(prober(key, TIMEOUT)) as probe:
        found = []
        for reason in (Reason.UNAVAILABLE, None, Reason.UNAVAILABLE):
            key.reason = reason
            found.append(await probe_after(1, probe))
        assert [*found, await probe_after(5, probe)] == [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]
        assert await probe_after(5, probe) == KNOWN


@pytest.mark.looptime
async def test_a_measurement_that_fails_is_logged_and_leaves_the_failure_as_it_was() -> None:
    key = Cut()
    key.reason, key.defect = Reason.UNAVAILABLE, ZeroDivisionError("defect")
    async with coalesced(prober(key, TIMEOUT)) as probe:
        with structlog.testing.capture_logs() as logs:
            assert [await probe_after(5, probe) for _ in range(3)] == [UNKNOWN] * 3
    assert [(line["event"], line["exc_info"]) for line in logs] == [("connectivity measurement failed", key.defect)]
