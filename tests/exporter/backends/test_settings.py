"""The settings of a backend, as somebody writes them: each mistake is one line that repeats no secret."""

from pathlib import Path

import pytest

from services.exporter.config import ExporterSettings
from shared.config.errors import ConfigurationError
from shared.config.settings import load_settings

BACKEND = "backends:\n  - service: ledger\n    health_url: https://ledger.example.org/health\n    "


def read(tmp_path: Path, line: str) -> ExporterSettings:
    file = tmp_path / "exporter.yml"
    file.write_text(f"{BACKEND}{line}\n")
    return load_settings(ExporterSettings, file)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("health: Status", "health: expected a mapping of keys to values, got 'Status'"),
        ("health: {mode: crypto.mode}", "health.mode: expected a JSON Pointer such as /crypto/mode, with ~1 for /"),
        ("health: {values: {kms: [KMS], env: [kms]}}", "health.values: expected words that stand for one mode only"),
        ("health: {values: {kms: KMS}}", "health.values.kms: expected a list, got 'KMS'"),
        ("metrics: {crypto_mode: mode}", "metrics: expected keys among crypto_init_timestamp_seconds, "),
        ("metrics: {crypto_init_timestamp_seconds: a b}", "metrics.crypto_init_timestamp_seconds: "),
        (
            "metrics: {crypto_init_timestamp_seconds: crypto_decryption_errors_total}",
            "metrics: expected each of the backend's names once; 'crypto_decryption_errors_total' stands for two",
        ),
        (
            "headers: {Authorization: hunter2}",
            "headers: the exporter sets Authorization itself; use `auth",
        ),
        ("headers: {HOST: a}", "headers: the exporter sets HOST itself; remove it"),
        ("headers: {'X Y': hunter2}", "headers: expected names of headers, such as X-Tenant; 'X Y' is none"),
        ('headers: {X: "hunter2\\nY: a"}', "headers.X.value: expected text without line breaks and control characters"),
        ("headers: {X: {value: a, file: b}}", "headers.X: expected either `value` or `file`"),
        ("authorization: {credentials: hunter2}", "authorization.credentials: unknown key"),
        ("basic_auth: {username: 'a:b', password_file: c}", "basic_auth.username: expected a name without a colon"),
        ("ca_file: a\n    tls_config: {ca_file: b}", "expected `ca_file` or `tls_config.ca_file`, not both"),
        ("resolve: all\n    proxy: http://proxy:3128", "expected no proxy, where `resolve` is set"),
        ("tls_config: {cert_file: a}", "tls_config: expected both cert_file and key_file, or neither of them"),
    ],
)
def test_an_error_is_reported_where_it_stands(tmp_path: Path, line: str, error: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, line)
    errors = [
        text.removeprefix(f"{tmp_path / 'exporter.yml'}: backends.0").lstrip(".: ") for text in raised.value.lines
    ]
    assert any(text.startswith(error) for text in errors), errors
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        "authorization: {credentials_file: a}\n    basic_auth: {username: a, password_file: b}",
        "authorization: {credentials_file: a}\n    metrics_url: https://a:hunter2@ledger.example.org/metrics",
    ],
)
def test_a_backend_has_one_identity(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, line)
    assert "expected one of `authorization`, `basic_auth` and a user in the URLs" in str(raised.value)
    assert "hunter2" not in str(raised.value)
