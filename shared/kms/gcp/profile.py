"""What is particular to Google Cloud KMS: names, permissions, quotas, advice, commands, states of versions. Pure."""

import re
from collections.abc import Mapping
from typing import Final

from shared.kms.fixes import GENERIC_COMMANDS, FixTable, FixTemplate, KmsProfile
from shared.kms.port import VersionState
from shared.kms.reason import Cause, Reason

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
_RING: Final = "--project={project} --location={location} --keyring={keyring}"


def _format_activity(freshness: str, method: str, project: str = "project") -> str:
    return (
        f"gcloud logging read --project={{{project}}} --freshness={freshness} --limit=20 --format='table(timestamp, "
        "protoPayload.authenticationInfo.principalEmail, protoPayload.methodName, protoPayload.resourceName)' "
        f'\'log_id("cloudaudit.googleapis.com/activity") AND protoPayload.methodName:"{method}"\''
    )


_ENABLE: Final = FixTemplate("Enable the version", f"gcloud kms keys versions enable {{version}} {_RING} --key={{key}}")
_RESTORE: Final = FixTemplate(
    "Restore the version", f"gcloud kms keys versions restore {{version}} {_RING} --key={{key}}"
)
_LIST_VERSIONS: Final = FixTemplate(
    "List the versions", f"gcloud kms keys versions list {_RING} --key={{key}}", unless="version"
)
_WHO_CHANGED_VERSIONS: Final = FixTemplate(
    "See who changed a version within a day", _format_activity("1d", "CryptoKeyVersion")
)

_WHO_CHANGED_IAM: Final = FixTemplate("See who changed IAM in the last hour", _format_activity("1h", "SetIamPolicy"))
_ASK_WHICH_POLICY: Final = FixTemplate(
    "See whether a deny policy is in the way",
    "gcloud policy-intelligence troubleshoot-policy iam "
    "//cloudkms.googleapis.com/projects/{project}/locations/{location}/keyRings/{keyring}/cryptoKeys/{key} "
    '--principal-email="{account}" --permission={permission}',
)
_METADATA: Final = (
    "curl -sS -m 5 -H 'Metadata-Flavor: Google' "
    "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/%s"
)
_EXTERNAL_KEY: Final = FixTemplate(
    "Give the key manager's operator the address of the key",
    f"gcloud kms keys versions describe {{version}} {_RING} --key={{key}} "
    "--format='value(state,externalProtectionLevelOptions)'",
)
_REFUSED_EXTERNAL_KEY: Final = _EXTERNAL_KEY._replace(
    title="Ask the key manager's operator to allow this key, and enable the version after that: "
    "else its next refusal disables it again"
)

