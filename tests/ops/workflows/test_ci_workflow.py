"""`ci.yml` runs what a person types, with each Python that keypulse says it runs on."""

import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.ops.workflows.conftest import ROOT, WORKFLOWS
from tests.ops.workflows.expression import interpolate

CI: dict[Any, Any] = yaml.load((WORKFLOWS / "ci.yml").read_text(), yaml.CSafeLoader)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = CI["jobs"]["test"]["strategy"]["matrix"]["python"]
PULL = "docker pull --quiet \"$(sed -n 's/^FROM \\(.*\\) AS python$/\\1/p' ops/docker/Dockerfile)\""
MAKE = re.compile(r'(?:sudo env "PATH=\$PATH" )?make ([\w-]+)(?: ONCE=1)?')


def test_what_it_runs_is_what_a_person_types() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [step["run"] for job in CI["jobs"].values() for step in job["steps"] if "run" in step]
    typed = [found[1] if (found := MAKE.fullmatch(line)) else line for line in lines]
    expected = {"demo", "install", "test", "test-lower-bounds", "check", "rehearse", "test-containers"}
    assert set(typed) - {PULL} == expected <= targets


def test_a_machine_without_an_image_does_not_pass_for_one_that_can_run_no_container() -> None:
    typed = [step["run"] for step in CI["jobs"]["containers"]["steps"] if "run" in step]
    assert typed.index(PULL) < next(n for n, line in enumerate(typed) if line.endswith("make test-containers"))


def test_each_python_is_one_that_keypulse_says_it_runs_on() -> None:
    classified = [found[1] for each in PROJECT["classifiers"] if (found := re.fullmatch(r".* :: (3\.\d+)", each))]
    assert classified == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


def test_each_job_takes_a_python_of_these_and_caches_by_the_lock() -> None:
    for job in CI["jobs"].values():
        (setup,) = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
        assert setup["python-version"] in {*PYTHONS, "${{ matrix.python }}"}
        assert (ROOT / setup["cache-dependency-path"]).exists()
        assert setup["cache"] == "pip"


@pytest.mark.parametrize(("event", "faults"), [("schedule", "long"), ("push", ""), ("pull_request", "")])
def test_the_fault_suite_plays_longer_at_night(event: str, faults: str) -> None:
    job = CI["jobs"]["test"]
    contexts = {"github": {"event_name": event}}
    assert interpolate(job["env"]["FAULTS"], contexts) == faults
    assert CI[True]["schedule"]  # YAML reads `on` as true


def test_a_newer_push_ends_what_it_overtakes_and_neither_a_night_nor_a_release() -> None:
    def group(**github: str) -> str:
        return interpolate(CI["concurrency"]["group"], {"github": github})

    main = {"workflow": "CI", "event_name": "push", "ref": "refs/heads/main"}
    assert CI["concurrency"]["cancel-in-progress"] is True
    others = [{"event_name": "schedule"}, {"workflow": "Release"}, {"ref": "refs/heads/other"}]
    assert len({group(**{**main, **other}) for other in [{}, *others]}) == 4
