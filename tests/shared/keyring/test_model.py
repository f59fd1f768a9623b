"""What is computed of a data key must never change: it stands in databases, backups and reports."""

import hashlib

from shared.keyring.model import (
    KeyringFingerprint,
    build_wrapping_aad,
    compute_fingerprint,
)

SECRET = bytes(range(32))


def test_the_fingerprint_of_a_data_key_is_this_one() -> None:
    # printf 'keypulse data key fingerprint' | openssl dgst -sha256 -mac HMAC -macopt hexkey:000102…1f
    assert compute_fingerprint(SECRET).hex() == "bdf75b44d713ba274020d0863de080fea52f2a0190ca18e1573628d813b938e4"


def test_the_fingerprint_of_all_is_that_of_their_lines() -> None:
    whole = KeyringFingerprint()
    whole.add("a", "61")
    whole.add("b", "62")
    assert whole.hexdigest() == hashlib.sha256(b"a 61\nb 62\n").hexdigest()


def test_a_wrap_is_bound_to_its_row() -> None:
    assert build_wrapping_aad("a") == b"keypulse data key\0a"
