"""What is particular to Google Cloud KMS: names, permissions, quotas, states of versions; causes.yml has what to do."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shared.kms.fixes import GENERIC_COMMANDS, FixTable, KmsProfile, list_advice, list_commands, read_rows
from shared.kms.port import VersionState

_SEGMENT = r"[^/\s]+"
_NAME = rf"projects/{_SEGMENT}/locations/{_SEGMENT}/keyRings/[a-zA-Z0-9_-]{{1,63}}/cryptoKeys/[a-zA-Z0-9_-]{{1,63}}"
_KEY: Final = re.compile(_NAME)
_SPELLING: Final = re.compile(rf"(?:\S*/)?({_NAME})(?:/cryptoKeyVersions/({_SEGMENT}))?/?")
"""As others write it: `gcp-kms://…` is Tink's, `//cloudkms.googleapis.com/…` IAM's, `https://…/v1/…` REST's."""


def check_key_name(name: str) -> str:
    """`name` itself where it is a key's full name; ValueError says what was expected."""
    if not _KEY.fullmatch(name):
        raise ValueError("expected projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY")
    return name


def parse_key_name(text: str) -> tuple[str, str] | None:
    """The key's full name and the version, empty where there is none, of a name in any spelling; None if it is none."""
    found = _SPELLING.fullmatch(text)
    return (found[1], found[2] or "") if found else None


def get_key_name(version_name: str) -> str:
    """The key that a version belongs to."""
    return version_name.partition("/cryptoKeyVersions/")[0]


_PROJECT: Final = "[a-z0-9][a-z0-9.:-]{0,99}"
CAUSES: Final = read_rows(Path(__file__).with_name("causes.yml"))

GCP_FIXES: Final = FixTable(
    commands={**GENERIC_COMMANDS, **list_commands(CAUSES)},
    # Stricter than https://cloud.google.com/kms/docs/resource-hierarchy: no part is an option, or needs quotes.
    key=re.compile(
        rf"projects/(?P<project>(?P<account_project>(?P<consumer_project>{_PROJECT})))/locations/(?P<location>[a-z0-9][a-z0-9-]{{0,62}})"
        r"/keyRings/(?P<keyring>[a-zA-Z0-9_][a-zA-Z0-9_-]{0,62})/cryptoKeys/(?P<key>[a-zA-Z0-9_][a-zA-Z0-9_-]{0,62})"
    ),
    values={
        "version": re.compile(r"[1-9][0-9]{0,9}"),
        # Google charges, and asks for an enabled API, the project that the error names: without a quota project the
        # account's, not that of the keys (https://github.com/GoogleCloudPlatform/kms-integrations/issues/53).
        "consumer": re.compile(rf"projects/(?P<consumer_project>{_PROJECT})"),
        "account": re.compile(
            r"[a-z0-9][a-z0-9.-]{0,63}@"
            r"(?:(?P<consumer_project>(?P<account_project>[a-z][a-z0-9-]{0,62}))\.iam\.gserviceaccount\.com"
            r"|[a-z0-9][a-z0-9.-]{0,189})"
        ),
        # On a key, or on what the key is in: commands name the key.
        "permission": re.compile(r"cloudkms\.(?!ekmConnections|singleTenant)[a-zA-Z]{1,60}\.[a-zA-Z]{1,60}"),
        "troubleshooter_id": re.compile(r"[a-zA-Z0-9_-]{1,200}"),
    },
    roles={
        "": "roles/cloudkms.cryptoKeyEncrypterDecrypter",
        "cloudkms.cryptoKeyVersions.useToEncrypt": "roles/cloudkms.cryptoKeyEncrypterDecrypter",
        "cloudkms.cryptoKeyVersions.useToDecrypt": "roles/cloudkms.cryptoKeyEncrypterDecrypter",
        "cloudkms.cryptoKeys.get": "roles/cloudkms.viewer",
        "cloudkms.cryptoKeyVersions.list": "roles/cloudkms.viewer",
    },
)


GCP_PROFILE: Final = KmsProfile(
    service_name="Cloud KMS",
    tool="gcloud",
    has_checksums=True,
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
    # Since February 2026 a quota is tokens a minute and region, of the project of the keys, by kind: read, write,
    # software, hsm, external (https://docs.cloud.google.com/kms/quotas). By default 600 reads. Two exporters make half
    # of them at most, which is what a project had before; people, services and rotations have the others.
    reads_per_minute=150.0,
    reads_per_inspection=4,
    # No default is documented for these: a project's limits follow what it had and used before. These are the ones of
    # before: 60,000 cryptographic requests a minute, 500 a second for HSM. For external keys a cautious one.
    calls_per_minute={"SOFTWARE": 60_000, "HSM": 30_000, "": 6_000},
    advice=list_advice(CAUSES),
    fixes=GCP_FIXES,
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
