"""ID tokens: whose the relay believes, and that no other passes."""

import base64
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from services.relay.config import OidcSettings
from services.relay.login.oidc import (
    OidcClient,
    TokenAnswer,
    UnknownKeyError,
    _import_keys,
    verify_id_token,
)
from services.relay.login.sessions import LoginAttempt, OidcError
from shared.config.server_settings import Role

NOW = 1_800_000_000
EXPECTED = {"issuer": "https://login.example.org/", "client_id": "keypulse", "nonce": "the-nonce"}
RSA = RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"})
ELLIPTIC = ECKey.generate_key("P-256", {"kid": "ec"})
STRANGE = RSAKey.generate_key(2048, {"kid": "rsa"})
KEYS = KeySet([RSA, ELLIPTIC])
CLAIMS: Mapping[str, Any] = {
    "iss": EXPECTED["issuer"],
    "aud": EXPECTED["client_id"],
    "sub": "anna",
    "nonce": EXPECTED["nonce"],
    "iat": NOW - 5,
    "exp": NOW + 300,
}


def sign(claims: Mapping[str, Any], key: Any = RSA, alg: str = "RS256", kid: str = "rsa") -> str:
    return jwt.encode({"alg": alg, "kid": kid}, dict(claims), key)


def verify(token: str, access_token: str = "", now: float = NOW) -> Mapping[str, Any]:
    return verify_id_token(TokenAnswer(token, access_token), KEYS, now, **EXPECTED)


def encode_part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def build_unsigned(alg: str) -> str:
    return ".".join(encode_part(json.dumps(each).encode()) for each in ({"alg": alg, "kid": "rsa"}, CLAIMS)) + "."


def build_confused() -> str:
    """Signed with the public key, as if it were a shared secret."""
    signed = build_unsigned("HS256").rstrip(".")
    return f"{signed}.{encode_part(hmac.digest(RSA.as_pem(private=False), signed.encode(), 'sha256'))}"


def test_only_a_signed_token_of_this_issuer_for_this_client_and_attempt_is_valid_until_it_expires() -> None:
    assert verify(sign(CLAIMS))["sub"] == "anna"
    assert verify(sign(CLAIMS, ELLIPTIC, "ES256", "ec"))["sub"] == "anna"
    both = {**CLAIMS, "aud": ["other", "keypulse"], "azp": "keypulse"}
    assert verify(sign(both))["sub"] == "anna"
    assert verify(sign(CLAIMS), now=NOW + 350)["sub"] == "anna"  # a clock may differ by a minute

    changes: dict[str, dict[str, Any]] = {
        "wrong issuer": {"iss": "https://evil.example.org/"},
        "issuer without its slash": {"iss": "https://login.example.org"},
        "wrong audience": {"aud": "another-client"},
        "among others, for another party": {"aud": ["other", "keypulse"], "azp": "other"},
        "of several, without a party": {"aud": ["other", "keypulse"]},
        "wrong nonce": {"nonce": "of-another-attempt"},
        "expired": {"exp": NOW - 120},
        "not yet": {"iat": NOW + 600, "nbf": NOW + 600},
        "expiry is no number": {"exp": "tomorrow"},
        "another access token": {"at_hash": "AAAA"},
    }
    for name, change in changes.items():
        with pytest.raises(OidcError) as refused:
            verify(sign({**CLAIMS, **change}), access_token="the-token")
        assert "evil" not in str(refused.value), name
    for missing in ("iss", "aud", "sub", "exp", "iat", "nonce"):
        with pytest.raises(OidcError):
            verify(sign({key: value for key, value in CLAIMS.items() if key != missing}))
    for forged in (
        build_unsigned("none"),
        build_unsigned("RS256"),
        build_confused(),
        sign(CLAIMS, STRANGE),
        "no.token",
        "",
        "é.é.é",
    ):
        with pytest.raises(OidcError):
            verify(forged)
    with pytest.raises(UnknownKeyError):  # so that the keys are read again
        verify(sign(CLAIMS, STRANGE, kid="new"))


def test_keys_that_cannot_sign_are_left_out_and_a_document_without_keys_is_an_error() -> None:
    document = {"keys": [RSA.as_dict(private=False), {"kty": "oct", "k": "c2VjcmV0"}, {"kty": "new"}, "text"]}
    keys = _import_keys(json.dumps(document).encode())
    assert [key.kid for key in keys.keys] == ["rsa"]
    for body in (b"", b"[]", b'{"keys": [{"kty": "RSA"}]}'):
        with pytest.raises(OidcError):
            _import_keys(body)


def test_the_secrets_of_an_attempt_differ() -> None:
    attempt = LoginAttempt("a random value")
    derived = {attempt.state, attempt.nonce, attempt.code_verifier}
    assert len(derived | {attempt.value}) == 4
    assert LoginAttempt("another one").state not in derived
    assert 43 <= len(attempt.code_verifier) <= 128  # RFC 7636


def test_every_replica_with_the_same_secret_knows_an_attempt(tmp_path: Path) -> None:
    def open_client(secret: str) -> OidcClient:
        (tmp_path / secret).write_text(secret)
        settings = OidcSettings(
            issuer="https://login.example.org",
            client_id="keypulse",
            client_secret_file=tmp_path / secret,
            roles={"sre": Role.VIEWER},
        )
        return OidcClient(settings, clock=lambda: NOW)

    one, same, another = map(open_client, ("the-secret", "the-secret", "another-secret"))
    attempt = one.create_attempt()
    assert one.create_attempt().state != attempt.state
    assert (same.is_valid_attempt(attempt), another.is_valid_attempt(attempt)) == (True, False)
