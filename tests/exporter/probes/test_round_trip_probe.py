from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.exporter.model import Operation
from services.exporter.probes.round_trip import AAD_BYTES, PLAINTEXT_BYTES, Prober
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import DecryptResult, EncryptResult, KmsKey
from shared.kms.reason import Reason

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
TIMEOUT = 2.0


class Mirror(GcpKmsKey):
    """A key that keeps what it is asked to encrypt, and can fail in ways that no service does."""

    def __init__(self, *, broken: BaseException | None = None) -> None:
        super().__init__(KEY, endpoint="127.0.0.1:1", insecure=True)
        self.requests: list[tuple[bytes, bytes]] = []
        self._broken = broken

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        assert timeout == TIMEOUT
        self.requests.append((plaintext, aad))
        return EncryptResult(plaintext[::-1], "7", "SOFTWARE")

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        assert timeout == TIMEOUT
        if self._broken:
            raise self._broken
        assert aad == self.requests[-1][1]
        return DecryptResult(ciphertext[::-1], is_primary=True)


async def test_a_round_trip_through_a_healthy_key_is_right_in_every_respect(key: KmsKey) -> None:
    result = await Prober("backend", "ledger-kek", key, TIMEOUT, wall_clock=lambda: 1_700_000_000.5).probe()
    assert result.failed_call is None
    assert [call.operation for call in result.calls] == [Operation.ENCRYPT, Operation.DECRYPT]
    assert all(0 < call.seconds < TIMEOUT for call in result.calls)
    assert (result.key_version, result.protection_level) == ("1", "SOFTWARE")
    assert (result.service, result.target, result.ended_at) == ("backend", "ledger-kek", 1_700_000_000.5)


async def test_a_timeout_counts_at_its_full_length_even_where_the_service_gave_up_early(
    emulator: Emulator, key: KmsKey
) -> None:
    emulator.faults.add(EmulatorFault(kind="status", status="DEADLINE_EXCEEDED"))
    (call,) = (await Prober("backend", "ledger-kek", key, TIMEOUT).probe()).calls
    assert call.seconds == TIMEOUT
    emulator.faults.clear()
    emulator.faults.add(EmulatorFault(kind="stall"))
    (call,) = (await Prober("backend", "ledger-kek", key, TIMEOUT).probe()).calls
    assert TIMEOUT <= call.seconds < 2 * TIMEOUT


async def test_plaintext_and_aad_are_random_and_new_in_each_probe() -> None:
    mirror = Mirror()
    prober = Prober("backend", "mirror", mirror, TIMEOUT)
    await prober.probe()
    await prober.probe()
    (plaintext, aad), (next_plaintext, next_aad) = mirror.requests
    assert (len(plaintext), len(aad)) == (PLAINTEXT_BYTES, AAD_BYTES)
    assert plaintext != next_plaintext
    assert aad != next_aad


async def test_an_unexpected_exception_is_an_internal_failure_that_has_its_trace() -> None:
    defect = ZeroDivisionError("defect")
    result = await Prober("backend", "mirror", Mirror(broken=defect), TIMEOUT).probe()
    assert result.failed_call is not None
    assert result.failed_call.operation is Operation.DECRYPT
    assert result.failed_call.failure is not None
    assert result.failed_call.failure.reason is Reason.INTERNAL
    assert result.failed_call.failure.exception is defect
    assert defect.__traceback__ is not None
