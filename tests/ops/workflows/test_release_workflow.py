"""`release.yml`: what a tag may release, and that it is all of it."""

import os
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from ops.release import pin
from ops.release.__main__ import extract_release_notes
from ops.release.image_references import FILES_WITH_IMAGES, REFERENCE_PATTERN, find_references
from tests.ops.workflows.conftest import ROOT, WORKFLOWS, NewMachine
from tests.ops.workflows.runner import Runner, Step

FILE = WORKFLOWS / "release.yml"
JOBS: dict[str, dict[str, Any]] = yaml.load(FILE.read_text(), yaml.CSafeLoader)["jobs"]
CHANGELOG = """# Changelog

## Unreleased

Soon.

## 0.1.0 — 2026-01-01

The first whole.

- `one`

## 0.0.1

Old.
"""
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
DOCKERFILE = "ops/docker/Dockerfile"
CHART = "ops/helm/keypulse/Chart.yaml"
EXAMPLE = "ops/helm/examples/sidecar/Chart.yaml"
VALUES = "ops/helm/keypulse/values.yaml"


def commands(job: str) -> str:
    return "\n".join(step["run"] for step in JOBS[job]["steps"] if "run" in step)


def check(
    machine: NewMachine, tag: str, repository: str = "acme/keypulse", changed: tuple[str, str, str] = ("", "", "")
) -> Step:
    """The job `check` of a repository with version 0.1.0; `changed` is a file, what stands in it, and what shall."""
    runner: Runner = machine(event={"event_name": "push", "ref_name": tag, "repository": repository})
    _checkout(runner.workspace)
    name, old, new = changed
    if name:
        text = (runner.workspace / name).read_text()
        assert old in text
        (runner.workspace / name).write_text(text.replace(old, new))
    return runner.run(FILE, "check")[-1]


def _checkout(workspace: Path) -> None:
    """As much of one as the job reads; the rest is installed, or the test's own."""
    (workspace / "ops").unlink()
    shutil.copytree(ROOT / "ops/release", workspace / "ops/release")
    shutil.copytree(ROOT / "ops/tools", workspace / "ops/tools")
    (workspace / "ops/__init__.py").touch()
    for name in ("pyproject.toml", CHART, EXAMPLE, VALUES, *FILES_WITH_IMAGES):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, workspace / name)
    for name in FILES_WITH_IMAGES:
        text = (workspace / name).read_text()
        (workspace / name).write_text(REFERENCE_PATTERN.sub(rf"\g<tagged>@{DIGEST}", text))
    (workspace / "CHANGELOG.md").write_text(CHANGELOG)


def test_a_tag_with_which_everything_agrees_is_released_with_its_release_notes(machine: NewMachine) -> None:
    done = check(machine, "v0.1.0", "Acme/Keypulse")
    assert done.outcome == "success", done.output
    assert done.outputs == {
        "version": "0.1.0",
        "images": "ghcr.io/acme/keypulse",
        "notes": "The first whole.\n\n- `one`",
    }


