"""`action.yml` as another repository uses it: without a checkout of keypulse, and with nothing of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.ops.github.stand_in import REPOSITORY, StandIn, run_stand_in
from tests.ops.workflows.conftest import ROOT, NewMachine
from tests.ops.workflows.runner import Runner, Step

SECRETS = {
    "admin-token": "an-admin-token-of-a-test",
    "pgpass": "*:*:*:*:a-password",
    "records-token": "a-records-token-of-a-test",
    "relay-token": "a-relay-token-of-a-test",
    "grafana-token": "a-grafana-token-of-a-test",
}
APPROVED = "The environment asks for an approval"


@pytest.fixture
def github() -> Iterator[StandIn]:
    with run_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def elsewhere(machine: NewMachine, github: StandIn) -> Runner:
    """A machine whose workspace is empty."""
    runner = machine(environment={"GITHUB_API_URL": github.url, "GITHUB_REPOSITORY": REPOSITORY})
    for link in runner.workspace.iterdir():
        link.unlink()
    return runner


def write_program(file: Path, script: str) -> None:
    file.write_text(f"#!/bin/sh\n{script}")
    file.chmod(0o755)


def use(runner: Runner, **given: str) -> tuple[dict[str, str], str]:
    """How each step went, and what all of them printed."""
    steps = runner.use(ROOT, {name.replace("_", "-"): value for name, value in given.items()})
    assert {path.name for path in runner.temp.iterdir()} <= {"keypulse"}, "no secret is left"
    printed = "".join(step.output for step in steps)
    assert not any(secret in printed for secret in SECRETS.values())
    return outcomes(steps), printed


def outcomes(steps: list[Step]) -> dict[str, str]:
    return {step.name: step.outcome for step in steps}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"command": "destroy"}, "command: expected rotate or smoke"),
        ({"command": "rotate", "rotation-type": "all"}, "rotation-type: expected both, new-dek or rewrap-kek"),
        ({"command": "rotate", "dry-run": "yes"}, "dry-run: expected true or false"),
        ({"command": "rotate", "driver": "../x"}, "driver: expected a name such as admin_api"),
        ({"command": "rotate", "driver": "none"}, "config, driver: there is no such configuration"),
        ({"command": "rotate", "config": "missing.yml"}, "config, driver: there is no such configuration"),
        ({"command": "rotate", "ssh-key": "k"}, "ssh-known-hosts: expected the host's key"),
    ],
)
def test_a_wrong_input_is_one_sentence_and_nothing_else_happens(
    elsewhere: Runner, github: StandIn, given: dict[str, str], error: str
) -> None:
    done, printed = use(elsewhere, **SECRETS, **given)
    assert done["Check the inputs"] == "failure"
    assert printed.startswith(f"::error::{error}")
    assert {name for name, outcome in done.items() if outcome == "success"} == {
        *("actions/setup-python@a309ff8b426b58ec0e2a45f0f869d46889d02405", "Remove the secrets"),
    }
    assert github.requests == []


def test_nothing_is_rotated_where_the_environment_asks_for_no_approval(elsewhere: Runner, github: StandIn) -> None:
    github.environments["staging"] = {"name": "staging", "protection_rules": []}
    done, printed = use(elsewhere, **SECRETS, command="rotate", dry_run="false", environment="staging")
    assert done[APPROVED] == "failure"
    assert "environment staging has no required reviewers" in printed
    assert {done[name] for name in ("Install", "The secrets, in files", "Plan", "Verify")} == {"skipped"}


def test_nothing_is_rotated_where_the_environment_is_not_named(elsewhere: Runner) -> None:
    done, printed = use(elsewhere, command="rotate", dry_run="false")
    assert done[APPROVED] == "failure"
    assert "expected the name of the environment that the job runs in" in printed


def test_who_does_not_say_otherwise_changes_nothing(elsewhere: Runner, github: StandIn) -> None:
    write_program(elsewhere.folder / "commands/keypulse-rotator", 'echo "$*"')
    _, printed = use(elsewhere, command="rotate")
    config = f"--config {ROOT}/ops/rotator/admin_api.yml"
    assert printed.splitlines() == [
        f"plan {config}",
        f"run --type rewrap-kek {config} --dry-run",
        f"run --type new-dek {config} --dry-run",
        f"verify {config}",
        f"status {config}",
    ]
    assert github.requests == []


def test_the_job_keeps_its_python_and_gets_keypulses_commands_alone(elsewhere: Runner) -> None:
    before = {path.name for path in (elsewhere.folder / "bin").iterdir()}
    done, _ = use(elsewhere, command="smoke", base_url="http://127.0.0.1:1")
    assert done["Install"] == "success"
    assert {path.name for path in (elsewhere.folder / "bin").iterdir()} == before
    folders = [Path(folder) for folder in elsewhere.path.split(os.pathsep)]
    assert folders[:2] == [elsewhere.temp / "keypulse/commands", elsewhere.folder / "bin"]
    assert all(path.name.startswith("keypulse-") for path in folders[0].iterdir())
    python = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"][0]
    assert python["with"]["update-environment"] is False


def test_a_smoke_test_needs_no_checkout(elsewhere: Runner) -> None:
    done, printed = use(elsewhere, **SECRETS, command="smoke", base_url="http://127.0.0.1:1")
    assert done["Smoke test"] == "failure"
    assert "✗ backend answers: http://127.0.0.1:1/healthz cannot be reached" in printed
    assert done[APPROVED] == done["Plan"] == done["Status"] == "skipped"
    assert done["Keep the backup and the reports"] == "success"
    assert (elsewhere.workspace / "smoke.xml").exists()


_SSH = """\
for each in "$@"; do echo "$each"; done >"$SEEN"
stat -c %a "$4" >>"$SEEN"
cat "$4" "${6#*=}" >>"$SEEN"
exit 9
"""


def test_ssh_takes_the_key_and_the_hosts_that_were_given_and_nothing_of_the_machine(
    elsewhere: Runner, tmp_path: Path
) -> None:
    received = tmp_path / "seen"
    write_program(elsewhere.folder / "bin/ssh", _SSH)
    write_program(
        elsewhere.folder / "commands/keypulse-rotator", "ssh rotator@host.example.org 'keypulse-backend admin'"
    )
    elsewhere.environment = {**elsewhere.environment, "SEEN": str(received)}
    (elsewhere.workspace / "rotator.yml").write_bytes((ROOT / "ops/rotator/command.yml").read_bytes())
    ours = {"ssh_key": "-----KEY\r\nabc\r\n", "ssh_known_hosts": "host ssh-ed25519 AAAA"}
    done, printed = use(elsewhere, command="rotate", config="rotator.yml", **ours)
    folder = elsewhere.temp / "keypulse-secrets/ssh"
    assert done["Plan"] == "failure", printed
    assert received.read_text().splitlines() == [
        *("-F", "none", "-i", f"{folder}/key", "-o", f"UserKnownHostsFile={folder}/known_hosts"),
        *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=yes"),
        *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
        *("rotator@host.example.org", "keypulse-backend admin"),
        *("600", "-----KEY", "abc", "", "host ssh-ed25519 AAAA"),
    ]
