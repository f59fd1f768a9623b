"""Network or KMS? The connectivity is measured when a round trip failed on the network."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.exporter.probes.round_trip import CONNECTIVITY_MAX_AGE, Prober
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import ConnectivityPhase, DecryptResult, EncryptResult, KmsError
from shared.kms.reason import Reason

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
TIMEOUT = 2.0
PHASES = (ConnectivityPhase("dns", 0.1), ConnectivityPhase("tcp", 0.1))


class Measured(GcpKmsKey):
    """A key that counts how often its way is measured."""

    measured = 0

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:
        self.measured += 1
        return await super().measure_connectivity(timeout=timeout)


@pytest.fixture
async def key(emulator: Emulator) -> AsyncIterator[Measured]:
    provider = Measured(KEY, endpoint=str(emulator.address), insecure=True)
    yield provider
    await provider.close()


class Slow(GcpKmsKey):
    """A key whose calls take as long as they are told, and whose way may never end."""

    def __init__(self, *, encrypt: float, decrypt: float = 0.0, connectivity: float = 0.1) -> None:
        super().__init__(KEY, endpoint="127.0.0.1:1", insecure=True)
        self._encrypt, self._decrypt, self._connectivity_seconds = encrypt, decrypt, connectivity
        self.given: list[float] = []

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:  # noqa: ARG002  the port's
        await _bounded(self._encrypt, timeout)
        return EncryptResult(plaintext, "1", "SOFTWARE")

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:  # noqa: ARG002  the port's
        await _bounded(self._decrypt, timeout)
        return DecryptResult(ciphertext, is_primary=True)

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:
        self.given.append(timeout)
        await asyncio.sleep(self._connectivity_seconds)
        return PHASES


async def _bounded(seconds: float, timeout: float) -> None:
    await asyncio.sleep(min(seconds, timeout))
    if seconds > timeout:
        raise KmsError(Reason.TIMEOUT, "late")


def prober(key: GcpKmsKey, timeout: float = TIMEOUT) -> Prober:
    return Prober("backend", "ledger-kek", key, timeout, clock=asyncio.get_running_loop().time)


async def test_where_nothing_listens_the_connectivity_shows_that_it_is_the_network() -> None:
    key = GcpKmsKey(KEY, endpoint="127.0.0.1:1", insecure=True)
    connectivity = (await prober(key).probe()).connectivity
    await key.close()
    assert [phase.name for phase in connectivity] == ["dns", "tcp"]
    assert connectivity[0].error is None
    assert connectivity[1].error == "no connection: Connection refused (127.0.0.1:1)"


@pytest.mark.parametrize("operation", ["Encrypt", "Decrypt"])
async def test_where_kms_stalls_the_connectivity_shows_that_the_network_is_healthy(
    emulator: Emulator, key: Measured, operation: str
) -> None:
    emulator.faults.add(EmulatorFault(kind="stall", operation=operation))
    connectivity = (await prober(key).probe()).connectivity
    assert [(phase.name, phase.error) for phase in connectivity] == [("dns", None), ("tcp", None)]


async def test_a_successful_round_trip_and_one_that_kms_refused_have_no_connectivity_phases(
    emulator: Emulator, key: Measured
) -> None:
    assert (await prober(key).probe()).connectivity == ()
    emulator.faults.add(EmulatorFault(kind="denied"))
    assert (await prober(key).probe()).connectivity == ()
    assert key.measured == 0


async def test_the_connectivity_is_measured_once_for_each_change_and_again_after_a_minute(
    emulator: Emulator, key: Measured
) -> None:
    now = 1000.0
    probes = Prober("backend", "ledger-kek", key, TIMEOUT, clock=lambda: now)
    emulator.faults.add(EmulatorFault(kind="status", status="UNAVAILABLE"))
    ways = [(await probes.probe()).connectivity for _ in range(3)]
    assert ways[0]
    assert ways == [ways[0]] * 3
    assert key.measured == 1
    now += CONNECTIVITY_MAX_AGE
    assert (await probes.probe()).connectivity != ways[0]  # its seconds differ
    assert key.measured == 2
    emulator.faults.clear()
    emulator.faults.add(EmulatorFault(kind="status", status="DEADLINE_EXCEEDED"))  # fails in another way
    assert (await probes.probe()).connectivity
    assert key.measured == 3
    emulator.faults.clear()
    assert (await probes.probe()).connectivity == ()
    emulator.faults.add(EmulatorFault(kind="status", status="DEADLINE_EXCEEDED"))  # the same again, after it was well
    assert (await probes.probe()).connectivity
    assert key.measured == 4


@pytest.mark.looptime
@pytest.mark.parametrize("encrypt", [0.0, 3.0, 99.0])
async def test_a_round_trip_ends_within_two_timeouts_however_long_its_connectivity_measurement_takes(
    encrypt: float,
) -> None:
    key = Slow(encrypt=encrypt, decrypt=99.0, connectivity=1e9)
    begin = asyncio.get_running_loop().time()
    result = await prober(key, 5.0).probe()
    assert asyncio.get_running_loop().time() - begin <= 10.01
    assert result.failed_call is not None
    assert result.failed_call.failure is not None
    assert result.failed_call.failure.reason is Reason.TIMEOUT
    assert result.connectivity == ()
    assert len(key.given) == 1
    assert 0 < key.given[0] < 10 - (encrypt if encrypt < 5 else 0) - 5
