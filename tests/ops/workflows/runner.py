"""A job of a workflow on this machine: each step in order, with the environment that GitHub's runner gives it.

`run:` steps run for real, in bash. `uses: ./` runs the steps of the repository's own action. Other `uses:` steps are
looked at and passed over: what they bring (a checkout, Python, an artifact's storage, credentials) is the test's own.
What a workflow uses beyond that is refused.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from tests.ops.workflows.expression import condition, interpolate

_WORKFLOW: Final = {"name", True, "permissions", "concurrency", "defaults", "jobs"}  # YAML reads `on` as true
_JOB: Final = {"if", "runs-on", "environment", "timeout-minutes", "permissions", "env", "outputs", "steps"}
_STEP: Final = {"name", "id", "if", "env", "run", "uses", "with"}
_ACTION: Final = {"name", "description", "inputs", "runs"}
_SHELL: Final = ("bash", "--noprofile", "--norc", "-eo", "pipefail")
"""What `shell: bash` stands for."""


@dataclass
class Step:
    """How one step went."""

    name: str
    outcome: str
    """success, failure or skipped."""
    output: str = ""
    """What it printed."""
    outputs: dict[str, str] = field(default_factory=dict)
    """What it wrote to GITHUB_OUTPUT."""
    using: dict[str, str] = field(default_factory=dict)
    """`with`, of a `uses` step."""


@dataclass
class Runner:
    """One machine. `contexts` holds `inputs`, `vars`, `secrets` and `github`, as far as a workflow asks for them."""

    folder: Path
    path: str
    """PATH."""
    contexts: dict[str, dict[str, Any]]
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the machine itself has."""

    def __post_init__(self) -> None:
        self.workspace, self.temp = self.folder / "workspace", self.folder / "temp"
        for each in (self.workspace, self.temp):
            each.mkdir(exist_ok=True)
        self.summary = ""
        self._number = 0
        self.status = "success"

    def run(self, workflow: Path, name: str | None = None) -> list[Step]:
        """The steps of the job with this name, or of the workflow's only one; none where its `if` says no."""
        document = yaml.load(workflow.read_text(encoding="utf-8"), yaml.CSafeLoader)
        _check_keys(document, _WORKFLOW)
        assert document["defaults"] == {"run": {"shell": "bash"}}
        (job,) = [document["jobs"][name]] if name else document["jobs"].values()
        _check_keys(job, _JOB)
        github = {"workspace": str(self.workspace), **self.contexts["github"]}
        contexts: dict[str, Any] = {**self.contexts, "github": github}
        if not condition(job.get("if"), contexts, self.status):
            return []
        env = {name: interpolate(text, contexts) for name, text in job.get("env", {}).items()}
        return self._run_steps(job["steps"], contexts, env)

    def use(self, action: Path, given: Mapping[str, str], env: dict[str, str] | None = None) -> list[Step]:
        """The steps of a composite action, with what stands in `with`."""
        document = yaml.load((action / "action.yml").read_text(encoding="utf-8"), yaml.CSafeLoader)
        _check_keys(document, _ACTION)
        assert document["runs"].keys() == {"using", "steps"}
        assert document["runs"]["using"] == "composite"
        github = {"workspace": str(self.workspace), **self.contexts["github"]}
        inputs = {}
        _check_keys(dict(given), set(document["inputs"]))
        for name, described in document["inputs"].items():
            assert not described.get("required") or name in given
            inputs[name] = given[name] if name in given else interpolate(described["default"], {"github": github})
        contexts = {"github": github, "inputs": inputs}
        steps = document["runs"]["steps"]
        assert all(step.get("shell") == "bash" for step in steps if "run" in step)
        bare = [{key: value for key, value in step.items() if key != "shell"} for step in steps]
        env = {} if env is None else env
        env["GITHUB_ACTION_PATH"] = str(action)
        return self._run_steps(bare, contexts, env)

    def _run_steps(self, steps: list[dict[str, Any]], contexts: dict[str, Any], env: dict[str, str]) -> list[Step]:
        outputs: dict[str, Any] = {}
        ended = []
        for step in steps:
            _check_keys(step, _STEP)
            inside = {**contexts, "steps": outputs, "runner": {"temp": str(self.temp)}}
            own = {k: interpolate(v, {**inside, "env": env}) for k, v in step.get("env", {}).items()}
            inside["env"] = {**env, **own}
            if step.get("uses") == "./" and condition(step.get("if"), inside, self.status):
                given = {key: interpolate(str(value), inside) for key, value in step.get("with", {}).items()}
                ended += self.use(self.workspace, given, env)
                continue
            done = self._step(step, inside, env)
            if done.outcome == "failure":
                self.status = "failure"
            if "id" in step:
                outputs[step["id"]] = {"outcome": done.outcome, "outputs": done.outputs}
            ended.append(done)
        return ended

    def _step(self, step: dict[str, Any], contexts: dict[str, Any], env: dict[str, str]) -> Step:
        name = step.get("name") or step.get("uses") or step["run"]
        if not condition(step.get("if"), contexts, self.status):
            return Step(name, "skipped")
        if "uses" in step:
            using = {key: interpolate(str(value), contexts) for key, value in step.get("with", {}).items()}
            brought = {"python-path": f"{self.folder}/bin/python"} if "actions/setup-python@" in step["uses"] else {}
            return Step(name, "success", using=using, outputs=brought)
        assert "${{" not in step["run"], "a value that somebody else chooses would be read as a command"
        self._number += 1
        number = self._number
        files = {key: self.folder / f"{key}_{number}" for key in ("ENV", "OUTPUT", "PATH", "STEP_SUMMARY")}
        for file in files.values():
            file.touch()
        script = self.folder / f"step_{number}.sh"
        script.write_text(step["run"], encoding="utf-8")
        done = subprocess.run(
            [*_SHELL, script],
            cwd=self.workspace,
            env={
                "PATH": self.path,
                "HOME": str(self.folder),
                "LANG": "C.UTF-8",
                "CI": "true",
                "GITHUB_ACTIONS": "true",
                "GITHUB_WORKSPACE": str(self.workspace),
                "RUNNER_TEMP": str(self.temp),
                **self.environment,
                **contexts["env"],
                **{f"GITHUB_{key}": str(file) for key, file in files.items()},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        env |= commands(files["ENV"].read_text(encoding="utf-8"))
        self.path = os.pathsep.join([*reversed(files["PATH"].read_text().split()), self.path])
        self.summary += files["STEP_SUMMARY"].read_text(encoding="utf-8")
        outputs = commands(files["OUTPUT"].read_text(encoding="utf-8"))
        return Step(name, "success" if done.returncode == 0 else "failure", done.stdout, outputs)


def commands(text: str) -> dict[str, str]:
    """What a step wrote to GITHUB_ENV: lines of `NAME=VALUE`, or `NAME<<WORD`, lines, `WORD`."""
    values: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if several := re.fullmatch(r"(\w+)<<(\S+)", line):
            collected = []
            while (each := next(lines)) != several[2]:
                collected.append(each)
            values[several[1]] = "\n".join(collected)
        else:
            name, equals, value = line.partition("=")
            assert equals, f"the runner would refuse {line!r}"
            values[name] = value
    return values


def _check_keys(mapping: dict[Any, Any], keys: set[Any]) -> None:
    assert set(mapping) <= keys, f"the runner of the tests does not know {set(mapping) - keys}"
