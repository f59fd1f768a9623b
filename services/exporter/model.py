"""The data that moves through the exporter: frozen, no I/O, no types of a vendor or a backend."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from shared.backend_contract import CryptoMode
from shared.credentials import Credentials, Validity
from shared.kms.fixes import GENERIC_PROFILE, KmsProfile
from shared.kms.port import ConnectivityPhase, KeyDescription, KeyStore
from shared.kms.reason import Cause, Reason, format_label


class Operation(StrEnum):
    """The label `operation`: one billable call of a round trip."""

    ENCRYPT = "encrypt"
    DECRYPT = "decrypt"
    CANARY_DECRYPT = "canary_decrypt"
    """Of a ciphertext that an older version made."""


class KeyRead(StrEnum):
    """The label `operation` of `kms_operations_total` for what is only read."""

    GET_KEY = "get_key"
    LIST_VERSIONS = "list_versions"
    TEST_PERMISSIONS = "test_permissions"
    GET_SERVICE = "get_service"
    """The state of the service, for the diagnosis of a denial."""
    VERIFY_CONNECTIVITY = "verify_connectivity"
    """Between KMS and an external key manager."""
    GET_HSM_INSTANCE = "get_hsm_instance"


@dataclass(frozen=True, slots=True)
class TargetKey:
    """The key of a target, as it is configured."""

    provider: str = ""
    name: str = ""
    """Its full name."""
    profile: KmsProfile = GENERIC_PROFILE
    """Of the provider: what to do about its failures."""


@dataclass(frozen=True, slots=True)
class Failure:
    reason: Reason
    detail: str
    """For a log and a person; holds no key material."""
    exception: BaseException | None = None
    """The defect of our own behind `Reason.INTERNAL`, with its trace."""
    cause: Cause = Cause.NONE
    values: Mapping[str, str] = field(default_factory=dict)
    """What the service named, for the commands that fix it."""
    is_silent: bool = False
    """The service denied the call and said no more: its cause is empty, or that of a diagnosis."""

    @property
    def label(self) -> str:
        return format_label(self.reason, self.cause)


@dataclass(frozen=True, slots=True)
class Call:
    """One call to the key management service."""

    operation: Operation
    seconds: float
    """By a monotonic clock; a call that timed out lasted at least its whole timeout."""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One round trip; it succeeded where no call failed."""

    service: str
    target: str
    ended_at: float
    """Unix seconds of its end."""
    calls: tuple[Call, ...]
    """In their order, at least one; only the last one can have failed."""
    key_version: str | None
    """The version that encrypted; None if nothing was encrypted."""
    protection_level: str | None = None
    """Of that version, such as `HSM`."""
    connectivity: tuple[ConnectivityPhase, ...] = ()
    """Measured where the service did not answer: is it the network, or KMS?"""
    key_version_number: int | None = None
    """The number of the version that encrypted; None if the provider does not number versions."""

    @property
    def failed_call(self) -> Call | None:
        """The call that ended the round trip, or None if it succeeded."""
        last = self.calls[-1]
        return last if last.failure else None

    def with_failure(self, failure: Failure) -> "ProbeResult":
        """The same round trip, whose last call failed so."""
        return replace(self, calls=(*self.calls[:-1], replace(self.calls[-1], failure=failure)))


@dataclass(frozen=True, slots=True)
class Canary:
    """What a version encrypted once, kept to be decrypted again and again; of its plaintext only the digest."""

    version: str
    """The version of the key."""
    aad: bytes
    ciphertext: bytes
    plaintext_sha256: bytes
    """32 bytes."""
    created_at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """The decryption of a ciphertext that was made under an older version and kept."""

    version: str
    """The version that made it."""
    call: Call


@dataclass(frozen=True, slots=True)
class KeyInspection:
    """An inspection of a target's key; what could not be read is None, and `problems` says why."""

    service: str
    target: str
    inspected_at: float
    """Unix seconds."""
    description: KeyDescription | None
    permissions: Mapping[str, bool] | None
    """Whether the account has each permission that was checked."""
    canaries: tuple[CanaryResult, ...]
    wrong_aad_check: Call | None
    """A decryption with the wrong AAD, which has to be refused; its failure says that it was not. None if the call
    ended otherwise, so that nobody knows."""
    call_counts: Mapping[KeyRead, int]
    """How many calls of each kind were made."""
    problems: tuple[str, ...] = ()
    """One sentence each."""
    encrypt_call: Call | None = None
    """The encryption that a new canary, or the check with the wrong AAD, needed; None if none did."""
    versions_without_canary: tuple[str, ...] | None = None
    """Older versions that may be needed and have no canary, so that their ciphertexts are not checked, the newest
    first; None if that is not known, or no canaries are kept."""
    account: str = ""
    """The account that made the calls; empty if it is not known."""
    call_problems: tuple[str, ...] = ()
    """Those of `problems` that are over once a round trip succeeds: its own calls failed."""
    key_store: KeyStore | None = None
    """What holds the key in place of the KMS, as it was checked; None if there is none that the account may check."""
    key_manager_cause: Cause = Cause.NONE
    """Why KMS cannot use the key's external key manager."""
    credentials: Credentials = field(default_factory=dict)
    """What authenticates the calls, with its end."""
    is_service_unavailable: bool = False
    """The key could not be read because the service was not there."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a backend's `/healthz` says of its encryption."""

    mode: CryptoMode | None
    """None if it names none, or one that is unknown."""
    ready: bool
    mode_problem: str | None = None
    """Why the mode that it names is unknown, for a log and a person; None if it is known, or none is expected."""
    found: str = field(default="", compare=False)
    """What stands in the document where it is read, such as `/status = "UP"`. Only `doctor` shows it."""


Samples = Mapping[tuple[str, ...], float]
"""The samples of a family, by the values of its labels."""


@dataclass(frozen=True, slots=True)
class BackendState:
    """A backend as it was read last."""

    service: str
    health: Health | None
    """None if the health check did not answer in time or could not be read: the backend counts as down."""
    init_timestamp: float | None = None
    """Unix seconds of its last initialisation; None if its metrics do not say."""
    decryption_errors: float | None = None
    """Its own counter, as it is; None if its metrics do not say."""
    keyring: Mapping[str, Samples] = field(default_factory=dict)
    """The families of its data keys and their rotation, unchanged, by name; without those that it does not expose."""
    problems: tuple[str, ...] = ()
    """What could not be read, one sentence each."""
    hints: tuple[str, ...] = field(default=(), compare=False)
    """What to do about them; for `doctor`."""
    replica: str | None = None
    """The address that was read if replicas are read separately; otherwise None."""
    certificate: Validity | None = None
    """Of the one that it presented; None without TLS, or where no connection was made."""
    metrics_up: bool | None = None
    """Whether its metrics could be read; None if none are to be read."""

    @property
    def has_metrics(self) -> bool:
        """Whether its metrics have at least one name that is read."""
        return self.init_timestamp is not None or self.decryption_errors is not None or bool(self.keyring)
