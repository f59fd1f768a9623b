"""Dependabot and the forms of an issue, by GitHub's rules: only GitHub reports what breaks one of these.

https://docs.github.com/en/communities/using-templates-to-encourage-useful-issues-and-pull-requests/syntax-for-githubs-form-schema
"""

from collections import Counter
from typing import Any

import pytest
import yaml

from tests.ops.workflows.conftest import ROOT

GITHUB = ROOT / ".github"
CONFIG = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE/config.yml").read_text())
FORMS: dict[str, dict[str, Any]] = {
    file.stem: yaml.safe_load(file.read_text())
    for file in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))
    if file.stem != "config"
}
ATTRIBUTES = {
    "markdown": {"value"},
    "input": {"label", "description", "placeholder", "value"},
    "textarea": {"label", "description", "placeholder", "value", "render"},
    "dropdown": {"label", "description", "multiple", "options", "default"},
    "checkboxes": {"label", "description", "options"},
}


@pytest.mark.parametrize("form", FORMS)
def test_github_takes_the_form(form: str) -> None:
    document = FORMS[form]
    assert {"name", "description", "body"} <= document.keys() <= {"name", "description", "body", "title", "labels"}
    questions = [element for element in document["body"] if element["type"] != "markdown"]
    assert questions
    for element in document["body"]:
        assert element.keys() <= {"type", "id", "attributes", "validations"}
        assert element["attributes"].keys() <= ATTRIBUTES[element["type"]]
        assert "value" in element["attributes"] or element["attributes"]["label"]
        assert element.get("validations", {}).keys() <= {"required"}
        options = [str(each) for each in element["attributes"].get("options", [])]
        assert len(set(options)) == len(options)
    for name in (Counter(q["id"] for q in questions), Counter(q["attributes"]["label"] for q in questions)):
        assert max(name.values()) == 1


def test_a_bug_comes_with_its_version_and_its_check_and_without_secrets() -> None:
    elements = {element.get("id"): element for element in FORMS["bug"]["body"]}
    for name in ("version", "check"):
        assert f"--{name}" in str(elements[name]["attributes"])
        assert elements[name]["validations"] == {"required": True}
    assert "Remove what is secret" in elements[None]["attributes"]["value"]
    assert elements["redacted"]["attributes"]["options"][0]["required"] is True


def test_a_vulnerability_is_led_to_the_policy_and_a_blank_issue_to_a_form() -> None:
    assert CONFIG["blank_issues_enabled"] is False
    (link,) = CONFIG["contact_links"]
    assert link.keys() == {"name", "url", "about"}
    assert link["url"].endswith("/security/policy")  # where GitHub shows SECURITY.md
    assert (ROOT / "SECURITY.md").exists()


def test_dependabot_checks_where_there_is_something_to_update() -> None:
    document = yaml.safe_load((GITHUB / "dependabot.yml").read_text())
    found = {
        "pip": {file.parent for file in ROOT.glob("pyproject.toml")},
        "github-actions": {ROOT for _ in (GITHUB / "workflows").glob("*.yml")},
        "docker": {file.parent for file in ROOT.glob("ops/**/Dockerfile")},
        "npm": {file.parent for file in ROOT.glob("ops/**/package-lock.json")},
    }
    there = {
        (kind, "/" + str(folder.relative_to(ROOT)).strip(".")) for kind, folders in found.items() for folder in folders
    }
    assert document["version"] == 2
    assert {(each["package-ecosystem"], each["directory"]) for each in document["updates"]} == there
    assert len(document["updates"]) == len(there)
