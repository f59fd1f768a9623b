"""Every benchmark runs to its end. How fast is not tested: that depends on the machine."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.bench.__main__ import main

SMALL: dict[str, list[str]] = {
    "causes": [],
    "storm": ["--rounds", "1", "--groups", "20"],
    "storm-slack": ["--groups", "20", "--window", "10"],
    "intake": ["--rounds", "1", "--webhooks", "20"],
    "queue": ["--rounds", "1", "--groups", "20"],
    "faults": ["--seconds", "2", "--after", "4"],
    "claim": ["--rounds", "1", "--waiting", "100"],
    "hanging": ["--rounds", "1", "--webhooks", "5"],
    "finished": ["--rounds", "1", "--count", "1000"],
    "console": ["--rounds", "1", "--deliveries", "1000"],
    "rotation": ["--keys", "50", "--latency", "0.001"],
    "noise": ["--half-hours", "10", "--runs", "1"],
    "probe": ["--rounds", "1", "--round-trips", "20"],
    "targets": ["--count", "2", "--interval", "2", "--intervals", "1", "--scrapes", "5"],
}


@pytest.mark.played
@pytest.mark.parametrize("command", main.commands)
def test_a_benchmark_runs(command: str) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as disk:  # pytest's own folders may be in memory
        Path(disk).chmod(0o755)  # as root, PostgreSQL runs as nobody
        program = [sys.executable, "-m", "tests.bench", "--disk", disk, command, *SMALL[command]]
        done = subprocess.run(program, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
