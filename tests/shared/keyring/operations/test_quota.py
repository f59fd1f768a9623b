"""A re-wrap under a small quota of the emulator, over gRPC, on a clock of its own: an hour passes in a second."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest

from ops.kms_emulator.emulator import Emulator, run_emulator
from shared.keyring.administration import RotationState
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.quota import QuotaLimitedKey
from shared.kms.retries import RetryingKey
from shared.sql.database_url import create_sqlite_url
from tests.shared.keyring.keyring import KEY, opened

QUOTA = 120


async def count_calls(emulator: Emulator) -> tuple[int, int]:
    """Those of Encrypt and Decrypt, and those that were refused for a quota."""
    url = f"http://{emulator.faults_address}/metrics"
    text = (await asyncio.to_thread(lambda: urlopen(url).read())).decode()
    found = re.findall(r'emulator_requests_total\{code="(\w+)",operation="(?:En|De)crypt"\} (\d+)', text)
    return sum(int(n) for _, n in found), sum(int(n) for code, n in found if code == "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize("level", ["SOFTWARE", "HSM"])
async def test_a_rewrap_under_a_small_quota_ends_is_rarely_refused_and_loses_nothing(
    level: str, tmp_path: Path
) -> None:
    now = [1_800_000_000.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        await asyncio.sleep(0)

    async with run_emulator(keys=[KEY], clock=lambda: now[0], quotas={level.lower(): QUOTA}) as emulator:
        await emulator.store.update_key(KEY, lambda key: replace(key, protection_level=level))
        kms = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True)
        limited = RetryingKey(QuotaLimitedKey(kms, clock=lambda: now[0], sleep=sleep))
        async with opened(create_sqlite_url(tmp_path / "keyring.db"), limited) as keyring:
            await keyring.fill(150)
            before = await keyring.fingerprint()
            await emulator.store.update_key(
                KEY, lambda key: replace(key, primary=2, versions=(*key.versions, replace(key.versions[0], number=2)))
            )
            await keyring.take_lease()
            assert (await keyring.rotate()).state is RotationState.DONE
            assert set((await keyring.versions()).values()) == {"2"}
            assert await keyring.fingerprint() == before
        calls, refused = await count_calls(emulator)
        assert refused <= calls / 20
        assert (now[0] - 1_800_000_000) / 60 <= 1.5 * calls / QUOTA
        await kms.close()
