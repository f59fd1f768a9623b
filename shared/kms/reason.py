"""Why a KMS call failed: a reason, and the cause behind it where the service tells; both closed sets. Pure."""

from enum import StrEnum
from typing import Self


class Scope(StrEnum):
    """What a failure concerns."""

    SERVICE = "service"
    """The service, or the network in between: no key of it can be used."""
    ACCOUNT = "account"
    """The caller: its credentials, its permissions or its quota. Keys and ciphertexts are intact."""
    PROJECT = "project"
    """What surrounds the key: its project, a perimeter, a policy. Keys and ciphertexts are intact."""
    KEY_MANAGER = "key manager"
    """The partner's system that holds an external key."""
    KEY = "key"
    """The whole key, with every version."""
    VERSION = "version"
    """One version of the key, and whatever it encrypted."""
    CIPHERTEXT = "ciphertext"
    """One ciphertext, its authenticated data, or the bytes of one call."""
    KEYPULSE = "keypulse"


class Reason(StrEnum):
    """The label `reason` of `kms_probe_failures_total`."""

    scope: Scope
    transient: bool
    """Whether the same call may succeed a moment later, with nothing fixed."""

    TIMEOUT = "timeout", Scope.SERVICE, True
    UNAVAILABLE = "unavailable", Scope.SERVICE, True
    PERMISSION_DENIED = "permission_denied", Scope.ACCOUNT
    UNAUTHENTICATED = "unauthenticated", Scope.ACCOUNT
    QUOTA_EXHAUSTED = "quota_exhausted", Scope.ACCOUNT, True
    KEY_NOT_FOUND = "key_not_found", Scope.KEY
    KEY_DISABLED = "key_disabled", Scope.VERSION
    KEY_DESTROYED = "key_destroyed", Scope.VERSION
    CRC_MISMATCH = "crc_mismatch", Scope.CIPHERTEXT, True
    PLAINTEXT_MISMATCH = "plaintext_mismatch", Scope.CIPHERTEXT
    INVALID_REQUEST = "invalid_request", Scope.CIPHERTEXT
    """The service refused the request itself: other authenticated data, another key's ciphertext, changed bytes."""
    INTERNAL = "internal", Scope.KEYPULSE
    """A defect of keypulse itself; a fault inside the service counts as `unavailable`."""

    def __new__(cls, value: str, scope: Scope, transient: bool = False) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.scope = scope
        member.transient = transient
        return member

    @property
    def concerns_data(self) -> bool:
        """Whether what was encrypted cannot be read for this reason, although service and account are fine."""
        return self.scope in {Scope.KEY, Scope.VERSION, Scope.CIPHERTEXT}


class Cause(StrEnum):
    """What is behind a reason: the label `cause` of `kms_probe_failure_info`."""

    reason: Reason
    """The reason that it stands beside."""
    scope: Scope
    transient: bool
    """Whether the same call may succeed a moment later, with nothing fixed."""

    NONE = "", Reason.INTERNAL, Scope.KEYPULSE
    """The reason says all that is known; it has scope and transience."""

    ROLE_MISSING = "role_missing", Reason.PERMISSION_DENIED, Scope.ACCOUNT
    PERIMETER = "perimeter", Reason.PERMISSION_DENIED, Scope.PROJECT
    API_DISABLED = "api_disabled", Reason.PERMISSION_DENIED, Scope.PROJECT
    BILLING_DISABLED = "billing_disabled", Reason.PERMISSION_DENIED, Scope.PROJECT
    PROJECT_UNUSABLE = "project_unusable", Reason.PERMISSION_DENIED, Scope.PROJECT
    """It is suspended or deleted, or its name is wrong."""
    QUOTA_PROJECT = "quota_project", Reason.PERMISSION_DENIED, Scope.ACCOUNT
    """The account may not use the project that is to be charged."""
    ORG_POLICY = "org_policy", Reason.PERMISSION_DENIED, Scope.PROJECT
    JUSTIFICATION = "justification", Reason.PERMISSION_DENIED, Scope.KEY
    """The key's access justifications policy does not allow the call."""

    ACCOUNT_DISABLED = "account_disabled", Reason.UNAUTHENTICATED, Scope.ACCOUNT
    TOKEN_EXPIRED = "token_expired", Reason.UNAUTHENTICATED, Scope.ACCOUNT
    SCOPE_MISSING = "scope_missing", Reason.UNAUTHENTICATED, Scope.ACCOUNT
    CREDENTIALS_INVALID = "credentials_invalid", Reason.UNAUTHENTICATED, Scope.ACCOUNT
    LOGIN_REFUSED = "login_refused", Reason.UNAUTHENTICATED, Scope.ACCOUNT

    EKM_UNREACHABLE = "ekm_unreachable", Reason.UNAVAILABLE, Scope.KEY_MANAGER, True
    EKM_DENIED = "ekm_denied", Reason.PERMISSION_DENIED, Scope.KEY_MANAGER
    EKM_NOT_FOUND = "ekm_not_found", Reason.KEY_NOT_FOUND, Scope.KEY_MANAGER
    EKM_ERROR = "ekm_error", Reason.UNAVAILABLE, Scope.KEY_MANAGER, True
    EKM_DISABLED = "ekm_disabled", Reason.KEY_DISABLED, Scope.KEY_MANAGER
    """The provider disabled the version because the key manager denied it."""

    RATE_LIMIT = "rate_limit", Reason.QUOTA_EXHAUSTED, Scope.ACCOUNT, True

    SEALED = "sealed", Reason.UNAVAILABLE, Scope.SERVICE, True
    STANDBY = "standby", Reason.UNAVAILABLE, Scope.SERVICE, True
    AUDIT_BLOCKED = "audit_blocked", Reason.UNAVAILABLE, Scope.SERVICE, True
    MOUNT_MISSING = "mount_missing", Reason.KEY_NOT_FOUND, Scope.SERVICE
    NAMESPACE_MISSING = "namespace_missing", Reason.KEY_NOT_FOUND, Scope.SERVICE
    VERSION_FLOOR = "version_floor", Reason.KEY_DISABLED, Scope.VERSION
    TRIMMED = "trimmed", Reason.KEY_DESTROYED, Scope.VERSION
    SOFT_DELETED = "soft_deleted", Reason.KEY_DISABLED, Scope.KEY

    DNS = "dns", Reason.UNAVAILABLE, Scope.SERVICE, True
    CONNECT = "connect", Reason.UNAVAILABLE, Scope.SERVICE, True
    TLS = "tls", Reason.UNAVAILABLE, Scope.SERVICE
    PROXY = "proxy", Reason.UNAVAILABLE, Scope.SERVICE, True
    """Whatever concerns the proxy: its name, its address, its answer. Also under `timeout`, as the three before it."""
    OTHER_KEY = "other_key", Reason.KEY_NOT_FOUND, Scope.SERVICE
    """The service used another key than the one that it was asked for."""
    MALFORMED_ANSWER = "malformed_answer", Reason.UNAVAILABLE, Scope.SERVICE, True

    def __new__(cls, value: str, reason: Reason, scope: Scope, transient: bool = False) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.reason = reason
        member.scope = scope
        member.transient = transient
        return member


def format_label(reason: Reason, cause: Cause) -> str:
    """Why, in a word or two, the cause first: `perimeter (permission_denied)`."""
    return f"{cause} ({reason})" if cause else reason
