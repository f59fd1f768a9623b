"""The hooks of pre-commit run every tool that `make check` runs."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_each_tool_of_make_check_has_a_hook() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ncheck: install")[2].partition("\n\n")[0]
    programs = {
        re.sub(r"^\$\(BIN\)/|^.*/", "", line.split()[0])
        for line in recipe.splitlines()[1:]
        if not line.startswith("\t@")
    }
    assert {"ruff", "mypy", "lint-imports", "promtool"} < programs
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = " ".join(hook["entry"] for hook in local["hooks"])
    missing = {program for program in programs - {"npm"} if not re.search(rf"(?:^|[/ ']){program}\b", entries)}
    assert missing == set()


def test_a_hook_downloads_nothing() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
