"""A wrapped key is found in what a column stores, and put back with everything else as it was."""

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.keyring.external.table import Encoding, EncodingError, parse_stored_wrap

WRAPPED = b"\x0a\x24\x00wrapped by KMS\xff"
KEYSET_INFO = b"\x1a\x0b\x08\x8f\x92\xb7\x8e\x01\x12\x04\x08\x01\x10\x01"


def envelope(wrapped: bytes, payload: bytes = b"the payload") -> bytes:
    """As tink-py's `KmsEnvelopeAead` builds it."""
    return len(wrapped).to_bytes(4, "big") + wrapped + payload


def keyset(wrapped: bytes) -> bytes:
    """The message `EncryptedKeyset`: field 2, and field 3 with the keys' ids."""
    length = len(wrapped)
    varint = bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
    return b"\x12" + varint + wrapped + KEYSET_INFO


def keyset_json(wrapped: bytes) -> str:
    info = {"primaryKeyId": 1, "keyInfo": [{"keyId": 1, "status": "ENABLED"}]}
    return json.dumps({"encryptedKeyset": base64.b64encode(wrapped).decode(), "keysetInfo": info})


STORED: dict[str, tuple[Encoding, Callable[[bytes], bytes | str]]] = {
    "raw": (Encoding.RAW, lambda wrapped: wrapped),
    "base64 as text": (Encoding.BASE64, lambda wrapped: base64.b64encode(wrapped).decode()),
    "base64 as bytes": (Encoding.BASE64, base64.b64encode),
    "hex": (Encoding.HEX, lambda wrapped: wrapped.hex()),
    "HEX": (Encoding.HEX, lambda wrapped: wrapped.hex().upper()),
    "envelope": (Encoding.TINK, envelope),
    "envelope as text": (Encoding.TINK, lambda wrapped: base64.b64encode(envelope(wrapped)).decode()),
    "keyset": (Encoding.TINK, keyset),
    "keyset as text": (Encoding.TINK, lambda wrapped: base64.b64encode(keyset(wrapped)).decode()),
    "keyset as JSON": (Encoding.TINK, keyset_json),
    "keyset as JSON in bytes": (Encoding.TINK, lambda wrapped: keyset_json(wrapped).encode()),
}


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("new", [b"n", b"of another length" * 20])
def test_a_wrapped_key_is_replaced_where_it_stands(name: str, new: bytes) -> None:
    encoding, build = STORED[name]
    found = parse_stored_wrap(encoding, build(WRAPPED))
    assert found.ciphertext == WRAPPED
    assert found.replace(new) == build(new)
    assert found.replace(WRAPPED) == build(WRAPPED)


def test_a_keyset_of_the_java_library_is_read() -> None:
    text = keyset_json(WRAPPED).replace("=", "\\u003d")
    found = parse_stored_wrap(Encoding.TINK, text)
    assert found.ciphertext == WRAPPED
    assert json.loads(found.replace(b"new")) == json.loads(keyset_json(b"new"))


@pytest.mark.parametrize(
    ("encoding", "stored"),
    [
        (Encoding.RAW, "text"),
        (Encoding.RAW, b""),
        (Encoding.RAW, 7),
        (Encoding.BASE64, "no base64!"),
        (Encoding.BASE64, "abc"),
        (Encoding.BASE64, "YWJ_"),
        (Encoding.HEX, "0g"),
        (Encoding.HEX, "abc"),
        (Encoding.TINK, b"\0\0\0\0rest"),
        (Encoding.TINK, b"\0\0\0\x09too"),
        (Encoding.TINK, b"\0\0\x10\x01" + bytes(5000)),
        (Encoding.TINK, b"\x12\xff\xff\xff\xff\xff\xff"),
        (Encoding.TINK, b"\x12\x05abc"),
        (Encoding.TINK, "{}"),
        (Encoding.TINK, '{"encryptedKeyset": 5}'),
        (Encoding.TINK, "[" * 100_000),
    ],
)
def test_what_is_stored_otherwise_is_refused_without_its_value(encoding: Encoding, stored: object) -> None:
    with pytest.raises(EncodingError, match="expected") as refused:
        parse_stored_wrap(encoding, stored)
    assert "no base64!" not in str(refused.value)


@given(st.sampled_from(Encoding), st.binary(max_size=80) | st.text(max_size=80))
def test_whatever_is_stored_is_read_or_refused(encoding: Encoding, stored: bytes | str) -> None:
    try:
        found = parse_stored_wrap(encoding, stored)
    except EncodingError:
        return
    assert parse_stored_wrap(encoding, found.replace(b"new")).ciphertext == b"new"
