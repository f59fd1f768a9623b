"""How often keys are inspected: each once a minute, or less often, so that all keep to their provider's quota of reads.

A quota of reads is shared by all keys of a project, and by whoever else reads them.
"""

from typing import Final

from shared.kms.profile import KmsProfile

MIN_INTERVAL: Final = 60.0
"""Seconds between two inspections of one key."""


def compute_interval(targets: int, profile: KmsProfile) -> float:
    """Seconds between two inspections of one target, so that all targets of a provider keep to its quota of reads.

    At least `MIN_INTERVAL`. The first inspections are spread over one interval, too; see `compute_start_spacing`.
    """
    return max(MIN_INTERVAL, targets * profile.reads_per_inspection / profile.reads_per_minute * 60)


def compute_start_spacing(profile: KmsProfile) -> float:
    """Seconds between the first inspections of two targets of a provider."""
    return 60 * profile.reads_per_inspection / profile.reads_per_minute
