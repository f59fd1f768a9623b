"""Machines on which a workflow runs: a checkout, Python's tools, and keypulse's commands once they are installed."""

import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fork_server import forked
from tests.ops.github.stand_in import TOKEN
from tests.ops.workflows.runner import Runner

ROOT = Path(__file__).parents[3]
WORKFLOWS = ROOT / ".github/workflows"
NewMachine = Callable[..., Runner]

# It installs nothing from anywhere: what it would install is here already, and it is not for a test to wait for an
# index. It refuses what is not locked.
_PIP = """#!/usr/bin/env bash
set -e
case "$*" in
  "install --quiet --require-hashes --only-binary :all: -r "*)
    for file in "${@:6}"; do [[ $file = -r || -f $file ]]; done ;;
  "install --quiet --no-deps --no-build-isolation --no-index .") cp %(commands)s/keypulse-* "$(dirname "$0")" ;;
  *) echo "pip: not like this: $*" >&2; exit 2 ;;
esac
"""

# A virtual environment has this pip, too.
_PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
  for folder; do :; done
  mkdir -p "$folder/bin" && cp "${0%%/*}/pip" "$folder/bin/"
else
  exec %(python)s "$@"
fi
"""


@pytest.fixture
def machine(tmp_path: Path) -> NewMachine:
    """A new machine for each call; none shares anything with another."""
    count = 0

    def new(
        inputs: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        event: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Runner:
        nonlocal count
        count += 1
        folder = tmp_path / f"machine-{count}"
        (folder / "bin").mkdir(parents=True)
        (folder / "commands").mkdir()
        _program(folder / "bin/pip", _PIP % {"commands": folder / "commands"})
        _program(folder / "bin/python", _PYTHON % {"python": sys.executable})
        for name, function in _scripts().items():
            start = shlex.join(forked(function.removesuffix(".__main__:main")))
            _program(folder / "commands" / name, f'#!/bin/sh\nexec {start} "$@"\n')
        contexts: dict[str, dict[str, Any]] = {
            "inputs": dict(inputs or {}),
            "vars": dict(variables or {}),
            "secrets": dict(secrets or {}),
            "github": {"token": TOKEN, **(event or {"event_name": "workflow_dispatch"})},
        }
        path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
        runner = Runner(folder, path, contexts, {"PYTHONPATH": str(ROOT), **(environment or {})})
        for name in ("action.yml", "ops", "requirements"):
            (runner.workspace / name).symlink_to(ROOT / name)
        return runner

    return new


def _scripts() -> dict[str, str]:
    scripts: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert all(re.fullmatch(r"[\w.]+\.__main__:main", function) for function in scripts.values())
    return scripts


def _program(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)
