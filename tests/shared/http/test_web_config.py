"""A web.yml is read as exporter-toolkit has it; what is wrong, or cannot be honoured, is a line each."""

import re
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml

from shared.config.errors import ConfigurationError
from shared.http.web_config import MAX_BCRYPT_COST, HttpSettings, TlsSettings, WebConfig, read_web_config

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
PAIR = {"cert_file": "a.pem", "key_file": "/b.key"}
REQUIRED = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}


def _read(folder: Path, document: dict[str, Any]) -> Any:
    (folder / "web.yml").write_text(yaml.safe_dump(document))
    return read_web_config(folder / "web.yml")


def test_a_whole_file_is_read_and_relative_paths_start_at_its_folder(tmp_path: Path) -> None:
    config = _read(
        tmp_path,
        {
            "tls_server_config": {**PAIR, **REQUIRED, "client_allowed_sans": ["prometheus"], "min_version": "TLS13"},
            "http_server_config": {"http2": False, "headers": {"X-Frame-Options": "deny", "X-XSS-Protection": ""}},
            "basic_auth_users": {"alice": HASH, "bob": "$2y$10$" + HASH[7:]},
        },
    )
    tls = config.tls_server_config
    assert tls.files == (tmp_path / "a.pem", Path("/b.key"), tmp_path / "ca.pem")
    assert config.http_server_config.headers == {"X-Frame-Options": "deny"}
    assert list(config.basic_auth_users) == ["alice", "bob"]


@pytest.mark.parametrize(
    ("document", "authenticates"),
    [
        ({}, False),
        ({"tls_server_config": PAIR}, False),
        ({"tls_server_config": {**PAIR, **REQUIRED, "client_auth_type": "VerifyClientCertIfGiven"}}, False),
        ({"tls_server_config": {**PAIR, **REQUIRED}}, True),
        ({"basic_auth_users": {"alice": HASH}}, True),
    ],
)
def test_users_and_required_certificates_authenticate(
    document: dict[str, Any], authenticates: bool, tmp_path: Path
) -> None:
    assert _read(tmp_path, document).requires_credentials is authenticates


@pytest.mark.parametrize(
    ("tls", "error"),
    [
        ({"key_file": None}, "tls_server_config.key_file: "),
        ({"cert": "-----BEGIN"}, "tls_server_config.cert: is not supported inline; name a file with cert_file"),
        ({"client_ca": "x"}, "tls_server_config.client_ca: is not supported inline; name a file with client_ca_file"),
        ({"cret_file": "x"}, "tls_server_config.cret_file: unknown key; did you mean cert_file?"),
        ({"client_auth_type": "RequestClientCert"}, "client_auth_type: cannot be honoured: Python's TLS verifies each"),
        ({"client_auth_type": "RequireAnyClientCert"}, "client_auth_type: cannot be honoured"),
        ({"client_auth_type": "Some"}, "tls_server_config.client_auth_type: expected 'NoClientCert', "),
        ({"client_auth_type": REQUIRED["client_auth_type"]}, "expected both client_ca_file and a client_auth_type"),
        ({"client_ca_file": "ca.pem"}, "expected both client_ca_file and a client_auth_type"),
        ({"client_allowed_sans": ["a"]}, "client_allowed_sans: expected client_auth_type RequireAndVerifyClientCert"),
        ({**REQUIRED, "client_allowed_sans": []}, "client_allowed_sans: expected at least one name"),
        ({"min_version": "TLS10"}, "min_version: cannot be honoured: OpenSSL refuses versions before TLS 1.2"),
        ({"min_version": "TLS13", "max_version": "TLS12"}, "min_version: expected one of at most max_version"),
        ({"cipher_suites": ["TLS_AES_128_GCM_SHA256"]}, "cipher_suites: is not supported; leave it out: OpenSSL's"),
        ({"curve_preferences": ["CurveP256"]}, "curve_preferences: is not supported; leave it out"),
        ({"prefer_server_cipher_suites": True}, "prefer_server_cipher_suites: is not supported; leave it out"),
    ],
)
def test_an_error_in_tls_is_one_line_that_says_what_to_do(tls: dict[str, Any], error: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        _read(tmp_path, {"tls_server_config": {**PAIR, **tls}})
    (line,) = refused.value.lines
    assert line.startswith(f"{tmp_path}/web.yml: tls_server_config")
    assert error in line


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"rate_limit": {"burst": 1}}, "rate_limit: is not supported; limit the rate in a proxy"),
        ({"basic_auth": {}}, "basic_auth: unknown key; did you mean basic_auth_users?"),
        ({"http_server_config": {"headers": {"X-Mine": "1"}}}, "X-Mine: cannot be set; expected one of Content-Sec"),
        ({"http_server_config": {"headers": {"X-Frame-Options": "yes"}}}, "X-Frame-Options: expected deny or same"),
        ({"http_server_config": {"headers": {"Strict-Transport-Security": "a\r\nB: c"}}}, "expected printable ASCII"),
        ({"basic_auth_users": {"a:b": HASH}}, "expected a name without a colon"),
        ({"basic_auth_users": []}, "basic_auth_users: "),
    ],
)
def test_any_other_error_is_one_line_too(document: dict[str, Any], error: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        _read(tmp_path, document)
    (line,) = refused.value.lines
    assert line.startswith(f"{tmp_path}/web.yml: ")
    assert error in line


@pytest.mark.parametrize(
    "password",
    ["hunter2", "$2b$99$" + HASH[7:], f"$2b${MAX_BCRYPT_COST + 1}$" + HASH[7:], HASH[:-1], HASH[:28] + "a" + HASH[29:]],
    ids=["no hash", "no cost", "too dear", "cut", "no salt"],
)
def test_what_is_no_bcrypt_hash_is_refused_and_never_repeated(password: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        _read(tmp_path, {"basic_auth_users": {"alice": password}})
    (line,) = refused.value.lines
    assert re.search("basic_auth_users.alice: expected a bcrypt hash", line)
    assert password not in line


def test_the_documented_example_is_valid_and_every_key_is_explained(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/configuration/web.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert example
    (tmp_path / "web.yml").write_text(example[1])
    assert read_web_config(tmp_path / "web.yml").requires_credentials
    for model in (WebConfig, TlsSettings, HttpSettings):
        assert {key for key in model.model_fields if f"`{key}`" not in page} == set()
