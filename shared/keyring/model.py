"""A data key (DEK) as it is stored: wrapped, never in clear. Frozen, no I/O."""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

LOCAL_KEK: Final = "local"
"""`DataKey.kek` of a key that is wrapped by the service's own local key; no KMS resource has such a name."""
ALGORITHM: Final = "AES-256-GCM"
"""What a data key is used with."""
KEY_BYTES: Final = 32
"""Of a data key."""
MAX_VERSION: Final = 2**31 - 1
"""Of a KMS key that the keyring's tables can hold: PostgreSQL's integers end there."""
UNREADABLE_VERSION: Final = -1
"""What a version reads as where another program wrote something else there: it may be any."""


class DataKeyStatus(StrEnum):
    """What a data key is used for."""

    PENDING = "pending"
    """Stored, not used yet: every instance of the service gets to know it before it becomes active."""
    ACTIVE = "active"
    """Encrypts new records; at most one."""
    RETIRED = "retired"
    """Decrypts the records that it once encrypted."""
    UNKNOWN = "unknown"
    """Whatever else another hand wrote there: it decrypts, too, and nothing makes it active."""

    @classmethod
    def _missing_(cls, value: object) -> "DataKeyStatus":  # noqa: ARG003
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key's 32 bytes, encrypted by a key-encryption key (KEK)."""

    ciphertext: bytes
    kek: str
    """Full resource name of the KMS key, or `LOCAL_KEK`."""
    kek_version: int
    """Number of the KMS key's version; 0 for the local key, which has no versions."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """One row of the keyring."""

    id: str
    status: DataKeyStatus
    wrapped: WrappedKey
    fingerprint: bytes
    """See `compute_fingerprint`: a wrong unwrap is noticed before it encrypts anything."""
    created_at: datetime
    """Aware, in UTC."""
    algorithm: str = ALGORITHM


def build_wrapping_aad(data_key_id: str) -> bytes:
    """The additional authenticated data of a wrap: a wrapped key that is moved to another row no longer unwraps."""
    return b"keypulse data key\0" + data_key_id.encode()


def compute_fingerprint(secret: bytes) -> bytes:
    """32 bytes that tell one data key from every other, and nothing else about it."""
    return hmac.digest(secret, b"keypulse data key fingerprint", "sha256")


class KeyringFingerprint:
    """The fingerprint of a whole keyring, taken page by page: the same as long as every data key is."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, keys: Iterable[DataKey]) -> None:
        """Takes the next ones, in the order of their ids."""
        for key in keys:
            self._hash.update(f"{key.id} {key.fingerprint.hex()}\n".encode())

    def hexdigest(self) -> str:
        """Of all that were added."""
        return self._hash.hexdigest()
