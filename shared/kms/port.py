"""The port of a key management service: what a probe and a keyring need of it, in types of no vendor.

A version of a key is named by an opaque string of 1 to `MAX_VERSION_LENGTH` printable ASCII characters. Versions are
compared for equality only; they are ordered by their place in `KeyDescription.versions`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from shared.kms.fixes import KmsProfile
from shared.kms.reason import Cause, Reason, format_label

MAX_VERSION_LENGTH: Final = 128
LOCAL_KEY_NAME: Final = "local"
"""No key of a KMS has this name: a keyring writes it where a service's own local key wraps."""


def is_version(value: object) -> bool:
    """Whether it can name a version of a key."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_VERSION_LENGTH:
        return False
    return value.isascii() and value.isprintable()


class VersionState(StrEnum):
    """What a version can be used for: the label `state` of `kms_key_versions`."""

    USABLE = "usable"
    """It encrypts where it is the primary version, and decrypts."""
    DECRYPT_ONLY = "decrypt_only"
    """It decrypts, and cannot become the primary version."""
    DISABLED = "disabled"
    """It can be enabled again."""
    PENDING_DESTRUCTION = "pending_destruction"
    """It is not usable, and can be restored until its date."""
    DESTROYED = "destroyed"
    """It is gone for good."""
    NOT_READY = "not_ready"
    """It has never encrypted anything: it is being generated or imported, or that failed."""
    UNKNOWN = "unknown"

    @property
    def may_have_ciphertexts(self) -> bool:
        """Whether ciphertexts of the version may exist that can still be needed."""
        return self not in {VersionState.DESTROYED, VersionState.NOT_READY}


@dataclass(frozen=True, slots=True)
class EncryptResult:
    """An encryption whose checksums were correct in both directions."""

    ciphertext: bytes
    version: str
    protection_level: str
    """`SOFTWARE`, `HSM`, `EXTERNAL`, …"""
    version_number: int | None = None
    """The number of the version, for a metric; None if the provider does not number versions."""


@dataclass(frozen=True, slots=True)
class DecryptResult:
    """A decryption whose checksums were correct in both directions."""

    plaintext: bytes
    is_primary: bool
    """Whether the key's primary version decrypted it."""
    protection_level: str = ""
    """As of `EncryptResult`; empty if the provider does not tell it."""


class KeyStoreKind(StrEnum):
    EKM = "ekm"
    """A connection to an external key manager."""
    HSM = "hsm"
    """A hardware security module of one customer."""


@dataclass(frozen=True, slots=True)
class KeyStore:
    """What holds a key in place of the service itself."""

    kind: KeyStoreKind
    name: str
    """Its full name."""
    permission: str
    """The permission that a check of it needs, as the provider names it."""
    problem: str = ""
    """Why no key in it can be used, in one sentence; empty if it was not checked."""
    disable_at: float | None = None
    """Unix seconds at which it is disabled unless somebody refreshes it; None if never, or if it was not checked."""


@dataclass(frozen=True, slots=True)
class KeyVersion:
    id: str
    """Opaque."""
    state: VersionState
    protection_level: str
    destroy_at: float | None
    """Unix seconds; None if no destruction is scheduled."""
    destroyed_at: float | None = None
    """Unix seconds; None while it is not destroyed."""
    provider_state: str = ""
    """The state as the provider names it, such as `ENABLED`; empty if `state` says it."""
    display_name: str = ""
    """For people; empty if the id is readable itself."""
    number: int | None = None
    """For a metric; None if the provider does not number versions."""
    created_at: float | None = None
    """Unix seconds; None where the provider does not tell."""
    failure: str = ""
    """Why its generation, import or external destruction failed, in the provider's words."""

    @property
    def label(self) -> str:
        """How a person is shown the version."""
        return self.display_name or self.id

    @property
    def state_label(self) -> str:
        """How a person is shown the state: as the provider calls it."""
        return self.provider_state or self.state.replace("_", " ")


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """A key and all its versions, as they were read."""

    primary_version: str | None
    """The version that encrypts; None if there is none."""
    next_rotation_at: float | None
    """Unix seconds; None if none is scheduled."""
    versions: tuple[KeyVersion, ...]
    """All of them, the oldest first."""
    call_count: int
    """How many calls this took: a long list comes in pages."""
    key_store: KeyStore | None = None
    """What holds the key in place of the service, not checked; None if the service does."""
    problem: str = ""
    """What endangers the whole key, in one sentence; empty if nothing does."""

    def find_version(self, version: str | None) -> KeyVersion | None:
        """The version of that id; None if the key has none."""
        return next((each for each in self.versions if each.id == version), None)

    def get_label(self, version: str) -> str:
        """How a person is shown the version of that id."""
        found = self.find_version(version)
        return found.label if found else version

    def list_older_versions(self) -> tuple[KeyVersion, ...]:
        """The versions before the primary one, the oldest first; all if there is none."""
        ids = [each.id for each in self.versions]
        return self.versions[: ids.index(self.primary_version)] if self.primary_version in ids else self.versions


@dataclass(frozen=True, slots=True)
class ProtectedResources:
    """What the provider's own products protect with one version, as its inventory knows it."""

    version: str
    resources: int = 0
    projects: int = 0
    """In which the resources are."""
    resource_types: Mapping[str, int] = field(default_factory=dict)
    """How many of each, such as `storage.googleapis.com/Bucket`; as the next two, with the provider's own names."""
    products: Mapping[str, int] = field(default_factory=dict)
    locations: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """Why more may exist."""
    problem: str = ""
    """Why it is not known; then the rest is empty."""

    def __str__(self) -> str:
        """For a person."""
        if self.problem:
            return f"not known: {self.problem}"
        counts = ", ".join(f"{number} {name}" for name, number in sorted(self.resource_types.items()))
        where = f" ({counts}; in {', '.join(sorted(self.locations))})" if self.resources else ""
        more = f"; perhaps more: {', '.join(self.warnings)}" if self.warnings else ""
        return f"{self.resources} resources in {self.projects} projects{where}{more}"


