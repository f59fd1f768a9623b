"""How often keys are inspected, for a few keys and for many."""

from dataclasses import replace

import pytest

from services.exporter.jobs import MIN_INTERVAL, compute_interval
from shared.kms.gcp.profile import GCP_PROFILE


@pytest.mark.parametrize("targets", [1, 20, 21, 100, 1000])
def test_all_targets_in_total_keep_to_the_quota_of_300_reads_a_minute(targets: int) -> None:
    seconds = compute_interval(targets, GCP_PROFILE)
    assert seconds >= MIN_INTERVAL == 60
    assert targets * GCP_PROFILE.reads_per_inspection * 60 / seconds <= 200
    assert compute_interval(targets, replace(GCP_PROFILE, reads_per_inspection=22)) == max(60, targets * 22 * 60 / 200)
