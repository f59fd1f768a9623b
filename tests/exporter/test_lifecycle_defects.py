"""A look at a key that meets what no service does: a wrong AAD is accepted, a defect of our own, clocks that jump."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Collection

import pytest
from structlog.testing import capture_logs

from ops.kms_emulator.emulator import Emulator
from services.exporter.lifecycle import Lifecycle
from services.exporter.model import Canary, KeptCiphertext, Operation
from shared.kms.gcp import GcpKey
from shared.kms.provider import Decrypted, KeyDescription, KmsError
from shared.kms.reason import Reason

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


class Broken(GcpKey):
    """A key of the emulator that can be told to decrypt, or to be described, in another way."""

    decrypting: Decrypted | BaseException | None = None
    describing: BaseException | None = None

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> Decrypted:
        if isinstance(self.decrypting, BaseException):
            raise self.decrypting
        return self.decrypting or await super().decrypt(ciphertext, aad, timeout=timeout)

    async def describe(self, *, timeout: float) -> KeyDescription:
        if self.describing:
            raise self.describing
        return await super().describe(timeout=timeout)


class Folder:
    """Gives always the same canaries, or raises, and remembers what it is given."""

    def __init__(self, *canaries: KeptCiphertext, broken: BaseException | None = None) -> None:
        self._canaries = canaries
        self._broken = broken
        self.added: list[KeptCiphertext] = []

    async def sync(
        self,
        add: KeptCiphertext | None = None,
        forget: Collection[str] = (),  # noqa: ARG002  the port's
    ) -> tuple[tuple[KeptCiphertext, ...], tuple[()]]:
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
        Decrypted(b"anything", used_primary=True),
        Decrypted(b"", used_primary=False),
        KmsError(Reason.CRC_MISMATCH, "decrypt: the plaintext does not match its checksum"),
    ],
)
async def test_whatever_is_decrypted_with_a_wrong_aad_is_a_failure(key: Broken, answer: Decrypted | KmsError) -> None:
    key.decrypting = answer
    snapshot = await Lifecycle("backend", "ledger-kek", key, 1).read()
    assert snapshot.wrong_aad is not None
    assert snapshot.wrong_aad.operation is Operation.DECRYPT
    assert snapshot.wrong_aad.failure is not None
    assert snapshot.wrong_aad.failure.reason is Reason.PLAINTEXT_MISMATCH
    assert snapshot.wrong_aad.failure.detail == "decrypt accepted another AAD than was encrypted with"


@pytest.mark.parametrize("defect", [ZeroDivisionError("defect"), asyncio.CancelledError()])
async def test_a_defect_is_a_problem_with_its_trace_in_the_log_and_the_rest_is_read(
    key: Broken, defect: BaseException
) -> None:
    key.describing = defect
    with capture_logs() as logged:
        snapshot = await Lifecycle("backend", "ledger-kek", key, 1).read()
    assert snapshot.problems == (f"the key cannot be read: internal: {defect!r}",)
    assert snapshot.permissions
    assert snapshot.wrong_aad
    assert [(entry["log_level"], entry["exc_info"]) for entry in logged] == [("error", defect)]


async def test_a_folder_that_raises_is_a_problem_and_the_key_is_read(key: Broken) -> None:
    folder = Folder(broken=ZeroDivisionError("defect"))
    with capture_logs():
        snapshot = await Lifecycle("backend", "ledger-kek", key, 1, folder.sync).read()
    assert snapshot.problems == ("the canaries cannot be used: internal: ZeroDivisionError('defect')",)
    assert snapshot.description
    assert snapshot.wrong_aad


@pytest.mark.parametrize("defect", [ZeroDivisionError("defect"), asyncio.CancelledError()])
async def test_a_defect_in_one_canary_is_a_failure_of_its_own(key: Broken, defect: BaseException) -> None:
    folder = Folder(*(KeptCiphertext(str(n), b"", b"", bytes(32), 0.0) for n in (2, 3)))
    key.decrypting = defect
    with capture_logs():
        snapshot = await Lifecycle("backend", "ledger-kek", key, 1, folder.sync).read()
    assert [reason(canary) for canary in snapshot.canaries] == [("2", Reason.INTERNAL), ("3", Reason.INTERNAL)]


def reason(canary: Canary) -> tuple[str, Reason | None]:
    return canary.version, canary.call.failure.reason if canary.call.failure else None


async def test_the_wall_clock_moves_no_duration(key: Broken) -> None:
    wall, ticks = itertools.count(2_000_000_000.0, -1e9), itertools.count(5.0, 0.25)
    lifecycle = Lifecycle("backend", "ledger-kek", key, 1, wall=lambda: next(wall), monotonic=lambda: next(ticks))
    snapshot = await lifecycle.read()
    assert snapshot.encrypt is not None
    assert snapshot.wrong_aad is not None
    assert (snapshot.encrypt.seconds, snapshot.wrong_aad.seconds) == (0.25, 0.25)


async def test_plaintext_and_aad_are_random_and_what_is_kept_shows_no_plaintext(key: Broken) -> None:
    folder, drawn = Folder(), list[int]()

    def random_bytes(size: int) -> bytes:
        drawn.append(size)
        return bytes([len(drawn)]) * size

    await Lifecycle("backend", "ledger-kek", key, 1, folder.sync, random_bytes=random_bytes).read()
    assert drawn == [32, 16]
    (canary,) = folder.added
    assert canary.aad == b"\x02" * 16
    assert b"\x01" * 32 not in canary.ciphertext + canary.plaintext_sha256
