"""Signatures of webhooks by HMAC-SHA256 with a timestamp, as the open standard Standard Webhooks defines them.

So that receivers need no code of their own: there are libraries for most languages.
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated, Final

from shared.config.file_checks import FileCheck, create_secret_check
from shared.config.secret_file import SecretFile
from shared.config.settings import FilePath

_PREFIX: Final = "whsec_"
_MIN_KEY_BYTES: Final = 24
_MAX_KEY_BYTES: Final = 64
_EXPECTED: Final = "expected a file with a signing key on its first line, whsec_ and base64"


def decode_key(text: str) -> bytes:
    """The bytes of `whsec_…`. Raises ValueError, which does not repeat it."""
    expected = f"expected whsec_ and base64 of {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} bytes"
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(expected) from None
    if not text.startswith(_PREFIX) or not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        raise ValueError(expected)
    return key


SigningKeyPath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED, decode_key))]
"""A file with a signing key, or with two, one on each line, while they are rotated; `--check` checks their shape."""


def build_signature_headers(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a signed request.

    Args:
        keys: each gives a signature, and a receiver accepts any that it knows.
        message_id: the same at each attempt.
        timestamp: of this attempt, unix seconds; a receiver refuses an old one.
        body: as it is sent.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
