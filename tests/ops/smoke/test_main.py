"""`keypulse-smoke` as a command: its exit codes, what it prints and writes, and its launchers."""

import asyncio
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ops.smoke.__main__ import main
from ops.smoke.deployment import load_rule_names
from shared.config.settings import Address
from shared.http.server import serve
from tests.fork_server import forked
from tests.ops.rules import GROUPS

LAUNCHERS = Path(__file__).parents[3] / "ops/smoke"


@pytest.fixture
async def backend() -> AsyncIterator[str]:
    """One that is well but for a record, which comes back changed."""

    async def answer(request: Request) -> Response:
        if request.url.path == "/healthz":
            return JSONResponse({"crypto_mode": "kms", "crypto_ready": True})
        if request.url.path == "/metrics":
            names = ("crypto_mode", "crypto_ready", "crypto_init_timestamp_seconds", "crypto_decryption_errors_total")
            return Response("".join(f"{name} 1\n" for name in names))
        if request.url.path == "/admin/crypto/keys":
            return Response(status_code=401)
        return Response(status_code=204) if request.method == "PUT" else Response("changed")

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "PUT"])])
    async with serve(app, Address("127.0.0.1", 0)) as address:
        yield f"http://{address}"


async def smoke(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*forked("ops.smoke"), *arguments]
    return await asyncio.to_thread(
        subprocess.run,
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


async def test_a_line_for_each_check_and_exit_code_1_for_one_that_failed(backend: str, tmp_path: Path) -> None:
    done = await smoke("--base-url", backend, "--junit", str(tmp_path / "smoke.xml"))
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert [text[0] for text in lines] == ["✓", "✓", "✓", "✓", "-", "✓", "✗"]
    assert "; stop writing, and compare with a backup" in lines[-1]
    suite = ET.parse(tmp_path / "smoke.xml").getroot()[0]  # noqa: S314 - our own
    assert (suite.get("tests"), suite.get("failures")) == ("7", "1")


@pytest.mark.parametrize(("environment", "expected"), [("", True), ("production", True), ("staging", False)])
async def test_the_runbooks_of_the_rules_are_checked_in_production(environment: str, expected: bool) -> None:
    done = await smoke("--prometheus", "http://127.0.0.1:1", "--json", KEYPULSE_SMOKE_ENVIRONMENT=environment)
    names = [check["name"] for check in json.loads(done.stdout)["checks"]]
    assert ("rules lead to your runbook" in names) is expected


async def test_the_summary_of_a_job_gets_every_line(backend: str, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    await smoke("--base-url", backend, GITHUB_STEP_SUMMARY=str(summary))
    content = summary.read_text(encoding="utf-8")
    assert content.startswith("before\n## keypulse-smoke\n\n- ✓ backend answers: crypto\\_mode kms")
    assert content.count("\n- ") == 7


async def test_a_deployment_without_a_backend_is_checked_by_its_other_parts() -> None:
    done = await smoke("--alertmanager", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stdout.startswith("✗ Alertmanager is ready: ")


async def test_the_services_of_an_exporters_configuration_are_read_by_their_mapping(tmp_path: Path) -> None:
    documents = {
        "/up": {"status": "UP", "kms": {"mode": "HSM"}},
        "/local": {"status": "UP", "kms": {"mode": "local"}},
        "/down": {"status": "DOWN"},
    }

    async def answer(request: Request) -> Response:
        return JSONResponse(documents.get(request.url.path), status_code=200 if request.url.path in documents else 404)

    async with serve(Starlette(routes=[Route("/{path:path}", answer)]), Address("127.0.0.1", 0)) as address:
        mapping = "health: {mode: /kms/mode, ready: /status, values: {kms: [hsm], env: [local], ready: [UP]}}"
        without_mode = "health: {mode: null, ready: /status, values: {ready: [UP]}}"
        (tmp_path / "exporter.yml").write_text(f"""\
backends:
  - {{service: ledger, health_url: "http://{address}/up", {mapping}}}
  - {{service: payments, health_url: "http://{address}/local", {mapping}}}
  - {{service: search, health_url: "http://{address}/down", {without_mode}}}
  - {{service: gone, health_url: "http://{address}/gone"}}
""")
        done = await smoke("--exporter-config", str(tmp_path / "exporter.yml"))
    assert done.returncode == 1, done.stderr
    where = "in docs/KMS_OPERATIONS.md"
    assert done.stdout.splitlines() == [
        "✓ ledger answers",
        "✓ ledger is ready",
        "✓ ledger uses KMS",
        "✓ payments answers",
        "✓ payments is ready",
        f'✗ payments uses KMS: its mode is env: /kms/mode = "local", /status = "UP"; see KMSCryptoModeNotKMS {where}',
        "✓ search answers",
        f'✗ search is ready: it is not ready: /status = "DOWN"; see KMSCryptoNotReady {where}',
        "- search uses KMS: its health document names no mode",
        "✗ gone answers: health check: answered with HTTP 404; correct the URL",
        "- gone is ready: skipped: it depends on 'gone answers'",
        "- gone uses KMS: skipped: it depends on 'gone answers'",
    ]
    wrong = await smoke("--exporter-config", str(tmp_path / "away.yml"))
    assert (wrong.returncode, wrong.stdout) == (2, "")


async def test_json_stands_alone_on_standard_output(backend: str) -> None:
    done = await smoke("--json", KEYPULSE_SMOKE_BASE_URL=backend)
    read = json.loads(done.stdout)
    assert (done.returncode, read["ok"], len(read["checks"])) == (1, False, 7)


async def test_no_test_alert_is_posted_where_it_could_not_arrive(backend: str) -> None:
    nobody = "http://127.0.0.1:1"
    done = await smoke("--base-url", backend, "--alertmanager", nobody, "--relay", nobody, "--test-alert")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "- a test alert: not posted: it needs 'Alertmanager is ready'"


@pytest.mark.parametrize(("environment", "expected"), [("", "production"), ("staging", "staging")])
async def test_the_test_alert_takes_the_routes_of_the_environment(environment: str, expected: str) -> None:
    posted: list[dict[str, dict[str, str]]] = []

    async def answer(request: Request) -> Response:
        if request.method == "POST":
            posted.extend(await request.json())
        return JSONResponse({"versionInfo": {}, "deliveries": []})

    async with serve(
        Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])]), Address("127.0.0.1", 0)
    ) as url:
        parts = ("--alertmanager", f"http://{url}", "--relay", f"http://{url}")
        done = await smoke(*parts, "--test-alert", "--timeout", "0.1s", KEYPULSE_SMOKE_ENVIRONMENT=environment)
    assert done.returncode == 1, "the relay sent nothing of it"
    assert {alert["labels"]["env"] for alert in posted} == {expected}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Missing option '--base-url'"),
        (["--base-url", "http://b", "--records", "maybe"], "'maybe' is not one of 'auto', 'on', 'off'"),
        (["--base-url", "backend:8000"], "expected a URL such as https://HOST"),
        (["--base-url", "http://b", "--test-alert"], "--test-alert needs --alertmanager"),
        (["--base-url", "http://b", "--test-alert", "--relay", "http://r"], "--test-alert needs --alertmanager"),
        (["--base-url", "http://b", "--test-alert", "loud"], "'loud' is not one of 'warning', 'critical'"),
        (["--base-url", "http://b", "--timeout", "soon"], "expected a duration such as 30s, 5m or 1h30m, got 'soon'"),
        (["--base-url", "http://b", "--timeout", "0s"], "expected more than 0"),
        (
            ["--prometheus", "http://p", "--without-alert", "KMSTypo"],
            "expected the name of an alert of ops/prometheus/rules, got 'KMSTypo'",
        ),
        (["--base-url", "ftp://me:hunter2@b"], "expected a URL such as https://HOST"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_was_expected(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert "hunter2" not in done.stderr


def test_the_expected_rules_are_those_that_prometheus_is_given() -> None:
    every = {rule.get("alert") or rule["record"] for group in GROUPS for rule in group["rules"]}
    assert {name for names in load_rule_names().values() for name in names} == every
    without = load_rule_names(["RelayDeadLetters", "KMSHighLatency"])
    assert {name for names in without.values() for name in names} == every - {"RelayDeadLetters", "KMSHighLatency"}


def test_the_launcher_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(LAUNCHERS / "smoke-crypto-kms.py"), "--base-url", "http://127.0.0.1:1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("✗ backend answers: http://127.0.0.1:1/healthz cannot be reached")


def test_the_launcher_without_an_installation_is_one_sentence(tmp_path: Path) -> None:
    bare = [sys.executable, "-I", "-S", str(LAUNCHERS / "smoke-crypto-kms.py"), "--help"]
    done = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "is not installed; run `make install`" in done.stderr
    spec = f"'{LAUNCHERS.parents[1]}[smoke]' keypulse-smoke"
    assert f"or uvx --from {spec}, or pipx run --spec {spec}\n" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (
        "smoke"
        in tomllib.loads((LAUNCHERS.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
