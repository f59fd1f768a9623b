"""The exporter on the demo's clock: the minute between two key inspections is a second, and so is that of the quota."""

from dataclasses import replace

from services.exporter import jobs as inspection_schedule
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.gcp.settings import GcpKeySettings

if __name__ == "__main__":
    inspection_schedule.MIN_INTERVAL /= 60  # type: ignore[misc]
    GcpKeySettings.profile = replace(GCP_PROFILE, reads_per_minute=60 * GCP_PROFILE.reads_per_minute)
    from services.exporter.__main__ import main  # which takes the two along

    main()
