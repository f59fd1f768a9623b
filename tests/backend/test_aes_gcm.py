import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.backend.aes_gcm import DecryptionError, UnwrappedKey, decrypt, encrypt


@given(plaintext=st.binary(max_size=4096), aad=st.binary(max_size=64))
def test_what_was_encrypted_is_decrypted(plaintext: bytes, aad: bytes) -> None:
    key = os.urandom(32)
    assert decrypt(key, encrypt(key, plaintext, aad), aad) == plaintext


@given(plaintext=st.binary(max_size=64), position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_flipped_bit_is_detected(plaintext: bytes, position: int, bit: int) -> None:
    key = os.urandom(32)
    sealed = bytearray(encrypt(key, plaintext, b"aad"))
    sealed[position % len(sealed)] ^= 1 << bit
    with pytest.raises(DecryptionError):
        decrypt(key, bytes(sealed), b"aad")


@pytest.mark.parametrize("length", [0, 1, 11, 12, 27])
def test_encrypted_bytes_that_were_cut_off_are_broken(length: int) -> None:
    key = os.urandom(32)
    with pytest.raises(DecryptionError):
        decrypt(key, encrypt(key, b"plaintext", b"")[:length], b"")


def test_another_key_or_other_additional_data_do_not_open_it() -> None:
    key = os.urandom(32)
    sealed = encrypt(key, b"plaintext", b"aad")
    for other_key, other_aad in ((os.urandom(32), b"aad"), (key, b"other"), (b"no key", b"aad")):
        with pytest.raises(DecryptionError):
            decrypt(other_key, sealed, other_aad)


def test_the_same_plaintext_is_never_encrypted_alike() -> None:
    key = os.urandom(32)
    assert len({encrypt(key, b"plaintext", b"") for _ in range(100)}) == 100


def test_a_usable_key_does_not_show_its_secret() -> None:
    assert "secret" not in repr(UnwrappedKey("id", b"secret"))
