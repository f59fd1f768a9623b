"""What is particular to Google Cloud KMS: permissions, quotas, advice, and the meaning of version states. Pure."""

from collections.abc import Mapping
from typing import Final

from shared.kms.gcp.fixes import GCP_FIXES
from shared.kms.gcp.wire_format import parse_key_name
from shared.kms.port import VersionState
from shared.kms.profile import KmsProfile
from shared.kms.reason import Reason

GCP_PROFILE: Final = KmsProfile(
    service_name="Cloud KMS",
    # https://cloud.google.com/kms/docs/reference/permissions-and-roles
    probe_permissions=(
        "cloudkms.cryptoKeyVersions.useToEncrypt",
        "cloudkms.cryptoKeyVersions.useToDecrypt",
        "cloudkms.cryptoKeys.get",
        "cloudkms.cryptoKeyVersions.list",
    ),
    round_trip_permissions=(
        "cloudkms.cryptoKeyVersions.useToEncrypt",
        "cloudkms.cryptoKeyVersions.useToDecrypt",
    ),
    # A project may make 300 reads and 60,000 cryptographic requests a minute (https://cloud.google.com/kms/quotas).
    # A third of the reads is left to people and others; no minute of a rotation has more than 50,000 requests.
    reads_per_minute=200.0,
    reads_per_inspection=3,
    calls_per_minute=42_000,
    burst_calls=8_000,
    advice={
        Reason.TIMEOUT: "Check https://status.cloud.google.com, then the network and its DNS.",
        Reason.UNAVAILABLE: "Check https://status.cloud.google.com, then the network and its DNS.",
        Reason.PERMISSION_DENIED: "Grant the service account its role on this key.",
        Reason.UNAUTHENTICATED: "Mount the service account's credentials, and check the clock.",
        Reason.QUOTA_EXHAUSTED: "Find the caller in the project's quota page, and raise the quota.",
        Reason.KEY_NOT_FOUND: "Compare key in the configuration with what gcloud kms keys list shows.",
        Reason.KEY_DESTROYED: "Restore the version now: after its date it is gone for good.",
    },
    fixes=GCP_FIXES,
    permission_advice="Grant the service account its role on this key.",
    rotation_advice="gcloud kms keys describe shows its schedule.",
    parse_key_name=parse_key_name,
    propagation="minutes, rarely hours (https://cloud.google.com/kms/docs/consistency)",
)

VERSION_STATES: Final[Mapping[str, VersionState]] = {
    "ENABLED": VersionState.USABLE,
    "DISABLED": VersionState.DISABLED,
    "DESTROY_SCHEDULED": VersionState.PENDING_DESTRUCTION,
    "DESTROYED": VersionState.DESTROYED,
    "PENDING_EXTERNAL_DESTRUCTION": VersionState.DESTROYED,
    "EXTERNAL_DESTRUCTION_FAILED": VersionState.DESTROYED,
    "PENDING_GENERATION": VersionState.NOT_READY,
    "GENERATION_FAILED": VersionState.NOT_READY,
    "PENDING_IMPORT": VersionState.NOT_READY,
    "IMPORT_FAILED": VersionState.NOT_READY,
}
"""https://cloud.google.com/kms/docs/reference/rest/v1/projects.locations.keyRings.cryptoKeys.cryptoKeyVersions

A version whose external key material waits for its destruction "may not be used or enabled again".
"""
