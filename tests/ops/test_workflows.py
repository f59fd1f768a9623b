"""What no workflow and no action may do; and the action's refusals, in the shell that prints them."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.github.action_as_workflow import ACTION, build_workflow
from services.rotator.config import RotatorSettings
from shared.config.settings import load_settings

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
DOCUMENTS: dict[str, dict[Any, Any]] = {file.stem: yaml.load(file.read_text(), yaml.CSafeLoader) for file in FILES}
JOBS = [(file, job) for file, document in DOCUMENTS.items() for job in document["jobs"].values()]
ACTION_STEPS: list[dict[str, Any]] = yaml.safe_load(ACTION.read_text())["runs"]["steps"]
STEPS = [step for _, job in JOBS for step in job.get("steps", [])] + ACTION_STEPS
RUNS = [step for step in STEPS if "run" in step]
RELEASE = DOCUMENTS["release"]["jobs"]


@pytest.mark.parametrize("file", [*FILES, ACTION], ids=lambda file: file.stem)
def test_every_action_is_pinned_to_a_commit_and_says_its_version(file: Path) -> None:
    used = re.findall(r"uses: (?!\./)(.*)", file.read_text())
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)] == []


def test_no_expression_stands_in_a_command_and_shellcheck_has_nothing_to_say(tmp_path: Path) -> None:
    assert [step["run"] for step in RUNS if "${{" in step["run"]] == []
    scripts = []
    for number, step in enumerate(RUNS):
        scripts.append(tmp_path / f"{number}.sh")
        scripts[-1].write_text(step["run"])
    command = [str(ROOT / ".venv/bin/shellcheck"), "--shell=bash", *map(str, scripts)]
    done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_secret_is_given_to_no_step_that_does_not_use_it() -> None:
    given = [
        name for file in FILES for name in re.findall(r"secrets\.(\w+)", re.sub(r"(?m)^\s*#.*", "", file.read_text()))
    ]
    read = [
        value
        for step in RUNS
        for name, value in step.get("env", {}).items()
        if "secrets." in value and f'"${name}"' in step["run"]
    ]
    passed_on = [
        name
        for step in STEPS
        if step.get("uses") == "./"
        for name, value in step["with"].items()
        if "secrets." in value
    ]
    assert len(given) == len(read) + len(passed_on), "each secret stands in the `env` of a step whose command reads it"
    for name in passed_on:
        reading = [
            step
            for step in RUNS
            for variable, value in step.get("env", {}).items()
            if value == f"${{{{ inputs.{name} }}}}" and f'"${variable}"' in step["run"]
        ]
        assert len(reading) == 1, name


def test_what_others_send_starts_nothing_but_the_tests() -> None:
    """`pull_request_target` and `workflow_run` would run a stranger's code with secrets and a token that writes."""
    starts = {file: set(document[True]) for file, document in DOCUMENTS.items()}  # YAML reads `on` as true
    assert starts == {
        "ci": {"push", "pull_request", "schedule", "workflow_dispatch", "workflow_call"},
        "release": {"push"},
        "docs": {"push", "workflow_dispatch"},
        "kms-rotate": {"schedule", "workflow_dispatch"},
        "kms-crypto-smoke": {"schedule", "deployment_status", "repository_dispatch", "workflow_dispatch"},
        "document-reviews": {"schedule", "workflow_dispatch"},
    }
    assert DOCUMENTS["release"][True] == {"push": {"tags": ["v*"]}}
    assert "secrets." not in (ROOT / ".github/workflows/ci.yml").read_text()


def test_ci_runs_the_demo_before_the_tests_and_the_tests_with_the_lowest_versions() -> None:
    typed = [[step["run"] for step in job["steps"] if "run" in step] for job in DOCUMENTS["ci"]["jobs"].values()]
    assert ["make demo ONCE=1", "make test"] in typed
    assert ["make test-lower-bounds"] in typed