@pytest.mark.parametrize(
    ("tag", "sentence"),
    [
        ("v0.1.1", "pyproject.toml, version is 0.1.0, and the tag is v0.1.1"),
        ("v0.1.1", "CHANGELOG.md says nothing under the heading `## 0.1.1`"),
        ("v0.1", "the tag 'v0.1' is no version; it has to be v1.2.3"),
        ("v0.1.0rc1", "the tag 'v0.1.0rc1' is no version"),
        ("v0.1.0 $(id)", "is no version"),
    ],
)
def test_a_tag_that_is_no_version_of_the_repository_ends_the_job(machine: NewMachine, tag: str, sentence: str) -> None:
    done = check(machine, tag)
    assert (done.outcome, done.outputs) == ("failure", {})
    assert sentence in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (("pyproject.toml", '"0.1.0"', '"0.2.0"'), "pyproject.toml, version is 0.2.0"),
        ((CHART, "\nversion: 0.1.0", "\nversion: 0.2.0"), "Chart.yaml, version is 0.2.0"),
        ((CHART, "appVersion: 0.1.0", "appVersion: 0.2.0"), "Chart.yaml, appVersion is 0.2.0"),
        ((EXAMPLE, "    version: 0.1.0", "    version: 0.2.0"), "version of the dependency is 0.2.0"),
        ((DOCKERFILE, "VERSION=0.1.0", "VERSION=0.2.0"), "ops/docker/Dockerfile, ARG VERSION is 0.2.0"),
        (
            (DOCKERFILE, f"@{DIGEST}", ""),
            "ops/docker/Dockerfile names docker.io/library/python:3.13-slim-trixie without",
        ),
        (
            ("compose.yaml", f":v3.5.0@{DIGEST}", ":v3.5.0"),
            "compose.yaml names docker.io/prom/prometheus:v3.5.0 without",
        ),
        (
            ("compose.yaml", f":v3.5.0@{DIGEST}", f":v3.5.0@{DIGEST[:-1]}"),
            "compose.yaml names docker.io/prom/prometheus:",
        ),
        (("compose.yaml", f":v3.5.0@{DIGEST}", f":v3.5.0@{DIGEST}0"), "compose.yaml names docker.io/prom/prometheus:"),
        (
            (".github/workflows/release.yml", f":0.67.2@{DIGEST}", ":0.67.2"),
            "release.yml names docker.io/aquasec/trivy:0.67.2 without its digest; expected TAG@sha256:…",
        ),
        (
            (".github/workflows/release.yml", f":qemu-v10.2.3@{DIGEST}", ":qemu-v10.2.3"),
            "release.yml names docker.io/tonistiigi/binfmt:qemu-v10.2.3 without its digest; expected TAG@sha256:…",
        ),
        (
            (".github/workflows/release.yml", f"scanner:1.11.0@{DIGEST}", "scanner:1.11.0"),
            "release.yml names docker.io/docker/buildkit-syft-scanner:1.11.0 without its digest",
        ),
        (
            ("CHANGELOG.md", "The first whole.\n\n- `one`\n", ""),
            "CHANGELOG.md says nothing under the heading `## 0.1.0`",
        ),
        (
            (VALUES, "ghcr.io/acme/keypulse", "ghcr.io/x/y"),
            "takes images from ghcr.io/x/y, and they go to ghcr.io/acme",
        ),
    ],
)
def test_a_file_that_contradicts_the_tag_is_named(
    machine: NewMachine, changed: tuple[str, str, str], sentence: str
) -> None:
    done = check(machine, "v0.1.0", changed=changed)
    assert done.outcome == "failure"
    assert sentence in done.output
    assert done.output.count("\n") == 1, "one line for one mistake"


def test_the_release_notes_are_of_this_version_and_no_other() -> None:
    assert extract_release_notes(CHANGELOG, "0.0.1") == "Old."
    assert (
        extract_release_notes(CHANGELOG.replace(" — 2026-01-01", ""), "0.1.0")
        == extract_release_notes(CHANGELOG, "0.1.0")
        != ""
    )
    assert extract_release_notes(CHANGELOG, "0.1") == extract_release_notes(CHANGELOG, "0x1.0") == ""


def test_every_image_is_built_and_no_other() -> None:
    targets = re.findall(r"^FROM base AS (\S+)", (ROOT / "ops/docker/Dockerfile").read_text(), re.MULTILINE)
    (built,) = re.findall(r"targets=\((.*)\)$", (ROOT / "ops/docker/build").read_text().split("((")[1], re.MULTILINE)
    assert JOBS["images"]["strategy"]["matrix"]["target"] == targets == built.split()


def test_images_come_for_both_processors_with_sbom_and_provenance() -> None:
    text = commands("images")
    for option in ("--platform linux/amd64,linux/arm64", "type=sbom", "--provenance=mode=max", "push=true"):
        assert option in text
    labels = re.findall(r"^ARG (VERSION|REVISION|SOURCE)=", (ROOT / "ops/docker/Dockerfile").read_text(), re.MULTILINE)
    assert re.findall(r'--build-arg "(\w+)=', text) == labels


