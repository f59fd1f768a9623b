"""Jobs at a long interval, as those that read keys: the first come at once, and never too many in a minute."""

import asyncio
from bisect import bisect_left
from random import Random

import pytest

from services.exporter.scheduler import NextRun, ScheduledJob, run_schedule

pytestmark = pytest.mark.looptime

QUOTA = 300
"""Reads a minute: https://cloud.google.com/kms/quotas."""
READS = 3
"""Of one job."""


async def begins(jobs: int, seconds: float, *, interval: float, spacing: float) -> list[float]:
    """When runs began, of all jobs together, since the start."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    begun: list[float] = []

    async def run() -> NextRun:
        begun.append(loop.time() - start)
        return NextRun.ON_GRID

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await run_schedule(
                [ScheduledJob("job", run)] * jobs,
                interval=interval,
                concurrency=16,
                random=Random(1),  # noqa: S311  jitter, no secret
                start_spacing=spacing,
            )
    return begun


async def test_a_thousand_keys_are_never_read_more_often_in_any_minute_than_the_quota_grants() -> None:
    begun = await begins(1000, 4 * 900, interval=900, spacing=0.9)
    most = max(bisect_left(begun, at + 60) - n for n, at in enumerate(begun))
    assert len(begun) > 3800
    assert most * READS <= QUOTA
