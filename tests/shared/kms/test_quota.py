"""KMS is called at a pace below its quota, and left alone where it refuses for its quota all the same."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.port import EncryptResult, KmsError
from shared.kms.quota import QuotaLimitedKey
from shared.kms.reason import Reason
from tests.shared.keyring.fake_kms import FailingKms

QUOTA_A_MINUTE = 60_000


async def call(kms: QuotaLimitedKey) -> EncryptResult:
    return await kms.encrypt(bytes(32), b"", timeout=5)


@pytest.mark.looptime
async def test_no_minute_has_more_calls_than_five_sixths_of_the_quota() -> None:
    assert GCP_PROFILE.calls_per_minute + GCP_PROFILE.burst_calls <= QUOTA_A_MINUTE * 5 / 6
    minute, at_once = 420, 80  # the same pace takes a minute to play
    kms = FailingKms()
    kms.profile = replace(GCP_PROFILE, calls_per_minute=minute, burst_calls=at_once)
    key = QuotaLimitedKey(kms)

    async def call_repeatedly() -> None:
        while asyncio.get_running_loop().time() < 100:
            await call(key)

    await asyncio.gather(*(call_repeatedly() for _ in range(8)))
    seconds = Counter(int(at) for at in kms.called)
    minutes = [sum(seconds[first + n] for n in range(60)) for first in range(40)]
    assert minutes[0] == pytest.approx(minute + at_once, rel=0.02)
    assert minutes[-1] == pytest.approx(minute, rel=0.02)
    assert max(minutes) <= (minute + at_once) * 1.02


@pytest.mark.looptime
async def test_where_the_quota_is_exhausted_everybody_waits_and_then_goes_on() -> None:
    kms = FailingKms(3)
    key = QuotaLimitedKey(kms)
    assert len(await asyncio.gather(*(call(key) for _ in range(3)))) == 3
    assert await key.decrypt((await call(key)).ciphertext, b"", timeout=5)
    assert kms.called == [0, 1, 3, *[7] * 5]  # one tries, the others wait for what it comes to


@pytest.mark.looptime
async def test_a_quota_that_is_exhausted_for_longer_than_its_minute_is_reported() -> None:
    kms = FailingKms(100)
    with pytest.raises(KmsError, match="quota_exhausted"):
        await call(QuotaLimitedKey(kms))
    assert kms.called == [0, 1, 3, 7, 15, 31, 63]


@pytest.mark.looptime
@pytest.mark.parametrize("reason", sorted(set(Reason) - {Reason.QUOTA_EXHAUSTED}))
async def test_whatever_else_is_wrong_is_reported_at_once(reason: Reason) -> None:
    kms = FailingKms(1, reason)
    with pytest.raises(KmsError, match=reason):
        await call(QuotaLimitedKey(kms))
    assert kms.called == [0]


@pytest.mark.looptime
async def test_whoever_waits_can_be_cancelled() -> None:
    kms = FailingKms(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await call(QuotaLimitedKey(kms))
    assert kms.called == [0]
