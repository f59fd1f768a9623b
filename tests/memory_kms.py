"""A second KMS provider: keys in this process's memory, with versions that are named by words.

It is complete: whatever keypulse does with Cloud KMS it does with these keys. The file and one line in
`shared.kms.registry.providers` are all that it takes; `registered` adds the line for as long as a test runs.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.kms import registry
from shared.kms.denial import diagnose_denial
from shared.kms.fixes import GENERIC_COMMANDS, FixTable, FixTemplate, KmsProfile
from shared.kms.port import (
    ConnectivityPhase,
    DecryptResult,
    Diagnosis,
    EncryptResult,
    KeyDescription,
    KeyStore,
    KeyVersion,
    KmsError,
    ProtectedResources,
    VersionState,
)
from shared.kms.reason import Cause, Reason
from shared.kms.settings import ProviderSettings

DESTRUCTION_DELAY: Final = 86_400.0


def _parse_key_name(text: str) -> tuple[str, str] | None:
    """`vault/NAME`, or `vault/NAME/v/VERSION`, perhaps after `memory://`."""
    found = re.fullmatch(r"(?:memory://)?(vault/[a-z]+)(?:/v/([a-z0-9]+))?", text)
    return (found[1], found[2] or "") if found else None


_UNUSABLE: Final = {
    VersionState.DISABLED: Reason.KEY_DISABLED,
    VersionState.PENDING_DESTRUCTION: Reason.KEY_DESTROYED,
    VersionState.DESTROYED: Reason.KEY_DESTROYED,
}


PROFILE: Final = KmsProfile(
    service_name="Memory KMS",
    probe_permissions=("use", "read"),
    round_trip_permissions=("use", "use"),
    reads_per_minute=6_000.0,
    reads_per_inspection=2,
    calls_per_minute={"": 600_000},
    advice={
        Reason.KEY_NOT_FOUND: "Create the key with create_key().",
        Cause.ROLE_MISSING: "Ask whoever runs this test.",
    },
    fixes=FixTable(
        commands={
            **GENERIC_COMMANDS,
            Reason.KEY_DISABLED: (FixTemplate("Enable the version", "memory-kms enable {key} {version}"),),
        },
        key=re.compile(r"(?P<key>[a-z]+)"),
        values={"version": re.compile(r"[a-z]+")},
    ),
    parse_key_name=_parse_key_name,
    propagation="no time",
)
_NONCE_BYTES: Final = 12


@dataclass(slots=True)
class StoredKey:
    """A key as the service keeps it."""

    versions: dict[str, KeyVersion] = field(default_factory=dict)
    """The oldest first."""
    secrets: dict[str, bytes] = field(default_factory=dict)
    primary: str | None = None
    permissions: frozenset[str] = frozenset(PROFILE.probe_permissions)
    late: set[str] = field(default_factory=set)
    """Versions that still decrypt although they are disabled: that takes effect later."""
    changes: list[tuple[str, VersionState]] = field(default_factory=list)
    """Every change of a version's state."""

    def add_version(self, name: str) -> None:
        """Adds a version, and makes it the primary one."""
        self.versions[name] = KeyVersion(name, VersionState.USABLE, "MEMORY", None, display_name=name.title())
        self.secrets[name] = AESGCM.generate_key(128)
        self.primary = name

    def set_state(self, name: str, state: VersionState, destroy_at: float | None = None) -> KeyVersion:
        """Changes a version's state. Raises KmsError where there is none of that name."""
        if name not in self.versions:
            raise KmsError(Reason.KEY_NOT_FOUND, f"there is no version {name}")
        self.versions[name] = replace(self.versions[name], state=state, destroy_at=destroy_at)
        self.changes.append((name, state))
        return self.versions[name]


keys: dict[str, StoredKey] = {}
"""All keys of the service, by name."""


def create_key(name: str, *versions: str) -> StoredKey:
    """A new key; the last of its versions is the primary one."""
    keys[name] = StoredKey()
    for version in versions:
        keys[name].add_version(version)
    return keys[name]


