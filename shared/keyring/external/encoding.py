"""How a column stores a wrapped key: as bytes, as text, or inside of what Tink wrote.

Tink's formats are read as tink-py 1.16 writes them: an envelope (`KmsEnvelopeAead`) is four bytes of length, the
wrapped key and the payload; an encrypted keyset is JSON with `encryptedKeyset`, or a message with it as field 2.
Only the wrapped key is replaced; everything else stays.
"""

import base64
import binascii
import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, NamedTuple

MAX_TINK_WRAPPED_BYTES: Final = 4096
"""Of an envelope's wrapped key: what tink-py accepts."""
_LENGTH_BYTES: Final = 4
_KEYSET_FIELD: Final = b"\x12"
"""Field 2 of the message `EncryptedKeyset`, a length-delimited one."""
_KEYSET_NAME: Final = "encryptedKeyset"


class Encoding(StrEnum):
    """How the wrapped key is stored."""

    RAW = "raw"
    """What KMS's Encrypt gave, as bytes."""
    BASE64 = "base64"
    """The same as text."""
    HEX = "hex"
    TINK = "tink"
    """Inside of an envelope or of an encrypted keyset of Tink; as bytes, or base64 of them, or JSON."""


class EncodingError(ValueError):
    """A value is not stored as expected; the message says what was, and holds no value."""


class StoredWrap(NamedTuple):
    """A wrapped key in its column."""

    ciphertext: bytes
    """What KMS's Encrypt gave."""
    replace: Callable[[bytes], bytes | str]
    """The column's value with another ciphertext."""


def parse_stored_wrap(encoding: Encoding, stored: object) -> StoredWrap:
    """Finds the wrapped key in a column's value. Raises EncodingError."""
    if isinstance(stored, bytearray | memoryview):
        stored = bytes(stored)
    if not isinstance(stored, bytes | str) or not stored:
        raise EncodingError(f"expected bytes or text, got {type(stored).__name__ if stored else 'nothing'}")
    return _PARSERS[encoding](stored)


def parse_any_wrap(encoding: Encoding, stored: object) -> StoredWrap:
    """The same, or all that stands in the column instead of a wrapped key: of Tink's it would be only a part."""
    try:
        return parse_stored_wrap(encoding, stored)
    except EncodingError:
        if encoding not in _ENCODERS or not isinstance(stored, bytes | str):
            raise
    whole = StoredWrap(_to_bytes(stored), _ENCODERS[encoding])
    return whole if encoding is Encoding.RAW else _in_type_of(stored, whole)


def _parse_raw(stored: bytes | str) -> StoredWrap:
    if isinstance(stored, str):
        raise EncodingError("expected bytes, got text; set `encoding` to base64, hex or tink")
    return StoredWrap(stored, lambda ciphertext: ciphertext)


def _parse_base64(stored: bytes | str) -> StoredWrap:
    return _in_type_of(stored, StoredWrap(_decode_base64(stored), base64.b64encode))


def _parse_hex(stored: bytes | str) -> StoredWrap:
    try:
        ciphertext = binascii.unhexlify(stored)
    except (binascii.Error, ValueError):
        raise EncodingError("expected hexadecimal digits") from None
    is_upper = stored == stored.upper() != stored.lower()
    return _in_type_of(
        stored, StoredWrap(ciphertext, lambda new: new.hex().upper().encode() if is_upper else new.hex().encode())
    )


def _parse_tink(stored: bytes | str) -> StoredWrap:
    if stored.lstrip()[:1] in (b"{", "{"):
        return _in_type_of(stored, _parse_keyset_json(stored))
    if isinstance(stored, str):
        inner = _parse_tink_bytes(_decode_base64(stored))
        return _in_type_of(
            stored, StoredWrap(inner.ciphertext, lambda new: base64.b64encode(_to_bytes(inner.replace(new))))
        )
    return _parse_tink_bytes(stored)


def _parse_tink_bytes(stored: bytes) -> StoredWrap:
    if stored[:1] == _KEYSET_FIELD:
        return _parse_keyset(stored)
    end = _LENGTH_BYTES + int.from_bytes(stored[:_LENGTH_BYTES], "big")
    if not _LENGTH_BYTES < end <= min(len(stored), _LENGTH_BYTES + MAX_TINK_WRAPPED_BYTES):
        raise EncodingError("expected an envelope or an encrypted keyset of Tink")
    payload = stored[end:]
    return StoredWrap(stored[_LENGTH_BYTES:end], lambda new: len(new).to_bytes(_LENGTH_BYTES, "big") + new + payload)


def _parse_keyset(stored: bytes) -> StoredWrap:
    """A protocol buffer whose first field is the encrypted keyset; what follows it tells of the keys, in clear."""
    length, shift, at = 0, 0, 1
    while at < len(stored) and shift < 35:
        length |= (stored[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if stored[at - 1] < 0x80:
            break
    if not 0 < length <= len(stored) - at:
        raise EncodingError("expected an encrypted keyset of Tink, which ends too early")
    rest = stored[at + length :]
    return StoredWrap(stored[at : at + length], lambda new: _KEYSET_FIELD + _encode_length(len(new)) + new + rest)


def _encode_length(length: int) -> bytes:
    parts = []
    while length >= 0x80:
        parts.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*parts, length])


def _parse_keyset_json(stored: bytes | str) -> StoredWrap:
    try:
        document: Any = json.loads(stored)
        ciphertext = _decode_base64(document[_KEYSET_NAME])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise EncodingError(f"expected an encrypted keyset of Tink, JSON with {_KEYSET_NAME}") from None
    return StoredWrap(
        ciphertext,
        lambda new: json.dumps({**document, _KEYSET_NAME: base64.b64encode(new).decode()}).encode(),
    )


def _decode_base64(stored: bytes | str) -> bytes:
    try:
        return base64.b64decode(stored, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise EncodingError("expected base64, of the standard alphabet and with its padding") from None


def _in_type_of(stored: bytes | str, wrap: StoredWrap) -> StoredWrap:
    """A text stays a text."""
    if isinstance(stored, bytes):
        return wrap
    return StoredWrap(wrap.ciphertext, lambda ciphertext: _to_bytes(wrap.replace(ciphertext)).decode())


def _to_bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


_PARSERS: Final[dict[Encoding, Callable[[bytes | str], StoredWrap]]] = {
    Encoding.RAW: _parse_raw,
    Encoding.BASE64: _parse_base64,
    Encoding.HEX: _parse_hex,
    Encoding.TINK: _parse_tink,
}
_ENCODERS: Final[dict[Encoding, Callable[[bytes], bytes]]] = {
    Encoding.RAW: bytes,
    Encoding.BASE64: base64.b64encode,
    Encoding.HEX: binascii.hexlify,
}
