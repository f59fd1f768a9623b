"""Why a KMS call failed: a closed set, each with what it concerns and whether it may pass by itself. Pure."""

from enum import StrEnum
from typing import Self


class Scope(StrEnum):
    """What a failure concerns."""

    SERVICE = "service"
    """The service, or the network in between: no key of it can be used."""
    ACCOUNT = "account"
    """The caller: its credentials, its permissions or its quota. Keys and ciphertexts are intact."""
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
