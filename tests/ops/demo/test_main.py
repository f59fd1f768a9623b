"""What `keypulse-demo` looks at before it says that all is well, and what it gives to the shell of a person on call."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from ops.demo import __main__ as demo
from ops.demo import configuration
from ops.demo.configuration import DOCS
from ops.demo.processes import Ports
from tests import processes

NOWHERE = Ports(*range(1, 10))
"""Ports on which nothing listens."""


async def test_a_part_that_does_not_work_is_a_red_line_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert await demo._run_smoke_test(NOWHERE) is False
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("  ✗ backend answers: http://127.0.0.1:3/healthz cannot be reached")
    assert lines[0].endswith("; start it, or correct the address")
    assert [line[2] for line in lines] == list("✗------✗------✗✗-")


def test_the_shell_of_a_person_on_call_has_the_runbooks_variables_and_keypulses_commands(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    configuration.write_shell_environment(folder, NOWHERE, "gcp")
    script = f'. "{folder}/env"; env; command -v python'
    printed = subprocess.run(["/bin/sh", "-ec", script], capture_output=True, text=True, check=True).stdout
    found = dict(line.partition("=")[::2] for line in printed.splitlines())
    assert found["EXPORTER"] == "http://127.0.0.1:1"
    assert found["RELAY_CONFIG"] == f"{folder}/relay.yml"
    assert found["KEYPULSE_SMOKE_BASE_URL"] == found["BACKEND"] == "http://127.0.0.1:3"
    assert printed.splitlines()[-1] == str(Path(sys.executable).parent / "python")

    runbook = (DOCS / "KMS_OPERATIONS.md").read_text(encoding="utf-8")
    wanted = {name for line in re.findall(r"^export .*", runbook, re.MULTILINE) for name in re.findall(r"(\w+)=", line)}
    assert wanted - {"NAMESPACE", "KEYPULSE_NAMESPACE"} <= found.keys(), "the demo runs in no Kubernetes"


START_AND_SAY_WHEN = """
from ops.demo import __main__ as demo
from ops.demo.processes import Ports, Processes

free, start = Ports.pick_free(), Processes.start

async def say(self, name, *arguments):
    print(name, flush=True)
    return await start(self, name, *arguments)

demo.Ports, Processes.start = (lambda: free), say
demo.main()
"""


def test_a_sigterm_while_it_starts_ends_it_in_order(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START_AND_SAY_WHEN]
    with processes.running(command, cwd=tmp_path, stdout=PIPE, stderr=PIPE, text=True) as starting:
        assert starting.stdout
        while starting.stdout.readline() not in ("exporter\n", ""):
            pass
        starting.send_signal(signal.SIGTERM)
        said = starting.stdout.read()
        assert (processes.end_and_read(starting), starting.returncode, said.splitlines()[-1]) == ("", 0, "stopping …")
