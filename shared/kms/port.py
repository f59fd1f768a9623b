"""The port of a key management service: what a probe and a keyring need of it, in nobody's own types."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.kms.reason import Reason


@dataclass(frozen=True, slots=True)
class EncryptResult:
    """An encryption whose checksums, both ways, were right."""

    ciphertext: bytes
    version: str
    """The version that was used, by its full resource name."""
    protection_level: str
    """`SOFTWARE`, `HSM`, `EXTERNAL`, …"""


@dataclass(frozen=True, slots=True)
class DecryptResult:
    """A decryption whose checksums, both ways, were right."""

    plaintext: bytes
    is_primary: bool
    """Whether the key's primary version decrypted it."""


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One version of a key."""

    id: str
    state: str
    """In the service's own words, such as `ENABLED`; one that is newer than its client is a bare number."""
    protection_level: str
    destroy_at: float | None
    """Unix seconds; None where no destruction is scheduled."""
    destroyed_at: float | None = None
    """Unix seconds; None while it is not destroyed."""


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """A key and all its versions, as they were read."""

    primary_version: str | None
    """Number of the version that encrypts; None where there is none."""
    next_rotation_at: float | None
    """Unix seconds; None where none is planned."""
    versions: tuple[KeyVersion, ...]
    call_count: int
    """How many calls this took: a long list comes in pages."""


@dataclass(frozen=True, slots=True)
class ConnectivityPhase:
    """One step on the way to the service."""

    name: str
    """`dns`, `tcp` or `tls`; or `proxy` alone, where one stands in the way and nothing is measured."""
    seconds: float
    error: str | None = None
    """What went wrong, or which proxy it is, in one sentence; later phases are missing then."""


class KmsError(Exception):
    """The one error of this port.

    `detail` is the service's own text, fit for a log and a person: it names keys and permissions, never key material.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class KmsKey(Protocol):
    """One key of one service. Safe for concurrent use on one event loop."""

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        """Encrypts under the primary version, within `timeout` seconds. Raises KmsError."""
        ...

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        """Decrypts under whichever version was used, within `timeout` seconds. Raises KmsError."""
        ...

    async def describe_key(self, *, timeout: float) -> KeyDescription:
        """Reads the key and all its versions, within `timeout` seconds in all. Raises KmsError."""
        ...

    async def check_permissions(self, permissions: Sequence[str], *, timeout: float) -> frozenset[str]:
        """Those of `permissions` that IAM grants on the key, within `timeout` seconds. Raises KmsError.

        A key that does not exist grants none.
        """
        ...

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:
        """Measures the way to the service anew, on a connection of its own, within `timeout` seconds. Never raises."""
        ...

    async def close(self) -> None:
        """Closes the connection; calls after it raise KmsError or open a new one."""
        ...


class KmsKeyAdmin(KmsKey, Protocol):
    """A key whose versions are administered, which needs more permissions than a service ever has."""

    async def set_version_enabled(self, version: int, *, is_enabled: bool, timeout: float) -> KeyVersion:
        """Enables or disables a version, within `timeout` seconds; what it is by then. Raises KmsError.

        Disabling takes effect within minutes, rarely hours: https://cloud.google.com/kms/docs/consistency.
        """
        ...

    async def schedule_destruction(self, version: int, *, timeout: float) -> KeyVersion:
        """Has a version destroyed after the key's own delay, within `timeout` seconds. Raises KmsError.

        Until then it can be restored; after it, nobody can decrypt what it encrypted.
        """
        ...
