from pathlib import Path

import pytest

from services.exporter.config import ExporterSettings
from shared.config.errors import ConfigurationError
from shared.config.settings import Address, load_settings

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
CONTRACT = f"""
service: backend
probe: {{interval: 30s, timeout: 5s, concurrency: 16}}
targets:
  - name: ledger-kek
    provider: gcp
    key: {KEY}
    endpoint: 127.0.0.1:9010
    insecure: true
    canary_dir: /var/lib/keypulse
backends:
  - service: backend
    health_url: http://127.0.0.1:8000/healthz
    metrics_url: http://127.0.0.1:8000/metrics
"""


def settings(tmp_path: Path, text: str) -> ExporterSettings:
    file = tmp_path / "exporter.yml"
    file.write_text(text)
    return load_settings(ExporterSettings, file)


def list_errors(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        settings(tmp_path, text)
    return [line.removeprefix(f"{tmp_path / 'exporter.yml'}: ") for line in raised.value.lines]


def test_the_example_of_the_contract_is_valid(tmp_path: Path) -> None:
    read = settings(tmp_path, CONTRACT)
    assert read.listen == Address("127.0.0.1", 9911)
    assert (read.probe.interval, read.probe.timeout, read.probe.concurrency) == (30, 5, 16)
    assert [(target.name, target.service, target.kms.key) for target in read.targets] == [
        ("ledger-kek", "backend", KEY)
    ]
    assert read.backends[0].metrics_url == "http://127.0.0.1:8000/metrics"


def test_an_entry_takes_the_service_at_the_top_unless_it_has_its_own(tmp_path: Path) -> None:
    read = settings(
        tmp_path,
        f"service: a\ntargets:\n- {{name: x, key: {KEY}}}\n- {{name: y, key: {KEY}, service: b}}\n"
        "backends:\n- {health_url: 'http://127.0.0.1/'}\n- {service: b, health_url: 'http://127.0.0.1/'}\n",
    )
    assert [target.service for target in read.targets] == ["a", "b"]
    assert [backend.service for backend in read.backends] == ["a", "b"]


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYPULSE_EXPORTER__PROBE__INTERVAL", "1m")
    monkeypatch.setenv("KEYPULSE_EXPORTER__LISTEN", "127.0.0.1:9921")
    read = settings(tmp_path, CONTRACT)
    assert read.probe.interval == 60
    assert read.probe.timeout == 5
    assert read.listen == Address("127.0.0.1", 9921)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            CONTRACT.replace("timeout: 5s", "timeout: 31s"),
            "probe: expected a timeout (31s) of at most the interval (30s)",
        ),
        (
            CONTRACT.replace("concurrency: 16", "concurrency: 0"),
            "probe.concurrency: expected at least 1, got 0",
        ),
        (
            CONTRACT.replace("30s", "soon"),
            "probe.interval: expected a duration such as 30s, 5m or 1h30m, got 'soon'",
        ),
        (
            f"service: a\ntargets:\n- {{name: x, key: {KEY}}}\n- {{name: x, key: {KEY}, service: b}}\n",
            "targets: expected each `name` once; more than one entry has 'x'",
        ),
        (
            "service: a\nbackends:\n- {health_url: 'http://a/'}\n- {service: a, health_url: 'http://b/'}\n",
            "backends: expected each `service` once; more than one entry has 'a'",
        ),
        (
            f"targets:\n- {{name: x, key: {KEY}, service: a}}\n- {{name: y, key: {KEY}}}\n",
            "targets: entry 1 has no `service`, and there is none at the top; set either",
        ),
        (
            CONTRACT.replace("http://127.0.0.1:8000/healthz", "ftp://127.0.0.1/"),
            "backends.0.health_url: expected an http:// or https:// URL without spaces and line breaks",
        ),
        (
            CONTRACT.replace("http://127.0.0.1:8000/metrics", "127.0.0.1:8000/metrics"),
            "backends.0.metrics_url: expected an http:// or https:// URL without spaces and line breaks",
        ),
        (
            CONTRACT.replace("8000/healthz", "99999/healthz"),
            "backends.0.health_url: expected an http:// or https:// URL without spaces and line breaks",
        ),
        (
            CONTRACT.replace("127.0.0.1:9010", "kms.example.org:443"),
            (
                "targets.0: `insecure` sends plaintext to kms.example.org:443, which is not this machine; expected a "
                "loopback endpoint, or `allow_remote_insecure: true`"
            ),
        ),
        (
            CONTRACT.replace(KEY, "ledger"),
            "targets.0.key: expected projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY, got 'ledger'",
        ),
        (
            CONTRACT.replace("127.0.0.1:8000/healthz", ".../"),
            "backends.0.health_url: expected a host whose parts between the dots have 1 to 63 characters each",
        ),
        (
            CONTRACT.replace("127.0.0.1:8000/healthz", f"user:hunter2@{'a' * 64}.example.org/"),
            "backends.0.health_url: expected a host whose parts between the dots have 1 to 63 characters each",
        ),
        (
            CONTRACT.replace("http://127.0.0.1:8000/healthz", '"http://127.0.0.1:8000/\\nhealthz"'),
            "backends.0.health_url: expected an http:// or https:// URL without spaces and line breaks",
        ),
        (
            CONTRACT.replace("127.0.0.1:8000/metrics", "localhost:8000/metrics") + "    resolve: all\n",
            "backends.0: expected `health_url` and `metrics_url` with the same host, where `resolve` is set",
        ),
        (
            CONTRACT + "runbook_url: https://example.org/KMS_OPERATIONS.md#timeout\n",
            "runbook_url: expected a URL without #; the board adds the section",
        ),
        (
            CONTRACT + "runbook_url: https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md\n",
            "runbook_url: a placeholder is not allowed in production; expected an address of your own",
        ),
        (CONTRACT + "environment: test\n", "environment: expected 'production', 'staging' or 'demo', got 'test'"),
        (CONTRACT + "colour: red\n", "colour: unknown key; see --print-schema for those that exist"),
        ("service: backend\n", "nothing to watch; expected at least one entry in `targets` or `backends`"),
        (CONTRACT.replace("ledger-kek", "''"), "targets.0.name: expected text that is longer, got ''"),
    ],
)
def test_each_error_is_one_line_with_what_was_expected(tmp_path: Path, text: str, error: str) -> None:
    assert list_errors(tmp_path, text) == [error]


@pytest.mark.parametrize("environment", ["staging", "demo"])
def test_a_placeholder_is_allowed_elsewhere_than_in_production(tmp_path: Path, environment: str) -> None:
    text = f"{CONTRACT}environment: {environment}\nrunbook_url: https://example.org/KMS_OPERATIONS.md\n"
    assert settings(tmp_path, text).environment == environment


def test_all_errors_are_named_at_once(tmp_path: Path) -> None:
    text = CONTRACT.replace("5s", "1h").replace("ledger-kek", "''").replace("http://127.0.0.1:8000/healthz", "x")
    assert len(list_errors(tmp_path, text)) == 3
