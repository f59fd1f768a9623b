"""The end of a credential, read from files and tokens of every kind."""

import base64
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shared.check import CheckError, CheckNotApplicable
from shared.credentials import Validity, check_end, parse_token, read_certificates, read_presented_certificate
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


def test_of_a_chain_the_certificate_that_is_presented_counts_and_junk_has_no_end(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.sign("server", *LOCALHOST)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificate.read_bytes() + authority.ca.read_bytes())
    presented = read_presented_certificate(chain)
    assert presented is not None
    assert presented.ends_at - presented.begins_at == 2 * 86400
    assert len(read_certificates(chain)) == 2
    for content in (b"", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", b"\0" * 1000):
        chain.write_bytes(content)
        assert read_presented_certificate(chain) is None
    assert read_presented_certificate(tmp_path) is None


def _same(validity: Validity) -> Validity:
    return validity


def test_doctor_says_what_is_left_in_days_or_hours_and_refuses_what_has_ended() -> None:
    now = 1_768_469_400.0
    for validity, expected in (
        (Validity(now + 54.4 * 86400, now), "ends in 54 days, on 2026-03-10"),
        (Validity(now + 5400, now), "ends in 1.5 hours, on 2026-01-15"),
    ):
        assert check_end("certificate", partial(_same, validity), lambda: now) == expected
    with pytest.raises(CheckError, match="the certificate has ended; renew it"):
        check_end("certificate", lambda: Validity(now, 0), lambda: now)
    with pytest.raises(CheckNotApplicable):
        check_end("certificate", lambda: None, lambda: now)
