"""A call that fails for a reason which passes is made again, with a pause; for any other reason it is not."""

from collections.abc import Awaitable, Callable

import pytest

from shared.kms.port import KmsError
from shared.kms.reason import Reason
from shared.kms.retries import RetryingAdminKey
from tests.shared.keyring.fake_kms import FailingKms

TRANSIENT = [reason for reason in Reason if reason.transient]


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
async def test_a_read_is_tried_again_when_kms_asks_for_it_and_not_before() -> None:
    kms = FailingKms(2, Reason.QUOTA_EXHAUSTED, retry_after=40.0)
    await CALLS["describe"](RetryingAdminKey(kms))
    assert kms.called == [0, 40, 80]


@pytest.mark.looptime
async def test_a_destruction_is_requested_once() -> None:
    kms = FailingKms(1, Reason.UNAVAILABLE)
    with pytest.raises(KmsError, match="unavailable"):
        await RetryingAdminKey(kms).schedule_destruction("1", timeout=5)
    assert kms.called == [0]
