"""ops/compose/sidecar brought up for real, an emulator instead of Cloud KMS at the loopback that all of it shares."""

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.demo.processes import Ports
from tests.containers.compose_stack import USER
from tests.containers.engine import ROOT, Engine

NAME = f"keypulse-test-{os.getpid()}-sidecar"
LABEL = f"com.docker.compose.project={NAME}"
TOKEN = "a-token-of-this-test"
KEY = {
    "key": "projects/acme-prod/locations/global/keyRings/app/cryptoKeys/ledger",
    "endpoint": "127.0.0.1:9010",
    "insecure": True,
}
EMULATED: dict[str, Any] = {
    "emulator": {
        "image": "localhost/keypulse/emulator",
        "network_mode": "service:network",
        "command": ["--listen=127.0.0.1:9010", "--faults=127.0.0.1:9012", f"--key={KEY['key']}"],
    },
    "ledger": {"environment": {"KEYPULSE_BACKEND__KMS": json.dumps(KEY)}},
    "exporter": {
        "environment": {
            "KEYPULSE_EXPORTER__TARGETS": json.dumps([{"name": "ledger-kek", **KEY}]),
            "KEYPULSE_EXPORTER__PROBE": '{"interval": "1s", "timeout": "1s"}',
        }
    },
}


@pytest.fixture
def metrics(engine: Engine, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Brings it up; gives what the exporter's /metrics says, "" where it does not answer."""
    ports = Ports.pick_free()
    (tmp_path / "emulated.yml").write_text(yaml.safe_dump({"services": EMULATED}))
    for name, content in (("token", TOKEN), ("crypto_token", f"{TOKEN}-too"), ("credentials.json", "{}")):
        (tmp_path / name).write_text(content)
        os.chown(tmp_path / name, USER, USER)
    environment = {
        "EXPORTER_PORT": str(ports.exporter),
        "LEDGER_PORT": str(ports.relay),
        "ADMIN_TOKEN_FILE": str(tmp_path / "token"),
        "CRYPTO_ADMIN_TOKEN_FILE": str(tmp_path / "crypto_token"),
        "GOOGLE_CREDENTIALS": str(tmp_path / "credentials.json"),
    }

    def compose(*arguments: str) -> None:
        files = ("-p", NAME, "-f", str(ROOT / "ops/compose/sidecar/compose.yaml"), "-f", str(tmp_path / "emulated.yml"))
        done = engine.run(*files, *arguments, command=engine.compose, timeout=300, **environment)
        assert done.returncode == 0, done.stderr[-2000:]

    def request_metrics() -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{ports.exporter}/metrics")
        request.add_header("Authorization", f"Basic {b64encode(f'anybody:{TOKEN}'.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    with ExitStack() as stack:
        stack.enter_context(engine.run_health_checks(LABEL))
        stack.callback(compose, "down", "--volumes", "--timeout", "15")
        compose("up", "--detach")
        yield request_metrics


def test_the_exporter_sees_the_service_whose_network_it_shares_and_sees_it_again_after_its_death(
    metrics: Callable[[], str], engine: Engine
) -> None:
    healthy = {'crypto_mode{service="ledger"} 1.0', 'kms_probe_success{service="ledger",target="ledger-kek"} 1.0'}
    down = {'crypto_backend_up{service="ledger"} 0.0'}

    def is_exposed(lines: set[str]) -> Callable[[], bool]:
        return lambda: lines <= set(metrics().splitlines())

    _until(is_exposed(healthy))
    of_ledger = f"label={LABEL}", "--filter", "label=com.docker.compose.service=ledger"
    service = engine.out("ps", "--quiet", "--filter", *of_ledger)
    engine.out("stop", service)  # and not killed: what comes back within a second, nobody sees go
    _until(is_exposed(down))
    engine.out("start", service)
    _until(is_exposed(healthy))
    before = _initialised(metrics())
    os.kill(engine.inspected(service)["State"]["Pid"], signal.SIGKILL)
    _until(lambda: _initialised(metrics()) > before)  # by the process that took its place
    _until(is_exposed(healthy))


def _initialised(metrics: str) -> float:
    """When the service did so last, as the exporter shows it; 0 where it shows none."""
    found = re.search(r'^crypto_init_timestamp_seconds{service="ledger"} (\S+)$', metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not come true within two minutes"
        time.sleep(0.2)  # bounded, until other processes are there
