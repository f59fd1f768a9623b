"""How often keys are inspected, for a few keys and for many."""

from dataclasses import replace

import pytest

from services.exporter.jobs import MIN_INTERVAL, compute_interval
from shared.kms.gcp.profile import GCP_PROFILE


@pytest.mark.parametrize("targets", [1, 50, 51, 100, 1000])
def test_two_exporters_of_all_targets_make_at_most_half_of_the_600_reads_of_a_minute(targets: int) -> None:
    seconds = compute_interval(targets, GCP_PROFILE)
    assert seconds >= MIN_INTERVAL == 60
    assert 2 * targets * GCP_PROFILE.reads_per_inspection * 60 / seconds <= 600 / 2
    assert compute_interval(targets, replace(GCP_PROFILE, reads_per_inspection=22)) == max(60, targets * 22 * 60 / 150)
