"""What a workflow may never do, whoever changes it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.github.action_as_workflow import build_workflow
from services.rotator.config import RotatorSettings
from shared.config.settings import load_settings
from tests.ops.workflows.conftest import ROOT, WORKFLOWS

ACTION = ROOT / "action.yml"
FILES = sorted(WORKFLOWS.glob("*.yml"))
DOCUMENTS: dict[str, dict[Any, Any]] = {file.stem: yaml.load(file.read_text(), yaml.CSafeLoader) for file in FILES}
JOBS = [(file, job) for file, document in DOCUMENTS.items() for job in document["jobs"].values()]
STEPS = [
    (f"{file}: {step.get('name') or step.get('uses') or step['run']}", step)
    for file, job in JOBS
    for step in job.get("steps", [])
]
INPUTS: dict[str, dict[str, Any]] = yaml.safe_load(ACTION.read_text())["inputs"]
STEPS += [(f"action: {step.get('name')}", step) for step in yaml.safe_load(ACTION.read_text())["runs"]["steps"]]
RUNS = [(name, step) for name, step in STEPS if "run" in step]


def test_there_are_these_workflows() -> None:
    assert set(DOCUMENTS) == {"ci", "release", "kms-rotate", "kms-crypto-smoke"}


@pytest.mark.parametrize("file", [*FILES, ACTION], ids=lambda file: file.stem)
def test_every_action_is_pinned_to_a_commit_and_says_its_version(file: Path) -> None:
    used = re.findall(r"uses: (?!\./)(.*)", file.read_text())
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)] == []


@pytest.mark.parametrize(("name", "step"), RUNS, ids=[name for name, _ in RUNS])
def test_no_expression_stands_in_a_command(name: str, step: dict[str, Any]) -> None:
    assert "${{" not in step["run"]


@pytest.mark.parametrize(("name", "step"), RUNS, ids=[name for name, _ in RUNS])
def test_shellcheck_has_nothing_to_say(name: str, step: dict[str, Any]) -> None:
    done = subprocess.run(
        [ROOT / ".venv/bin/shellcheck", "--shell=bash", "-"],
        input=step["run"],
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, ""), name


def test_a_secret_is_given_to_no_step_that_does_not_use_it() -> None:
    given = []
    for file in FILES:
        given += re.findall(r"secrets\.(\w+)", re.sub(r"(?m)^\s*#.*", "", file.read_text()))
    used = [
        (name, value)
        for _, step in RUNS
        for name, value in step.get("env", {}).items()
        if "secrets." in value and f'"${name}"' in step["run"]
    ]
    passed_on = [
        (name, value)
        for _, step in STEPS
        if step.get("uses") == "./"
        for name, value in step["with"].items()
        if "secrets." in value
    ]
    assert len(given) == len(used) + len(passed_on), "each secret stands in the `env` of a step whose command reads it"
    assert len(passed_on) == 7
    for name, _ in passed_on:
        reading = [
            step
            for _, step in RUNS
            for variable, value in step.get("env", {}).items()
            if value == f"${{{{ inputs.{name} }}}}" and f'"${variable}"' in step["run"]
        ]
        assert len(reading) == 1, name


def test_actionlint_reads_every_step_and_input_of_the_action() -> None:
    workflow = build_workflow()
    action = yaml.safe_load(ACTION.read_text())
    assert workflow["jobs"]["action"]["steps"] == action["runs"]["steps"]
    assert workflow["on"]["workflow_call"]["inputs"].keys() == action["inputs"].keys()


def test_the_action_is_used_with_inputs_that_it_has() -> None:
    uses = [step["with"] for _, step in STEPS if step.get("uses") == "./"]
    assert [given["command"] for given in uses] == ["smoke", "rotate"]
    assert all(set(given) <= set(INPUTS) for given in uses)
    named = set(re.findall(r"inputs\.([\w-]+)", ACTION.read_text()))
    assert named == set(INPUTS)


def test_what_others_send_starts_nothing_but_the_tests() -> None:
    """`pull_request_target` and `workflow_run` would run a stranger's code with secrets and a token that writes."""
    starts = {file: document[True] for file, document in DOCUMENTS.items()}  # YAML reads `on` as true
    assert set(starts["ci"]) == {"push", "pull_request", "schedule", "workflow_dispatch", "workflow_call"}
    assert starts["release"] == {"push": {"tags": ["v*"]}}
    assert set(starts["kms-rotate"]) == {"schedule", "workflow_dispatch"}
    assert set(starts["kms-crypto-smoke"]) == {
        *("schedule", "deployment_status", "repository_dispatch", "workflow_dispatch"),
    }
    assert "secrets." not in (WORKFLOWS / "ci.yml").read_text()