GCP_FIXES: Final = FixTable(
    commands={
        **GENERIC_COMMANDS,
        Reason.UNAVAILABLE: (
            *GENERIC_COMMANDS[Reason.UNAVAILABLE],
            FixTemplate("Check the exporter's DNS", "getent ahosts cloudkms.googleapis.com"),
        ),
        Reason.PERMISSION_DENIED: (_WHO_CHANGED_IAM, _ASK_WHICH_POLICY),
        Reason.UNAUTHENTICATED: (FixTemplate("Show the account of the exporter's machine", _METADATA % "email"),),
        Reason.KEY_NOT_FOUND: (FixTemplate("List the keys of the key ring", f"gcloud kms keys list {_RING}"),),
        Reason.KEY_DISABLED: (_WHO_CHANGED_VERSIONS, _LIST_VERSIONS, _ENABLE),
        Reason.KEY_DESTROYED: (_WHO_CHANGED_VERSIONS, _LIST_VERSIONS, _RESTORE, _ENABLE),
        Cause.ROLE_MISSING: (
            _WHO_CHANGED_IAM,
            _ASK_WHICH_POLICY,
            FixTemplate(
                "Grant the role",
                f"gcloud kms keys add-iam-policy-binding {{key}} {_RING} --role={{role}} "
                '--member="serviceAccount:{account}"',
            ),
        ),
        Cause.PERIMETER: (
            FixTemplate(
                "Open the denial in the troubleshooter",
                "python3 -m webbrowser "
                "'https://console.cloud.google.com/security/service-perimeter/troubleshoot;uniqueId={troubleshooter_id}'",
            ),
            FixTemplate(
                "Find the denial: the perimeter's owner has to admit this account and network",
                "gcloud logging read --project={project} --freshness=1h --limit=20 --format='table(timestamp, "
                "protoPayload.authenticationInfo.principalEmail, protoPayload.metadata.vpcServiceControlsUniqueId)' "
                "'log_id(\"cloudaudit.googleapis.com/policy\")'",
                unless="troubleshooter_id",
            ),
        ),
        Cause.API_DISABLED: (
            FixTemplate(
                "See who disabled it within a day", _format_activity("1d", "DisableService", "consumer_project")
            ),
            FixTemplate(
                "Enable the API", "gcloud services enable cloudkms.googleapis.com --project={consumer_project}"
            ),
            FixTemplate(
                "Or enable it on its page",
                "python3 -m webbrowser "
                "'https://console.cloud.google.com/apis/library/cloudkms.googleapis.com?project={consumer_project}'",
            ),
        ),
        Cause.BILLING_DISABLED: (
            FixTemplate("Show the project's billing", "gcloud billing projects describe {consumer_project}"),
        ),
        Cause.PROJECT_UNUSABLE: (
            FixTemplate("Show the state of the project", "gcloud projects describe {consumer_project}"),
        ),
        Cause.QUOTA_PROJECT: (
            FixTemplate("Show which project the exporter charges", "printenv GOOGLE_CLOUD_QUOTA_PROJECT"),
        ),
        Cause.ORG_POLICY: (
            FixTemplate("List the policies of the project", "gcloud org-policies list --project={project}"),
            FixTemplate("See who changed a policy within a day", _format_activity("1d", "OrgPolicy")),
        ),
        Cause.JUSTIFICATION: (
            FixTemplate(
                "Show which justifications the key allows",
                f"gcloud kms keys describe {{key}} {_RING} --format='value(keyAccessJustificationsPolicy)'",
            ),
        ),
        Cause.ACCOUNT_DISABLED: (
            FixTemplate(
                "See who changed the account within a day", _format_activity("1d", "ServiceAccount", "account_project")
            ),
            FixTemplate(
                "Enable the account", 'gcloud iam service-accounts enable "{account}" --project={account_project}'
            ),
        ),
        Cause.SCOPE_MISSING: (FixTemplate("Show the scopes of the exporter's machine", _METADATA % "scopes"),),
        Cause.CREDENTIALS_INVALID: (
            FixTemplate(
                "List the account's keys",
                'gcloud iam service-accounts keys list --iam-account="{account}" --project={account_project}',
            ),
        ),
        Cause.EKM_NOT_FOUND: (_EXTERNAL_KEY,),
        Cause.EKM_DENIED: (_REFUSED_EXTERNAL_KEY,),
        Cause.EKM_DISABLED: (_REFUSED_EXTERNAL_KEY,),
        Cause.EKM_ERROR: (_EXTERNAL_KEY,),
        Cause.EKM_UNREACHABLE: (_EXTERNAL_KEY,),
    },
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
    advice={
        Reason.TIMEOUT: "Check https://status.cloud.google.com, then the network and its DNS.",
        Reason.UNAVAILABLE: "Check https://status.cloud.google.com, then the network and its DNS.",
        Reason.UNAUTHENTICATED: "Mount the service account's credentials, and check the clock.",
        Reason.QUOTA_EXHAUSTED: "Find the caller in the project's quota page, and raise the quota.",
        Reason.KEY_NOT_FOUND: "Compare key in the configuration with what gcloud kms keys list shows.",
        Reason.KEY_DESTROYED: "Restore the version now: after its date it is gone for good.",
        Cause.ROLE_MISSING: "Grant the service account its role on this key, unless a deny policy is in the way.",
        Cause.PERIMETER: "Let the owner of the VPC Service Controls perimeter admit this account and network.",
        Cause.API_DISABLED: "Enable the Cloud KMS API in the project that the error names.",
        Cause.BILLING_DISABLED: "Link the project that the error names to an open billing account.",
        Cause.PROJECT_UNUSABLE: "Restore the project, or appeal its suspension; check its name in the configuration.",
        Cause.QUOTA_PROJECT: "Correct the project that the credentials charge, or allow the account to use it.",
        Cause.ORG_POLICY: "Ask the administrators of the organization for an exception, or undo the policy's change.",
        Cause.JUSTIFICATION: "Allow CUSTOMER_INITIATED_ACCESS in the key's access justifications policy.",
        Cause.ACCOUNT_DISABLED: "Enable or restore the service account, or configure another one.",
        Cause.TOKEN_EXPIRED: "Check the clock, and what renews the token; then restart what holds it.",
        Cause.SCOPE_MISSING: "Give the machine, or the token, the scope https://www.googleapis.com/auth/cloudkms.",
        Cause.CREDENTIALS_INVALID: "Mount a valid key of the service account, and check the clock.",
        Cause.EKM_UNREACHABLE: "Check network, DNS and load of the external key manager with its operator.",
        Cause.EKM_DENIED: "Ask the key manager's operator to allow Google's access to this key; only then enable the "
        "version: the next refusal disables it again.",
        Cause.EKM_NOT_FOUND: "Compare the version's external key URI or path with what the key manager holds.",
        Cause.EKM_ERROR: "Give the key manager's operator the error and its time.",
        Cause.EKM_DISABLED: "Ask the key manager's operator to allow the key first: a version that is enabled before "
        "is disabled by the next refusal.",
        Cause.RATE_LIMIT: "Find who uses this quota, and raise it in the project that the error names.",
    },
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