def test_nothing_is_pushed_before_the_tests_pass_and_the_locks_are_audited() -> None:
    def before(job: str) -> set[str]:
        needs = JOBS[job].get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        return direct.union(*(before(each) for each in direct))

    writing = [name for name, job in JOBS.items() if "permissions" in job]
    assert writing == ["images", "chart", "release"]
    assert all({"check", "ci", "vulnerabilities"} <= before(name) for name in writing)
    assert before("release") == set(JOBS) - {"release"}
    assert JOBS["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert commands("vulnerabilities") == "make pip-audit"


def test_the_locks_of_every_image_are_audited() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\npip-audit:")[2].partition("\n\n")[0]
    assert "for lock in requirements/*.lock" in recipe


PRETENDED = """#!/usr/bin/env bash
[[ "$*" == "buildx imagetools inspect "*" --format {{.Manifest.Digest}}" ]] || exit 9
[[ "$4" != *grafana* || -z "${REFUSES:-}" ]] || { echo "ERROR: unauthorized" >&2; exit 1; }
echo "sha256:$(printf '%s' "$4" | sha256sum | cut -d ' ' -f 1)"
"""


@pytest.fixture
def registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's files in a folder of their own, and a docker on PATH that makes up digests."""
    for name in FILES_WITH_IMAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(PRETENDED)
    (tmp_path / "bin/docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_image_of_others_is_pinned_by_one_command_which_may_run_again(registries: Path) -> None:
    before = {file: REFERENCE_PATTERN.sub(r"\g<tagged>", (registries / file).read_text()) for file in FILES_WITH_IMAGES}
    assert len({each.name_with_tag for each in find_references(registries)}) == 10
    for _ in range(2):
        done = CliRunner().invoke(pin.main)
        assert done.exit_code == 0, done.output
        found = list(find_references(registries))
        assert all(each.digest == f"sha256:{sha256(each.name_with_tag.encode()).hexdigest()}" for each in found)
        assert {
            file: REFERENCE_PATTERN.sub(r"\g<tagged>", (registries / file).read_text()) for file in FILES_WITH_IMAGES
        } == before


def test_a_registry_that_refuses_leaves_everything_as_it_was(registries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSES", "1")
    before = {file: (registries / file).read_text() for file in FILES_WITH_IMAGES}
    done = CliRunner().invoke(pin.main)
    assert done.exit_code == 1
    assert "docker.io/grafana/grafana:12.2.0: no digest was found: ERROR: unauthorized" in done.output
    assert {file: (registries / file).read_text() for file in FILES_WITH_IMAGES} == before


def test_an_image_gets_its_tag_only_after_it_was_scanned() -> None:
    names = [step.get("name", step.get("uses", "").partition("@")[0]) for step in JOBS["images"]["steps"]]
    assert names.index("Build and push") < names.index("Scan") < names.index("Give it its tag")
    assert names[-1] == "actions/attest-build-provenance"
    by_name = {step.get("name"): step for step in JOBS["images"]["steps"]}
    assert "push-by-digest=true" in by_name["Build and push"]["run"]
    assert "--tag" not in by_name["Build and push"]["run"]
    assert "--exit-code 1" in by_name["Scan"]["run"]
    assert "linux/amd64 linux/arm64" in by_name["Scan"]["run"]
    assert by_name["Scan"]["env"]["IMAGE"].endswith("@${{ steps.push.outputs.digest }}")


def test_what_builds_and_scans_is_of_one_version() -> None:
    env = JOBS["images"]["env"]
    assert set(env) == {"BUILDX", "BUILDKIT", "QEMU", "SBOM", "SCANNER"}
    assert all(re.search(r"v?\d+\.\d+\.\d+", version) for version in env.values())
    (qemu,) = [step["with"] for step in JOBS["images"]["steps"] if "setup-qemu-action@" in step.get("uses", "")]
    assert (qemu["image"], qemu["cache-image"]) == ("${{ env.QEMU }}", False)
    assert '--attest "type=sbom,generator=$SBOM"' in commands("images")
    (buildx,) = [step["run"] for step in JOBS["images"]["steps"] if step.get("name") == "Buildx"]
    assert "sha256sum --check --strict" in buildx
    assert "image=$BUILDKIT" in buildx
    helm = [line for job in ("images", "chart") for line in commands(job).splitlines() if re.match(r"\s*helm ", line)]
    assert helm == [], "the chart is packed by the wheel that requirements/dev.lock holds by its hash"
    assert re.search(
        r"^helm-python-sdk==\S+ \\\n\s+--hash=sha256:", (ROOT / "requirements/dev.lock").read_text(), re.MULTILINE
    )


def test_the_chart_has_provenance_too() -> None:
    steps = JOBS["chart"]["steps"]
    assert steps[-1]["uses"].startswith("actions/attest-build-provenance@")
    assert steps[-1]["with"] == {
        "subject-name": "${{ steps.push.outputs.chart }}",
        "subject-digest": "${{ steps.push.outputs.digest }}",
        "push-to-registry": True,
    }


def test_security_md_says_which_versions_are_supported_and_how_to_report() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    assert "## Supported versions" in text
    assert "## How to report" in text
    assert "| the latest release" in text
    assert re.search(r"within \d+ working days", text)