@dataclass(frozen=True, slots=True)
class ConnectivityPhase:
    """One phase of a connection to the service."""

    name: str
    """`dns`, `tcp`, `proxy`, `tls`, and from the service to an external key manager `ekm`.

    The first two are those of the proxy, where one is used.
    """
    seconds: float
    error: str | None = None
    """What went wrong, in one sentence; later phases are missing then."""
    cause: Cause = Cause.NONE
    """Where it failed."""


class Question(StrEnum):
    """A harmless call: the label `operation` of `kms_operations_total`."""

    PERMISSIONS = "test_permissions"
    KEY = "get_key"
    SERVICE = "get_service"
    """The state of the service itself, by another API."""


@dataclass(frozen=True, slots=True)
class Answer:
    question: Question
    text: str
    """What it shows, or why it failed."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a call is denied of which the service said no more, as harmless calls show it."""

    cause: Cause
    """Empty where they do not show it."""
    text: str
    """What it is, in a sentence without its full stop; a conclusion has the word `probably`."""
    answers: tuple[Answer, ...]
    """In the order of the calls."""
    values: Mapping[str, str]
    """As those of KmsError."""


class KmsError(Exception):
    """The one error of this port.

    Args:
        reason: why, as rules and metrics count it.
        detail: the service's own text, fit for a log and a person: it names keys and permissions, never key material.
        cause: what is behind the reason, where the service tells.
        values: what the service named, for the commands that fix it, such as `permission`; not checked.
        retry_after: seconds after which the service asks to try again; None where it does not.
        is_silent: the service denied the call and said no more; its cause is only the most usual one.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        cause: Cause = Cause.NONE,
        values: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        *,
        is_silent: bool = False,
    ) -> None:
        self.reason = reason
        self.detail = detail
        self.cause = cause
        self.values = values or {}
        self.retry_after = retry_after
        self.is_silent = is_silent
        super().__init__(f"{self.label}: {detail}")

    @property
    def label(self) -> str:
        """Why, in a word or two."""
        return format_label(self.reason, self.cause)

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed a moment later, with nothing fixed."""
        return (self.cause or self.reason).transient

    def name_key(self, key: str) -> "KmsError":
        """The same, whose detail begins with the key's name."""
        detail = f"{key}: {self.detail}"
        return KmsError(self.reason, detail, self.cause, self.values, self.retry_after, is_silent=self.is_silent)

    @property
    def waiting_advice(self) -> str:
        """Whether it is worth waiting, as a clause."""
        return "it may pass by itself: wait" if self.transient else "waiting changes nothing: repair that first"


class KmsKey(Protocol):
    """One key of one service. Safe for concurrent use on one event loop."""

    @property
    def profile(self) -> KmsProfile:
        """What is particular to the provider."""
        ...

    @property
    def account(self) -> str:
        """The account that calls, as the provider names it; empty while that is not known."""
        ...

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        """Encrypts under the primary version, within `timeout` seconds. Raises KmsError."""
        ...

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        """Decrypts under whichever version was used, within `timeout` seconds.

        Raises KmsError; for other authenticated data than was encrypted with, its reason is INVALID_REQUEST.
        """
        ...

    async def describe_key(self, *, timeout: float) -> KeyDescription:
        """Reads the key and all its versions, within `timeout` seconds in all. Raises KmsError."""
        ...

    async def check_permissions(self, permissions: Sequence[str], *, timeout: float) -> frozenset[str]:
        """Which of `permissions` the caller has on the key, within `timeout` seconds. Raises KmsError.

        A key that does not exist grants none.
        """
        ...

    async def explain_denial(self, permission: str, *, timeout: float) -> Diagnosis:
        """Finds out why a call that needs `permission` is denied. Never raises KmsError.

        It makes three harmless calls at most, each within `timeout` seconds, by `shared.kms.denial`.
        """
        ...

    async def check_key_store(self, store: KeyStore, *, timeout: float) -> KeyStore:
        """Checks what holds the key, within `timeout` seconds and without the use of a key. Returns what was found.

        Raises KmsError; its cause has the scope KEY_MANAGER where the service does not reach the key manager.
        """
        ...

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:
        """Opens a new connection to the service and measures each phase, within `timeout` seconds. Never raises."""
        ...

    async def read_service_clock(self, *, timeout: float) -> float | None:
        """The time by the service's clock, to the second, in unix seconds, within `timeout` seconds. Never raises.

        None if the service does not tell it, or does not answer.
        """
        ...

    async def close(self) -> None:
        """Closes the connection; calls after it raise KmsError or open a new one."""
        ...


class KmsKeyAdmin(KmsKey, Protocol):
    """A key whose versions are administered, which needs more permissions than a service ever has."""

    async def set_version_enabled(self, version: str, *, is_enabled: bool, timeout: float) -> KeyVersion:
        """Enables or disables a version, within `timeout` seconds. Returns its new state. Raises KmsError.

        It takes effect everywhere within `profile.propagation`.
        """
        ...

    async def schedule_destruction(self, version: str, *, timeout: float) -> KeyVersion:
        """Has a version destroyed after the key's own delay, within `timeout` seconds. Raises KmsError.

        Until then it can be restored; after it, nobody can decrypt what it encrypted.
        """
        ...

    async def find_protected_resources(self, version: str, *, timeout: float) -> ProtectedResources:
        """What the provider's own products protect with a version, within `timeout` seconds. Never raises.

        No provider knows what applications decrypt by themselves.
        """
        ...
