import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.kms_emulator import ciphertext as crypto

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
MATERIAL = crypto.create_material()


@given(plaintext=st.binary(max_size=300), aad=st.binary(max_size=300), version=st.integers(1, 2**32 - 1))
def test_what_was_encrypted_is_decrypted_and_names_its_version(plaintext: bytes, aad: bytes, version: int) -> None:
    ciphertext = crypto.encrypt(plaintext, aad, key=KEY, version=version, material=MATERIAL)
    assert crypto.parse_version(ciphertext, key=KEY) == version
    assert crypto.decrypt(ciphertext, aad, material=MATERIAL) == plaintext


@given(position=st.integers(0, 13 + 12 + 7 + 16 - 1), bit=st.integers(0, 7))
def test_no_bit_can_be_changed_unnoticed(position: int, bit: int) -> None:
    ciphertext = bytearray(crypto.encrypt(b"payload", b"aad", key=KEY, version=1, material=MATERIAL))
    ciphertext[position] ^= 1 << bit
    with pytest.raises(crypto.DecryptionError):
        crypto.decrypt(bytes(ciphertext), b"aad", material=MATERIAL)


def test_other_aad_and_other_material_do_not_decrypt() -> None:
    ciphertext = crypto.encrypt(b"payload", b"aad", key=KEY, version=1, material=MATERIAL)
    for aad, material in [(b"other", MATERIAL), (b"", MATERIAL), (b"aad", crypto.create_material())]:
        with pytest.raises(crypto.DecryptionError):
            crypto.decrypt(ciphertext, aad, material=material)


def test_a_ciphertext_of_another_key_has_no_version_of_this_one() -> None:
    ciphertext = crypto.encrypt(b"", b"", key=KEY, version=1, material=MATERIAL)
    assert crypto.parse_version(ciphertext, key=KEY) == 1
    assert crypto.parse_version(ciphertext, key=KEY + "2") is None


@pytest.mark.parametrize("garbage", [b"", b"\x01", b"\x02" * 200])
def test_garbage_has_no_version(garbage: bytes) -> None:
    assert crypto.parse_version(garbage, key=KEY) is None


def test_the_same_plaintext_never_gives_the_same_ciphertext() -> None:
    ciphertexts = {crypto.encrypt(b"x", b"", key=KEY, version=1, material=MATERIAL) for _ in range(100)}
    assert len(ciphertexts) == 100
