"""A commit is checked by the commands of `make check`: none is missing, and none differs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / ".pre-commit-config.yaml"


def hooks() -> list[dict[str, Any]]:
    (repository,) = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local", "a commit downloads nothing"
    found = list(repository["hooks"])
    assert {hook["language"] for hook in found} == {"system"}
    return found


def recipe(target: str) -> list[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = text.partition(f"\n{target}:")[2].partition("\n\n")[0].splitlines()[1:]
    return [line.strip().replace("$(BIN)/", ".venv/bin/") for line in lines if not line.startswith("\t@")]


def test_the_configuration_is_valid() -> None:
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", str(CONFIGURATION)], check=True)


def test_every_command_of_make_check_is_a_hook() -> None:
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in hooks()]
    commands = recipe("check")
    assert len(commands) > 5
    for command in commands:
        whole = re.sub(r" \.$", "", command)
        assert any(whole == entry or whole.startswith(f"{entry} ") for entry in entries), command
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (first,) = re.findall(r"^check: (.*) ##", text, re.MULTILINE)
    assert {f"make {target}" for target in first.split() if target != "install"} <= set(entries)
    assert len(entries) == len(commands) + len(first.split()) - 1


def test_every_shell_script_of_make_check_is_one_for_pre_commit_too() -> None:
    (command,) = [line for line in recipe("check") if "shellcheck" in line]
    for script in command.split()[1:]:
        assert (ROOT / script).read_text(encoding="utf-8").startswith("#!/usr/bin/env bash"), script


@pytest.mark.parametrize(
    ("hook", "file"),
    [
        ("mypy", "pyproject.toml"),
        ("mypy", "shared/kms/port.py"),
        ("lint-imports", "pyproject.toml"),
        ("helm-lint", "ops/helm/lint.py"),
        ("helm-lint", "ops/helm/keypulse/values.yaml"),
    ],
)
def test_a_command_runs_on_a_change_of_what_configures_it_too(hook: str, file: str) -> None:
    (files,) = [each["files"] for each in hooks() if each["id"] == hook]
    assert re.search(files, file)
    assert (ROOT / file).is_file()
