"""How often keys are inspected, for a few keys and for many."""

import asyncio
from dataclasses import replace

import pytest

from ops.kms_emulator.emulator import run_emulator
from services.exporter.config import Target
from services.exporter.jobs import MIN_INTERVAL, compute_interval
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.gcp.settings import GcpKeySettings
from tests.exporter.running_exporter import KEY, configured, scraped
from tests.reserved_port import reserve_port


@pytest.mark.parametrize("targets", [1, 50, 51, 100, 1000])
def test_two_exporters_of_all_targets_make_at_most_half_of_the_600_reads_of_a_minute(targets: int) -> None:
    seconds = compute_interval(targets, GCP_PROFILE)
    assert seconds >= MIN_INTERVAL == 60
    assert 2 * targets * GCP_PROFILE.reads_per_inspection * 60 / seconds <= 600 / 2
    assert compute_interval(targets, replace(GCP_PROFILE, reads_per_inspection=22)) == max(60, targets * 22 * 60 / 150)


async def test_a_key_is_inspected_again_soon_after_its_kms_was_not_there() -> None:
    problems = "kms_key_inspection_problems backend ledger-kek"
    with reserve_port() as address:
        kms = GcpKeySettings(key=KEY, endpoint=str(address), insecure=True)
        async with scraped(configured(targets=(Target(name="ledger-kek", service="backend", kms=kms),))) as scrape:
            await scrape.wait_for(problems, 3)
            async with run_emulator(listen=address, keys=[KEY]), asyncio.timeout(MIN_INTERVAL / 2):
                await scrape.wait_for(problems, 0)
