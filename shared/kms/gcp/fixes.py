"""The commands that fix a key of Google Cloud KMS, or show who changed it. Pure."""

import re
from typing import Final

from shared.kms.fixes import GENERIC_COMMANDS, FixTable, FixTemplate
from shared.kms.reason import Reason

_RING: Final = "--project={project} --location={location} --keyring={keyring}"
_ACTIVITY: Final = (
    "gcloud logging read --project={project} --freshness=%s --limit=20 --format='table(timestamp, "
    "protoPayload.authenticationInfo.principalEmail, protoPayload.methodName, protoPayload.resourceName)' "
    '\'log_id("cloudaudit.googleapis.com/activity") AND protoPayload.methodName:"%s"\''
)
_ENABLE: Final = FixTemplate("Enable the version", f"gcloud kms keys versions enable {{version}} {_RING} --key={{key}}")
_RESTORE: Final = FixTemplate(
    "Restore the version", f"gcloud kms keys versions restore {{version}} {_RING} --key={{key}}"
)
_LIST_VERSIONS: Final = FixTemplate(
    "List the versions", f"gcloud kms keys versions list {_RING} --key={{key}}", unless="version"
)
_WHO_CHANGED_VERSIONS: Final = FixTemplate(
    "See who changed a version within a day", _ACTIVITY % ("1d", "CryptoKeyVersion")
)

GCP_FIXES: Final = FixTable(
    commands={
        **GENERIC_COMMANDS,
        Reason.UNAVAILABLE: (
            *GENERIC_COMMANDS[Reason.UNAVAILABLE],
            FixTemplate("Check the exporter's DNS", "getent ahosts cloudkms.googleapis.com"),
        ),
        Reason.PERMISSION_DENIED: (
            FixTemplate("See who changed IAM in the last hour", _ACTIVITY % ("1h", "SetIamPolicy")),
            FixTemplate(
                "Grant the role",
                f"gcloud kms keys add-iam-policy-binding {{key}} {_RING} --role={{role}} "
                '--member="serviceAccount:{account}"',
            ),
        ),
        Reason.UNAUTHENTICATED: (
            FixTemplate(
                "Show the account of the exporter's machine",
                "curl -sS -m 5 -H 'Metadata-Flavor: Google' "
                "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/email",
            ),
        ),
        Reason.KEY_NOT_FOUND: (FixTemplate("List the keys of the key ring", f"gcloud kms keys list {_RING}"),),
        Reason.KEY_DISABLED: (_WHO_CHANGED_VERSIONS, _LIST_VERSIONS, _ENABLE),
        Reason.KEY_DESTROYED: (_WHO_CHANGED_VERSIONS, _LIST_VERSIONS, _RESTORE, _ENABLE),
    },
    # Stricter than https://cloud.google.com/kms/docs/resource-hierarchy: no part is an option, or needs quotes.
    key=re.compile(
        r"projects/(?P<project>[a-z0-9][a-z0-9.:-]{0,99})/locations/(?P<location>[a-z0-9][a-z0-9-]{0,62})"
        r"/keyRings/(?P<keyring>[a-zA-Z0-9_][a-zA-Z0-9_-]{0,62})/cryptoKeys/(?P<key>[a-zA-Z0-9_][a-zA-Z0-9_-]{0,62})"
    ),
    values={
        "version": re.compile(r"[1-9][0-9]{0,9}"),
        "account": re.compile(r"[a-z0-9][a-z0-9.-]{0,63}@[a-z0-9][a-z0-9.-]{0,189}"),
    },
    roles={
        "": "roles/cloudkms.cryptoKeyEncrypterDecrypter",
        "cloudkms.cryptoKeyVersions.useToEncrypt": "roles/cloudkms.cryptoKeyEncrypterDecrypter",
        "cloudkms.cryptoKeyVersions.useToDecrypt": "roles/cloudkms.cryptoKeyEncrypterDecrypter",
        "cloudkms.cryptoKeys.get": "roles/cloudkms.viewer",
        "cloudkms.cryptoKeyVersions.list": "roles/cloudkms.viewer",
    },
)
