"""AES-256-GCM with the key and version in the ciphertext's header.

    1 byte format · 8 bytes fingerprint of the key's name · 4 bytes number of the version · 12 bytes nonce · AES-GCM

The header is authenticated together with the caller's AAD, so a changed version number never decrypts.
"""

import hashlib
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_FORMAT = 1
_HEADER = struct.Struct(">B8sI")
_NONCE = 12
_TAG = 16


class DecryptionError(Exception):
    """The ciphertext is not of this key version with this AAD."""


def create_material() -> bytes:
    """The secret of a new version: 32 random bytes."""
    return AESGCM.generate_key(256)


def encrypt(plaintext: bytes, aad: bytes, *, key: str, version: int, material: bytes) -> bytes:
    """The ciphertext; `key` is the key's name, `version` the number of the version that `material` belongs to."""
    header = _HEADER.pack(_FORMAT, _fingerprint_key(key), version)
    nonce = os.urandom(_NONCE)
    return header + nonce + AESGCM(material).encrypt(nonce, plaintext, header + aad)


def parse_version(ciphertext: bytes, *, key: str) -> int | None:
    """Return the version of `key` that made this ciphertext; None if `key` did not."""
    if len(ciphertext) < _HEADER.size + _NONCE + _TAG:
        return None
    format_, fingerprint, number = _HEADER.unpack_from(ciphertext)
    return int(number) if (format_, fingerprint) == (_FORMAT, _fingerprint_key(key)) else None


def decrypt(ciphertext: bytes, aad: bytes, *, material: bytes) -> bytes:
    """The plaintext. Raises DecryptionError."""
    header, nonce, encrypted = (
        ciphertext[: _HEADER.size],
        ciphertext[_HEADER.size : _HEADER.size + _NONCE],
        ciphertext[_HEADER.size + _NONCE :],
    )
    try:
        return AESGCM(material).decrypt(nonce, encrypted, header + aad)
    except InvalidTag:
        raise DecryptionError from None


def _fingerprint_key(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:8]
