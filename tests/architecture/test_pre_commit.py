"""A commit is checked by the commands of `make check`: none is missing, and none differs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    commands = recipe("check-python") + recipe("check-files")
    assert len(commands) > 5
    for command in commands:
        whole = re.sub(r" \.$", "", command)
        assert any(whole == entry or whole.startswith(f"{entry} ") for entry in entries), command
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (parts,) = re.findall(r"--output-sync=target (.*)$", text, re.MULTILINE)
    others = {f"make {target}" for target in parts.split()} - {"make check-python", "make check-files"}
    assert others <= set(entries)
    assert len(entries) == len(commands) + len(others)