@contextmanager
def registered() -> Iterator[None]:
    """The provider is known while the body runs; its keys end with it."""
    registry.providers["memory"] = MemoryKeySettings
    try:
        yield
    finally:
        del registry.providers["memory"]
        keys.clear()


class MemoryKeySettings(ProviderSettings):
    """A key in memory."""

    profile: ClassVar = PROFILE
    provider: Literal["memory"] = "memory"

    @property
    def service_address(self) -> str:
        return "memory"

    def connect(self) -> "MemoryKey":
        return MemoryKey(self.key)


class MemoryKey:
    """A key behind the port."""

    profile = PROFILE
    account = ""

    def __init__(self, name: str) -> None:
        self._name = name

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:  # noqa: ARG002
        key, version = self._key, self._key.primary
        if version is None:
            raise KmsError(Reason.KEY_DISABLED, "the key has no primary version")
        nonce, name = os.urandom(_NONCE_BYTES), version.encode()
        body = AESGCM(self._get_secret(key, version)).encrypt(nonce, plaintext, aad)
        return EncryptResult(bytes([len(name)]) + name + nonce + body, version, "MEMORY")

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:  # noqa: ARG002
        key, end = self._key, 1 + (ciphertext[0] if ciphertext else 0)
        version = ciphertext[1:end].decode("utf-8", "replace")
        if version not in key.versions:
            raise KmsError(Reason.INVALID_REQUEST, "decryption failed")
        nonce, body = ciphertext[end : end + _NONCE_BYTES], ciphertext[end + _NONCE_BYTES :]
        secret = self._get_secret(key, version)
        try:
            plaintext = AESGCM(secret).decrypt(nonce, body, aad)
        except (InvalidTag, ValueError):
            raise KmsError(Reason.INVALID_REQUEST, "decryption failed") from None
        return DecryptResult(plaintext, version == key.primary)

    async def describe_key(self, *, timeout: float) -> KeyDescription:  # noqa: ARG002
        key = self._key
        return KeyDescription(key.primary, None, tuple(key.versions.values()), 1)

    async def check_permissions(self, permissions: Sequence[str], *, timeout: float) -> frozenset[str]:  # noqa: ARG002
        return keys[self._name].permissions.intersection(permissions) if self._name in keys else frozenset()

    async def explain_denial(self, permission: str, *, timeout: float) -> Diagnosis:
        return await diagnose_denial(permission, lambda: self.check_permissions(("use", "read"), timeout=timeout))

    async def check_key_store(self, store: KeyStore, *, timeout: float) -> KeyStore:  # noqa: ARG002
        return store

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:  # noqa: ARG002
        return (ConnectivityPhase("tcp", 0.0),)

    async def set_version_enabled(self, version: str, *, is_enabled: bool, timeout: float) -> KeyVersion:  # noqa: ARG002
        return self._key.set_state(version, VersionState.USABLE if is_enabled else VersionState.DISABLED)

    async def schedule_destruction(self, version: str, *, timeout: float) -> KeyVersion:  # noqa: ARG002
        return self._key.set_state(version, VersionState.PENDING_DESTRUCTION, time.time() + DESTRUCTION_DELAY)

    async def find_protected_resources(self, version: str, *, timeout: float) -> ProtectedResources:  # noqa: ARG002
        return ProtectedResources(version, problem="it has no inventory")

    async def read_service_clock(self, *, timeout: float) -> float | None:  # noqa: ARG002
        return None

    async def close(self) -> None:
        pass

    @property
    def _key(self) -> StoredKey:
        if self._name not in keys:
            raise KmsError(Reason.KEY_NOT_FOUND, f"there is no key {self._name}")
        return keys[self._name]

    @staticmethod
    def _get_secret(key: StoredKey, version: str) -> bytes:
        if version not in key.late and (reason := _UNUSABLE.get(key.versions[version].state)):
            raise KmsError(reason, f"version {version} is {key.versions[version].state}")
        return key.secrets[version]
