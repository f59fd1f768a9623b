"""A data key (DEK) as it is stored: wrapped, never in clear. Frozen, no I/O."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from shared.kms.port import LOCAL_KEY_NAME

LOCAL_KEK: Final = LOCAL_KEY_NAME
"""`DataKey.kek` of a key that is wrapped by the service's own local key."""
ALGORITHM: Final = "AES-256-GCM"
KEY_BYTES: Final = 32
UNREADABLE_VERSION: Final = ""
"""What a version reads as where another program wrote something else there: it may be any. No version has this name."""


class DataKeyStatus(StrEnum):
    """What a data key is used for."""

    PENDING = "pending"
    """Stored, not used yet: every instance of the service gets to know it before it becomes active."""
    ACTIVE = "active"
    """Encrypts new records; at most one."""
    RETIRED = "retired"
    """Decrypts the records that it once encrypted."""
    UNKNOWN = "unknown"
    """Another program wrote something else there: it decrypts, too, and never becomes active."""

    @classmethod
    def _missing_(cls, value: object) -> "DataKeyStatus":  # noqa: ARG003
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key's 32 bytes, encrypted by a key-encryption key (KEK)."""

    ciphertext: bytes
    kek: str
    """Full resource name of the KMS key, or `LOCAL_KEK`."""
    kek_version: str
    """The version of the KMS key, opaque; `LOCAL_KEK_VERSION` of the local key."""

    @property
    def by(self) -> tuple[str, str]:
        """What encrypted it: the key and its version."""
        return self.kek, self.kek_version


@dataclass(frozen=True, slots=True)
class DataKey:
    id: str
    status: DataKeyStatus
    wrapped: WrappedKey
    fingerprint: bytes
    """See `compute_fingerprint`: a wrong unwrap is noticed before it encrypts anything."""
    created_at: datetime
    algorithm: str = ALGORITHM
    aad: bytes | None = None
    """The additional authenticated data of its wrap; None: `build_wrapping_aad` of its id."""

    @property
    def wrapping_aad(self) -> bytes:
        return build_wrapping_aad(self.id) if self.aad is None else self.aad


def get_version_sort_key(version: str) -> tuple[tuple[int, str], ...]:
    """Orders versions for people: `2` before `10`. The order may not be that of their creation."""
    parts = re.split(r"(\d+)", version)
    return tuple((int(part), part) if part.isdecimal() else (0, part) for part in parts)


def build_wrapping_aad(data_key_id: str) -> bytes:
    """The additional authenticated data of a wrap: a wrapped key that is moved to another row no longer unwraps."""
    return b"keypulse data key\0" + data_key_id.encode()


def compute_fingerprint(secret: bytes) -> bytes:
    """32 bytes that identify the data key, and reveal nothing else about it."""
    return hmac.digest(secret, b"keypulse data key fingerprint", "sha256")


class KeyringFingerprint:
    """The fingerprint of a whole keyring, page by page: the same as long as every data key is the same."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, data_key_id: str, fingerprint: str) -> None:
        """Adds the next data key, in the order of their ids; its fingerprint is hexadecimal."""
        self._hash.update(f"{data_key_id} {fingerprint}\n".encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
