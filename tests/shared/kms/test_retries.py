"""A call that fails for a reason which passes is made again, with a pause; for any other reason it is not."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from shared.kms.port import DecryptResult, EncryptResult, KeyDescription, KeyVersion, KmsError, VersionState
from shared.kms.reason import Reason
from shared.kms.retries import RetryingAdminKey
from tests.shared.keyring.fake_kms import FakeKms

TRANSIENT = [reason for reason in Reason if reason.transient]
VERSION = KeyVersion("1", VersionState.DISABLED, "SOFTWARE", None)


class FailingKms(FakeKms):
    """Fails the next calls, and keeps when each one was made."""

    def __init__(self, failures: int, reason: Reason) -> None:
        super().__init__()
        self.called: list[float] = []
        self._failures, self._reason = failures, reason

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        self._fail_first()
        return await super().encrypt(plaintext, aad, timeout=timeout)

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        self._fail_first()
        return await super().decrypt(ciphertext, aad, timeout=timeout)

    async def describe_key(self, *, timeout: float) -> KeyDescription:
        self._fail_first()
        return await super().describe_key(timeout=timeout)

    async def set_version_enabled(self, version: str, *, is_enabled: bool, timeout: float) -> KeyVersion:  # noqa: ARG002
        self._fail_first()
        return replace(VERSION, id=version)

    async def schedule_destruction(self, version: str, *, timeout: float) -> KeyVersion:  # noqa: ARG002
        self._fail_first()
        return replace(VERSION, id=version)

    def _fail_first(self) -> None:
        self.called.append(asyncio.get_running_loop().time())
        self._failures -= 1
        if self._failures >= 0:
            raise KmsError(self._reason, "failed")


CALLS: dict[str, Callable[[RetryingAdminKey], Awaitable[object]]] = {
    "encrypt": lambda key: key.encrypt(bytes(32), b"", timeout=5),
    "decrypt": lambda key: key.decrypt(b"0001" + bytes(48), b"", timeout=5),
    "describe": lambda key: key.describe_key(timeout=5),
    "disable": lambda key: key.set_version_enabled("1", is_enabled=False, timeout=5),
}


@pytest.mark.looptime
@pytest.mark.parametrize("reason", TRANSIENT)
@pytest.mark.parametrize("call", ["encrypt", "describe", "disable"])
async def test_a_failure_that_passes_is_tried_again_after_a_pause(call: str, reason: Reason) -> None:
    kms = FailingKms(2, reason)
    assert await CALLS[call](RetryingAdminKey(kms))
    assert kms.called == [0, 1, 3]


@pytest.mark.looptime
@pytest.mark.parametrize("reason", TRANSIENT)
@pytest.mark.parametrize("call", CALLS)
async def test_a_failure_that_lasts_for_over_a_minute_is_reported(call: str, reason: Reason) -> None:
    kms = FailingKms(100, reason)
    with pytest.raises(KmsError, match=reason):
        await CALLS[call](RetryingAdminKey(kms))
    assert kms.called == [0, 1, 3, 7, 15, 31, 63]


@pytest.mark.looptime
@pytest.mark.parametrize("reason", sorted(set(Reason) - set(TRANSIENT)))
@pytest.mark.parametrize("call", CALLS)
async def test_a_failure_that_does_not_pass_is_reported_at_once(call: str, reason: Reason) -> None:
    kms = FailingKms(1, reason)
    with pytest.raises(KmsError, match=reason):
        await CALLS[call](RetryingAdminKey(kms))
    assert kms.called == [0]


@pytest.mark.looptime
async def test_a_destruction_is_requested_once() -> None:
    kms = FailingKms(1, Reason.UNAVAILABLE)
    with pytest.raises(KmsError, match="unavailable"):
        await RetryingAdminKey(kms).schedule_destruction("1", timeout=5)
    assert kms.called == [0]