def test_a_job_may_read_the_code_and_no_more_without_a_reason() -> None:
    assert all(document["permissions"] == {"contents": "read"} for document in DOCUMENTS.values())
    granted = {
        f"{file}: {name}": {what for what, how in job["permissions"].items() if how != "read"}
        for file, document in DOCUMENTS.items()
        for name, job in document["jobs"].items()
        if "permissions" in job
    }
    assert granted == {
        "kms-rotate: rotate": {"id-token"},
        "release: images": {"packages", "id-token", "attestations"},
        "release: chart": {"packages", "id-token", "attestations"},
        "release: release": {"contents", "id-token", "attestations"},
    }
    assert all(re.search(r"write # \w", line) for file in FILES for line in re.findall(".*: write.*", file.read_text()))


def test_dependabot_sees_the_base_image() -> None:
    """It looks at a folder's Dockerfile for what `FROM` names itself, and passes over what stands behind a variable."""
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    (folder,) = [update["directory"] for update in updates if update["package-ecosystem"] == "docker"]
    dockerfile = (ROOT / folder.lstrip("/") / "Dockerfile").read_text()
    assert re.findall(r"^FROM (docker\.io/library/python:\S+) AS python$", dockerfile, re.MULTILINE)
    assert set(re.findall(r"^FROM (\$\S+)", dockerfile, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    assert "\nARG PYTHON_IMAGE=python\n" in dockerfile


def test_the_smoke_test_is_given_no_token_that_changes_anything_of_keypulse() -> None:
    text = (WORKFLOWS / "kms-crypto-smoke.yml").read_text()
    assert DOCUMENTS["kms-crypto-smoke"]["permissions"] == {"contents": "read"}
    assert "KEYPULSE_RELAY_TOKEN, of the role viewer" in text
    assert re.findall(r"secrets\.(\w*ADMIN\w*)", text) == []


def test_every_job_ends_some_time_and_no_checkout_keeps_its_credentials() -> None:
    assert [job for _, job in JOBS if "steps" in job and "timeout-minutes" not in job] == []
    checkouts = [step for _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == len([job for _, job in JOBS if "steps" in job])
    assert all(step["with"] == {"persist-credentials": False} for step in checkouts)


def test_a_rotation_waits_for_its_approval_and_is_alone() -> None:
    rotate = DOCUMENTS["kms-rotate"]
    assert rotate["concurrency"] == {"group": "kms-rotate", "cancel-in-progress": False}
    (job,) = rotate["jobs"].values()
    (rotation,) = [step["with"] for step in job["steps"] if step["uses"] == "./"]
    assert job["environment"] == rotation["environment"], (
        "the environment that was approved is the one that is asked for"
    )
    assert "|| 'production' }}" in job["environment"]
    assert rotate[True]["schedule"] == [{"cron": "0 9 1 * *"}]  # YAML reads `on` as true
    inputs = rotate[True]["workflow_dispatch"]["inputs"]
    assert set(inputs) == {"dry_run", "rotation_type", "driver", "environment"}
    assert inputs["dry_run"]["default"] is True, "whoever only clicks changes nothing"


def test_what_is_kept_is_kept_after_a_failure_too() -> None:
    uploads = [step for _, step in STEPS if "upload-artifact" in step.get("uses", "")]
    assert len(uploads) == 1
    assert all(step["if"].startswith("${{ always() && ") for step in uploads)


@pytest.mark.parametrize("file", sorted((ROOT / "ops/rotator").glob("*.yml")), ids=lambda file: file.stem)
def test_every_driver_has_a_configuration_that_is_valid(file: Path) -> None:
    assert load_settings(RotatorSettings, file).driver.kind == file.stem
