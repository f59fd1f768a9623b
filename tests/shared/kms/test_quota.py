"""KMS is called at a pace below its quota, and left alone where it refuses for its quota all the same."""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.port import EncryptResult, KmsError
from shared.kms.quota import BURST_SHARE, LONGEST_PAUSE, SHARE, QuotaLimitedKey
from shared.kms.reason import Reason
from tests.shared.keyring.fake_kms import FailingKms


async def call(kms: QuotaLimitedKey) -> EncryptResult:
    return await kms.encrypt(bytes(32), b"", timeout=5)


@pytest.mark.looptime
@pytest.mark.parametrize("level", ["MEMORY", ""])
async def test_no_minute_has_more_calls_than_five_sixths_of_the_limit_of_the_keys_level(level: str) -> None:
    limit = 600  # the same pace as of 60,000 takes a minute to play
    kms = FailingKms()
    kms.profile = replace(GCP_PROFILE, calls_per_minute={"": 2 * limit if level else limit, level: limit})
    key = QuotaLimitedKey(kms)

    async def call_repeatedly() -> None:
        while asyncio.get_running_loop().time() < 100:
            await call(key)

    await asyncio.gather(*(call_repeatedly() for _ in range(8)))
    seconds = Counter(int(at) for at in kms.called)
    minutes = [sum(seconds[first + n] for n in range(60)) for first in range(40)]
    assert minutes[0] == pytest.approx(limit * 5 / 6, rel=0.02)
    assert minutes[-1] == pytest.approx(limit * 0.7, rel=0.02)
    assert max(minutes) <= limit * 5 / 6 + 8


@pytest.mark.looptime
async def test_a_refusal_halves_the_pace_once_for_all_calls_in_flight_and_it_grows_again() -> None:
    kms = FailingKms()
    key = QuotaLimitedKey(kms)
    limit = GCP_PROFILE.get_call_limit("") * SHARE / 60  # a second; of a level that is not documented
    for _ in range(round(30 * limit)):
        await call(key)
    kms.fail(3)
    kms.latency = 0.1
    await asyncio.gather(*(call(key) for _ in range(3)))
    pauses = [later - earlier for earlier, later in pairwise(kms.called[-6:])]
    assert pauses == pytest.approx([1 / limit, 1 / limit, 1.1, 4 / limit, 4 / limit], abs=0.005)
    kms.latency = 0.0
    for minutes, pace in ((10, 0.5), (60, 1)):
        await asyncio.sleep(60 * minutes)
        began = asyncio.get_running_loop().time()
        for _ in range(1_000 + round(limit * pace * 60 * BURST_SHARE / SHARE)):
            await call(key)
        assert 1_000 / (asyncio.get_running_loop().time() - began) <= limit * 1.02
    assert 1_000 / (asyncio.get_running_loop().time() - began) == pytest.approx(limit, rel=0.05)


@pytest.mark.looptime
async def test_where_the_quota_is_exhausted_everybody_waits_and_then_goes_on() -> None:
    kms = FailingKms(3)
    key = QuotaLimitedKey(kms)
    assert len(await asyncio.gather(*(call(key) for _ in range(3)))) == 3
    assert await key.decrypt((await call(key)).ciphertext, b"", timeout=5)
    assert [round(at) for at in kms.called] == [0, 0, 0, 1, 2, 3, 4, 5]  # 60 a minute is the slowest pace


@pytest.mark.looptime
@pytest.mark.parametrize(("asked", "paused"), [(45.0, 45), (9_000.0, LONGEST_PAUSE), (0.0, 1), (None, 1)])
async def test_the_pause_that_kms_asks_for_is_kept_within_bounds(asked: float | None, paused: float) -> None:
    kms = FailingKms(1, retry_after=asked)
    await call(QuotaLimitedKey(kms))
    assert kms.called == pytest.approx([0, paused], abs=0.01)


@pytest.mark.looptime
@pytest.mark.parametrize("asked", [None, 0.5])
async def test_a_quota_that_is_exhausted_for_longer_than_its_minute_is_reported(asked: float | None) -> None:
    kms = FailingKms(100, retry_after=asked)
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
