"""Inspections that meet the unexpected: a wrong AAD is accepted, a defect of keypulse, clocks that jump."""

import asyncio
from collections.abc import AsyncIterator, Collection

import pytest
from structlog.testing import capture_logs

from ops.kms_emulator.emulator import Emulator
from services.exporter.model import Canary, CanaryResult, Operation
from services.exporter.probes.key_inspection import KeyInspector
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import DecryptResult, KeyDescription, KmsError
from shared.kms.reason import Reason

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


class Broken(GcpKmsKey):
    """A key of the emulator that can be told to decrypt, or to be described, in another way."""

    decrypting: DecryptResult | BaseException | None = None
    describing: BaseException | None = None

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        if isinstance(self.decrypting, BaseException):
            raise self.decrypting
        return self.decrypting or await super().decrypt(ciphertext, aad, timeout=timeout)

    async def describe_key(self, *, timeout: float) -> KeyDescription:
        if self.describing:
            raise self.describing
        return await super().describe_key(timeout=timeout)


class Folder:
    """Gives always the same canaries, or raises, and remembers what it is given."""

    def __init__(self, *canaries: Canary, broken: BaseException | None = None) -> None:
        self._canaries = canaries
        self._broken = broken
        self.added: list[Canary] = []

    async def sync(
        self,
        add: Canary | None = None,
        remove: Collection[str] = (),  # noqa: ARG002  the port's
    ) -> tuple[tuple[Canary, ...], tuple[()]]:
        if self._broken:
            raise self._broken
        self.added.extend([add] if add else [])
        return self._canaries, ()


@pytest.fixture
async def key(emulator: Emulator) -> AsyncIterator[Broken]:
    provider = Broken(KEY, endpoint=str(emulator.address), insecure=True)
    yield provider
    await provider.close()


@pytest.mark.parametrize(
    "answer",
    [
        DecryptResult(b"anything", is_primary=True),
        DecryptResult(b"", is_primary=False),
        KmsError(Reason.CRC_MISMATCH, "decrypt: the plaintext does not match its checksum"),
    ],
)
async def test_whatever_is_decrypted_with_a_wrong_aad_is_a_failure(
    key: Broken, answer: DecryptResult | KmsError
) -> None:
    key.decrypting = answer
    snapshot = await KeyInspector("backend", "ledger-kek", key, 30).inspect()
    assert snapshot.wrong_aad_check is not None
    assert snapshot.wrong_aad_check.operation is Operation.DECRYPT
    assert snapshot.wrong_aad_check.failure is not None
    assert snapshot.wrong_aad_check.failure.reason is Reason.PLAINTEXT_MISMATCH
    assert snapshot.wrong_aad_check.failure.detail == "decrypt accepted another AAD than was encrypted with"


@pytest.mark.parametrize("defect", [ZeroDivisionError("defect"), asyncio.CancelledError()])
async def test_a_defect_is_a_problem_with_its_trace_in_the_log_and_the_rest_is_read(
    key: Broken, defect: BaseException
) -> None:
    key.describing = defect
    with capture_logs() as logged:
        snapshot = await KeyInspector("backend", "ledger-kek", key, 30).inspect()
    assert snapshot.problems == (f"the key cannot be read: internal: {defect!r}",)
    assert snapshot.permissions
    assert snapshot.wrong_aad_check
    assert [(entry["log_level"], entry["exc_info"]) for entry in logged] == [("error", defect)]


def reason(canary: CanaryResult) -> tuple[str, Reason | None]:
    return canary.version, canary.call.failure.reason if canary.call.failure else None


async def test_plaintext_and_aad_are_random_and_what_is_kept_shows_no_plaintext(key: Broken) -> None:
    folder, drawn = Folder(), list[int]()

    def random_bytes(size: int) -> bytes:
        drawn.append(size)
        return bytes([len(drawn)]) * size

    await KeyInspector("backend", "ledger-kek", key, 30, folder.sync, random_bytes=random_bytes).inspect()
    assert drawn == [32, 16]
    (canary,) = folder.added
    assert canary.aad == b"\x02" * 16
    assert b"\x01" * 32 not in canary.ciphertext + canary.plaintext_sha256
