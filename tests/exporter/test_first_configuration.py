"""`keypulse-exporter init`: what it prints is a configuration that a person fills in."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.exporter.__main__ import main
from services.exporter.config import ExporterSettings
from shared.config.settings import load_settings
from tests import memory_kms

KEY = "projects/p/locations/l/keyRings/r/cryptoKeys/ledger"


METRICS = ("text/plain", "crypto_init_timestamp_seconds 1\n")
SPRING = ("application/vnd.spring-boot.actuator.v3+json", '{"status": "UP", "components": {"db": {"status": "UP"}}}')
OURS = ("application/json", '{"crypto_mode": "kms", "crypto_ready": true}')


@contextmanager
def serve(pages: Mapping[str, tuple[str, str]], others: str = "") -> Iterator[str]:
    """A service with these documents, each with its media type; `others` is the page of every other path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            media_type, text = pages.get(self.path, ("text/html", others))
            self.send_response(200 if text else 404)
            self.send_header("Content-Type", media_type)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def load(result: Result, folder: Path) -> ExporterSettings:
    assert result.exit_code == 0, result.output
    (folder / "exporter.yml").write_text(result.stdout)
    return load_settings(ExporterSettings, folder / "exporter.yml")


@pytest.mark.parametrize(
    ("pages", "others", "path", "metrics", "mapping"),
    [
        ({"/healthz": OURS, "/metrics": METRICS}, "", "/healthz", "/metrics", None),
        (
            {"/actuator/health": SPRING, "/actuator/prometheus": METRICS},
            "",
            "/actuator/health",
            "/actuator/prometheus",
            {"mode": None, "ready": "/status", "values": {"ready": ("UP",)}},
        ),
        (
            {"/health": ("text/plain", "Healthy"), "/metrics": ("text/plain", "up 1\n")},
            "<html>an application answers any path</html>",
            "/health",
            None,
            {"mode": None, "ready": None},
        ),
        (
            {
                "/healthz": ("text/plain", "ok"),
                "/status": ("application/json", '{"status": "ok", "kms": {"mode": "hsm"}}'),
            },
            "",
            "/status",
            None,
            {"mode": "/kms/mode", "ready": "/status", "values": {"kms": ("hsm",), "ready": ("ok",)}},
        ),
    ],
    ids=["the reference backend", "Spring Boot", "ASP.NET Core", "Go"],
)
def test_a_service_is_asked_for_its_documents_and_what_they_say_is_proposed(
    pages: Mapping[str, tuple[str, str]],
    others: str,
    path: str,
    metrics: str | None,
    mapping: object,
    tmp_path: Path,
) -> None:
    with serve(pages, others) as address:
        result = CliRunner().invoke(main, ["init", "--service", "ledger", "--backend", address])
        (backend,) = load(result, tmp_path).backends
        doctor = CliRunner().invoke(main, ["doctor", "--config", str(tmp_path / "exporter.yml")])
    assert result.stderr == ""
    assert backend.service == "ledger"
    assert backend.health_url == address + path
    assert backend.metrics_url == (metrics and address + metrics)
    assert (backend.health and backend.health.model_dump(exclude_unset=True)) == mapping
    assert doctor.exit_code == 0, doctor.output


@pytest.mark.parametrize("path", ["", "/actuator/health"])
def test_the_metrics_of_spring_boot_are_beside_its_document_even_if_none_has_a_name_that_is_read(path: str) -> None:
    with serve({"/actuator/health": SPRING, "/actuator/prometheus": ("text/plain", "up 1\n")}) as address:
        result = CliRunner().invoke(main, ["init", "--backend", f"{address}{path}"])
    assert f'    # metrics_url: "{address}/actuator/prometheus"\n' in result.stdout


def test_a_service_that_has_no_document_is_one_line_and_shows_no_password(tmp_path: Path) -> None:
    with serve({}) as address:
        url = address.replace("//", "//user:hunter2@")
        result = CliRunner().invoke(main, ["init", "--backend", url])
    assert load(result, tmp_path).backends[0].health_url == f"{url}/healthz"
    assert result.stderr.startswith(f"{address}/healthz: HTTP 404, no health document; ")
    assert result.stderr.count("\n") == 1
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize(
    ("options", "targets", "urls"),
    [
        (("--target", KEY), ["ledger"], []),
        (("--backend", "http://127.0.0.1:1"), [], ["http://127.0.0.1:1/healthz"]),
        (("--backend", "http://127.0.0.1:1/actuator/health"), [], ["http://127.0.0.1:1/actuator/health"]),
        (
            ("--target", KEY, "--target", f"{KEY}2", "--backend", "http://127.0.0.1:1/", "--backend", "http://[::1]:1"),
            ["key-1", "key-2"],
            ["http://127.0.0.1:1/healthz", "http://[::1]:1/healthz"],
        ),
    ],
)
def test_it_is_valid_has_what_was_asked_for_and_explains_it(
    options: tuple[str, ...], targets: list[str], urls: list[str], tmp_path: Path
) -> None:
    result = CliRunner().invoke(main, ["init", *options])
    settings = load(result, tmp_path)
    assert result.stderr.count("cannot connect") == len(urls)
    assert [target.name for target in settings.targets] == targets
    assert [backend.health_url for backend in settings.backends] == urls
    assert result.stdout.count("#") > 4


def test_the_accounts_grants_and_the_form_of_a_key_are_those_of_the_provider() -> None:
    cloud_kms = CliRunner().invoke(main, ["init", "--target", KEY])
    roles = "roles/cloudkms.cryptoKeyEncrypterDecrypter and roles/cloudkms.viewer"
    assert f"\n# KMS keys. The account needs {roles} on each.\n" in cloud_kms.stdout
    assert "provider:" not in cloud_kms.stdout
    with memory_kms.registered():
        memory = CliRunner().invoke(main, ["init", "--provider", "memory", "--target", "ledger"])
    assert memory.exit_code == 0, memory.output
    assert "\n# KMS keys. The account needs use and read on each.\n" in memory.stdout
    assert '\n    provider: "memory"\n    key: "ledger"\n' in memory.stdout
    assert "cloudkms" not in memory.stdout


def test_a_key_of_transit_has_its_address_its_token_and_its_policy(tmp_path: Path) -> None:
    options = ("--transit", "https://bao.internal:8200", "--target", "team/keys/ledger")
    printed = CliRunner().invoke(main, ["init", *options])
    assert printed.exit_code == 0
    assert 'path "team/keys/encrypt/ledger" { capabilities = ["update"] }' in printed.stdout
    file = tmp_path / "exporter.yml"
    file.write_text(printed.stdout)
    (target,) = load_settings(ExporterSettings, file).targets
    assert (target.name, target.kms.key_name) == ("ledger", "transit:team/keys/ledger")
    assert target.kms.service_address == "bao.internal:8200"
    refused = CliRunner().invoke(main, ["init", "--transit", "http://bao.internal:8200", "--target", "ledger"])
    assert (refused.exit_code, "expected https://" in refused.stderr) == (2, True)


def test_nothing_to_watch_and_a_key_that_is_none_are_one_line_and_2() -> None:
    for options, error in (
        ((), "nothing to watch; expected --target KEY or --backend URL"),
        (("--target", KEY, "--provider", "memory"), "options: targets.0"),
        (("--backend", "ledger:8000"), "--backend: expected an http:// or https:// URL"),
        (("--target", "ledger"), "options: targets.0.key: expected projects/PROJECT/locations/LOCATION"),
    ):
        result = CliRunner().invoke(main, ["init", *options])
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert result.stderr.startswith(error)
