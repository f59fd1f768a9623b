import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from tests import processes
from tests.fork_server import forked

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
COMMAND = [sys.executable, "-m", "services.exporter"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*forked("services.exporter"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def config(tmp_path: Path, endpoint: str = "127.0.0.1:1", listen: str = "127.0.0.1:0") -> Path:
    file = tmp_path / "exporter.yml"
    file.write_text(
        f"listen: {listen}\nservice: backend\nprobe: {{interval: 60s, timeout: 60s}}\n"
        f"targets: [{{name: ledger-kek, key: {KEY}, endpoint: '{endpoint}', insecure: true, canary_dir: c}}]\n"
    )
    return file


@contextmanager
def started(file: Path, command: Sequence[str] = ()) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real process, and where it listens."""
    command = [*(command or forked("services.exporter")), "--config", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        for line in process.stderr:
            if address := json.loads(line).get("address"):
                yield process, address
                return
        pytest.fail(f"it ended with {process.wait(60)} before it listened")
    finally:
        processes.end(process, signal.SIGKILL)


def test_the_schema_describes_every_key_of_the_contract() -> None:
    done = run("--print-schema")
    schema = json.loads(done.stdout)
    assert done.returncode == 0
    assert schema["properties"].keys() == {
        "listen",
        "auth",
        "service",
        "probe",
        "targets",
        "backends",
        "environment",
        "proof",
        "runbook_url",
        "page_links",
    }
    providers = {each["properties"]["provider"]["const"]: each for each in schema["$defs"]["Target"]["oneOf"]}
    assert {"canary_dir", "endpoint"} <= providers["gcp"]["properties"].keys()
    assert {"canary_dir", "address", "auth"} <= providers["transit"]["properties"].keys()
    assert "metrics_url" in schema["$defs"]["Backend"]["properties"]


def test_a_missing_folder_of_canaries_is_named_by_check_and_at_the_start_and_stops_neither(tmp_path: Path) -> None:
    file = config(tmp_path)
    expected = (
        f"expected a folder that this user may read and write, got '{tmp_path / 'c'}'; "
        "until it is there canaries are in memory only"
    )
    done = run("--config", file, "--check")
    assert (done.returncode, done.stdout) == (0, "the configuration is valid\n")
    assert done.stderr == f"{file}: targets.0.canary_dir: {expected}\n"
    command = [*forked("services.exporter"), "--config", str(file)]
    with processes.running(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        first = json.loads(process.stderr.readline())
    assert (first["level"], first["key"], first["error"]) == ("warning", "targets.0.canary_dir", expected)


async def test_a_sigterm_during_a_stalled_probe_ends_it_with_0_at_once(tmp_path: Path, emulator: Emulator) -> None:
    emulator.faults.add(EmulatorFault(kind="stall", count=1))

    def stop() -> tuple[float, int, bytes]:
        with started(config(tmp_path, str(emulator.address))) as (process, address):
            deadline = time.monotonic() + 60
            while emulator.faults.list_active() and time.monotonic() < deadline:
                time.sleep(0.02)
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=30) as answer:
                ready: bytes = answer.read()
            begin = time.monotonic()
            os.kill(process.pid, signal.SIGTERM)
            code = process.wait(timeout=15)
            return time.monotonic() - begin, code, ready

    seconds, code, ready = await asyncio.to_thread(stop)
    assert not emulator.faults.list_active(), "the probe never reached the emulator"
    assert ready == b"ready\n"
    assert code == 0
    assert seconds < 5


def test_it_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with started(config(tmp_path), COMMAND) as (process, _):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