def test_a_job_may_read_the_code_and_no_more_without_a_reason_and_ends_some_time() -> None:
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
        "release: wheel": {"id-token", "attestations"},
        "release: pypi": {"id-token"},
        "release: release": {"contents"},
        "docs: publish": {"pages", "id-token"},
    }
    assert [job for _, job in JOBS if "steps" in job and "timeout-minutes" not in job] == []
    checkouts = [step for step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"] == {"persist-credentials": False} for step in checkouts)


def test_a_rotation_waits_for_its_approval_and_is_alone() -> None:
    rotate = DOCUMENTS["kms-rotate"]
    assert rotate["concurrency"] == {"group": "kms-rotate", "cancel-in-progress": False}
    (job,) = rotate["jobs"].values()
    (rotation,) = [step["with"] for step in job["steps"] if step["uses"] == "./"]
    assert job["environment"] == rotation["environment"], "the approved environment is the one that is asked for"
    inputs = rotate[True]["workflow_dispatch"]["inputs"]
    assert inputs["dry_run"]["default"] is True
    action = yaml.safe_load(ACTION.read_text())["inputs"]
    assert {inputs["rotation_type"]["default"], action["rotation-type"]["default"]} == {"new-dek"}
    assert rotation["rotation-type"] == "${{ inputs.rotation_type || vars.KEYPULSE_ROTATION_TYPE || 'new-dek' }}"
    names = [step.get("name") for step in ACTION_STEPS]
    approval = ACTION_STEPS[names.index("The environment asks for an approval")]
    assert approval["if"] == "${{ inputs.command == 'rotate' && inputs.dry-run != 'true' }}"
    assert names.index("The environment asks for an approval") < names.index("Install") < names.index("Plan")


def test_actionlint_reads_every_step_and_input_of_the_action() -> None:
    workflow, action = build_workflow(), yaml.safe_load(ACTION.read_text())
    assert workflow["jobs"]["action"]["steps"] == action["runs"]["steps"]
    assert workflow["on"]["workflow_call"]["inputs"].keys() == action["inputs"].keys()
    assert all(step["with"].keys() <= action["inputs"].keys() for step in STEPS if step.get("uses") == "./")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"COMMAND": "destroy"}, "command: expected rotate or smoke"),
        ({"ROTATION_TYPE": "all"}, "rotation-type: expected both, new-dek or rewrap-kek"),
        ({"DRY_RUN": "yes"}, "dry-run: expected true or false"),
        ({"DRIVER": "../x"}, "driver: expected a name such as admin_api"),
        ({"DRIVER": "none"}, "config, driver: there is no such configuration"),
        ({"CONFIG": "missing.yml"}, "config, driver: there is no such configuration"),
        ({"SSH_KEY_GIVEN": "true"}, "ssh-known-hosts: expected the host's key"),
        ({}, ""),
    ],
)
def test_a_wrong_input_of_the_action_is_one_sentence(given: dict[str, str], error: str, tmp_path: Path) -> None:
    (step,) = [step for step in ACTION_STEPS if step.get("name") == "Check the inputs"]
    good = {"COMMAND": "rotate", "CONFIG": "", "DRIVER": "admin_api", "ROTATION_TYPE": "both", "DRY_RUN": "true"}
    places = {"GITHUB_ACTION_PATH": str(ROOT), "GITHUB_WORKSPACE": str(tmp_path), "PATH": os.environ["PATH"]}
    outputs = {name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_ENV")}
    environment = good | {"SSH_KEY_GIVEN": "false", "KNOWN_HOSTS": ""} | given | places | outputs
    command = ["bash", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == bool(error)
    assert done.stdout.startswith(f"::error::{error}" if error else "")
    assert bool(error) != (tmp_path / "GITHUB_OUTPUT").exists()


def test_nothing_is_released_before_the_tests_pass_and_the_locks_are_audited() -> None:
    def before(job: str) -> set[str]:
        needs = RELEASE[job].get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        return direct.union(*(before(each) for each in direct))

    writing = [name for name, job in RELEASE.items() if "permissions" in job]
    assert all({"check", "ci", "vulnerabilities"} <= before(name) for name in writing)
    assert before("release") == set(RELEASE) - {"release"}
    # A job that ran out of time is cancelled, and what needs it is skipped: that is no `failure()`.
    assert set(re.findall(r"needs\.(\w+)\.result == 'success'", RELEASE["release"]["if"])) == {"chart", "wheel", "pypi"}
    assert "needs.pypi.result == 'skipped'" in RELEASE["release"]["if"]


@pytest.mark.parametrize(
    ("workflow", "job", "variable", "action"),
    [
        ("release", "pypi", "KEYPULSE_PYPI", "pypa/gh-action-pypi-publish"),
        ("docs", "publish", "KEYPULSE_PAGES", "actions/deploy-pages"),
    ],
)
def test_what_strangers_see_is_published_by_a_job_that_runs_no_code_of_ours_and_is_off(
    workflow: str, job: str, variable: str, action: str
) -> None:
    publishes = DOCUMENTS[workflow]["jobs"][job]
    assert publishes["if"].startswith(f"vars.{variable} == 'true'")
    assert f"`{variable}`" in (ROOT / "CONTRIBUTING.md").read_text()
    assert "environment" in publishes
    *_, last = publishes["steps"]
    assert last["uses"].startswith(action)
    assert not any("run" in step or "actions/checkout" in step["uses"] for step in publishes["steps"])
    assert "password" not in last.get("with", {}), "PyPI trusts the workflow: there is no token to steal"


def test_an_image_gets_its_tag_only_after_it_was_scanned() -> None:
    targets = re.findall(r"^FROM base AS (\S+)", (ROOT / "ops/docker/Dockerfile").read_text(), re.MULTILINE)
    assert RELEASE["images"]["strategy"]["matrix"]["target"] == targets
    names = [step.get("name", step.get("uses", "").partition("@")[0]) for step in RELEASE["images"]["steps"]]
    assert names.index("Build and push") < names.index("Scan") < names.index("Give it its tag")
    build = next(step["run"] for step in RELEASE["images"]["steps"] if step.get("name") == "Build and push")
    assert "push-by-digest=true" in build
    assert "--tag" not in build


def test_each_variable_and_each_secret_of_the_rotation_is_explained_and_no_other() -> None:
    rotate, document = (ROOT / ".github/workflows/kms-rotate.yml").read_text(), (ROOT / "docs/GITHUB.md").read_text()
    rows = [row for row in document.splitlines() if re.match(r" +\| `KEYPULSE_", row)]
    explained = {name for row in rows for name in re.findall(r"`(KEYPULSE_\w+)`", row.split("|")[1])}
    assert explained == set(re.findall(r"(?:vars|secrets)\.(\w+)", rotate))


@pytest.mark.parametrize("file", sorted((ROOT / "ops/rotator").glob("*.yml")), ids=lambda file: file.stem)
def test_every_driver_has_a_configuration_that_is_valid(file: Path) -> None:
    assert load_settings(RotatorSettings, file).driver.kind == {"docker": "command"}.get(file.stem, file.stem)


def test_each_way_to_the_keyring_is_compared_in_the_document_and_named_in_the_workflow_s_head() -> None:
    ways = {file.stem for file in (ROOT / "ops/rotator").glob("*.yml")}
    document, workflow = (ROOT / "docs/GITHUB.md").read_text(), (ROOT / ".github/workflows/kms-rotate.yml").read_text()
    (table,) = re.findall(r"^\| `KEYPULSE_DRIVER` \| how .*\n\|[-|]+\|\n((?:\|.*\n)+)", document, re.MULTILINE)
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == ways
    assert set(re.findall(r"^#   (\w+)  +", workflow, re.MULTILINE)) == ways
