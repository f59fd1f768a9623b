"""The end of a credential, read from files and tokens of every kind."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from shared.credentials import Validity, parse_token, read_certificate
from tests.shared.certificates import LOCALHOST, Authority


def jwt(claims: Any) -> str:
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return f"e30.{base64.urlsafe_b64encode(payload).decode().rstrip('=')}.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (jwt({"iat": 1000, "exp": 4600.5}) + "\n", Validity(4600.5, 1000)),
        (jwt({"nbf": 1000, "exp": 4600}), None),  # without its beginning its lifetime is not known
        (jwt({"iat": 1000}), None),
        (jwt({"iat": 1000, "exp": "soon"}), None),
        (jwt({"iat": 1000, "exp": 1e300}), None),
        (jwt(b'{"iat": 1, "exp": NaN}'), None),
        (jwt([1]), None),
        (jwt(b"[" * 100_000), None),
        ("e30.!.x", None),
        ("e30.\u00e4.x", None),
        ("a-token-of-another-kind", None),
        ("", None),
    ],
)
def test_a_token_has_an_end_only_where_it_says_so(token: str, expected: Validity | None) -> None:
    assert parse_token(token) == expected


def test_of_a_chain_the_certificate_that_ends_first_counts_and_junk_has_no_end(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.sign("server", *LOCALHOST, days=90)
    chain = tmp_path / "chain.pem"
    for file, lifetime in ((certificate, 91), (authority.ca, 2)):
        with chain.open("ab") as opened:
            opened.write(file.read_bytes())
        presented = read_certificate(chain)
        assert presented is not None
        assert presented.ends_at - presented.begins_at == lifetime * 86400
    for content in (b"", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", b"\0" * 1000):
        chain.write_bytes(content)
        assert read_certificate(chain) is None
    assert read_certificate(tmp_path) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(54.4 * 86400, "ends in 54 days, on 2"), (5400, "ends in 1.5 hours, on 2"), (-5400, "ended on 2")],
)
def test_a_person_is_told_what_is_left_in_days_or_hours(seconds: float, words: str) -> None:
    assert str(Validity(time.time() + seconds, 0.0)).startswith(words)
