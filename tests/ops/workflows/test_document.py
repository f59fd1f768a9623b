"""docs/GITHUB.md: what it tells people to write and to set is what the workflows and the action read."""

import re

import yaml

from ops.github import required_reviewers
from tests.ops.workflows.conftest import ROOT, WORKFLOWS

DOCUMENT = (ROOT / "docs/GITHUB.md").read_text()
ACTION = (ROOT / "action.yml").read_text()
ROTATE = (WORKFLOWS / "kms-rotate.yml").read_text()
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)]


def test_each_example_gives_the_action_inputs_that_it_has() -> None:
    workflow, smoke = EXAMPLES
    (job,) = workflow["jobs"].values()
    given = [step["with"] for step in [*job["steps"], *smoke] if "keypulse" in step["uses"]]
    assert [inputs["command"] for inputs in given] == ["rotate", "smoke"]
    declared = yaml.safe_load(ACTION)["inputs"]
    assert all(set(inputs) <= set(declared) for inputs in given)
    assert all(isinstance(value, str) for inputs in given for value in inputs.values()), "as the action compares them"
    assert given[0]["environment"] == job["environment"]
    assert job["permissions"]["actions"] == "read"


def test_each_variable_and_each_secret_of_the_rotation_is_explained_and_no_other() -> None:
    read = set(re.findall(r"(?:vars|secrets)\.(\w+)", ROTATE))
    rows = [row for row in DOCUMENT.splitlines() if re.match(r" +\| `KEYPULSE_", row)]
    assert {name for row in rows for name in re.findall(r"`(KEYPULSE_\w+)`", row.split("|")[1])} == read
    assert all(name in ROTATE.partition("\nname: ")[0] for name in read), "and at the head of the workflow"


def test_each_refusal_that_it_explains_is_one_that_is_printed() -> None:
    table = DOCUMENT.partition("## When it refuses")[2].partition("##")[0]
    refusals = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    code = ACTION + required_reviewers.__loader__.get_source(required_reviewers.__name__)  # type: ignore[union-attr]
    assert len(refusals) == 6
    for refusal in refusals:
        parts = refusal.replace("3", "{_ATTEMPTS}").split("…")
        assert all(part.strip() in code for part in parts), refusal
