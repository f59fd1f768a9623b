"""AES-256-GCM with its nonce in front: encrypts bytes with a key, and decrypts them."""

import os
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# 96 bits, at random: see MAX_DATA_KEY_ENCRYPTIONS.
_NONCE_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class UnwrappedKey:
    id: str
    secret: bytes = field(repr=False)


class DecryptionError(ValueError):
    """The ciphertext was changed, or belongs to another key or to other additional data."""


def encrypt(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """Nonce, ciphertext and tag; `aad` is bound to them and is needed to open them."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, aad)


def decrypt(key: bytes, ciphertext: bytes, aad: bytes) -> bytes:
    """The plaintext. Raises DecryptionError."""
    try:
        return AESGCM(key).decrypt(ciphertext[:_NONCE_BYTES], ciphertext[_NONCE_BYTES:], aad)
    except (InvalidTag, ValueError):  # ValueError: shorter than a nonce
        raise DecryptionError from None
