"""`python -m ops.release`: what a tag may release; and `ops.release.pin`, which writes the digests."""

import os
import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner

from ops.release import pin
from ops.release.__main__ import main
from ops.release.pin import FILES_WITH_IMAGES, REFERENCE_PATTERN, find_references
from tests.tracked_files import list_tracked_files

ROOT = Path(__file__).parents[2]
CHANGELOG = (
    "# Changelog\n\n## Unreleased\n\nSoon.\n\n## 0.1.0 — 2026-01-01\n\nThe first.\n\n- `one`\n\n## 0.0.1\n\nOld.\n"
)
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
DOCKERFILE = "ops/docker/Dockerfile"
CHART = "ops/helm/keypulse/Chart.yaml"
EXAMPLE = "ops/helm/examples/sidecar/Chart.yaml"
VALUES = "ops/helm/keypulse/values.yaml"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that a release reads, each image with a digest; and a docker on PATH that makes up digests."""
    for name in ("pyproject.toml", CHART, EXAMPLE, VALUES, *FILES_WITH_IMAGES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in FILES_WITH_IMAGES:
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(REFERENCE_PATTERN.sub(rf"\g<tagged>@{DIGEST}", text))
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(DOCKER)
    (tmp_path / "bin/docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


DOCKER = """#!/usr/bin/env bash
[[ "$*" == "buildx imagetools inspect "*" --format {{.Manifest.Digest}}" ]] || exit 9
[[ "$4" != *grafana* || -z "${REFUSES:-}" ]] || { echo "ERROR: unauthorized" >&2; exit 1; }
echo "sha256:$(printf '%s' "$4" | sha256sum | cut -d ' ' -f 1)"
"""


def test_a_tag_with_which_everything_agrees_is_released_with_its_notes(checkout: Path) -> None:
    done = CliRunner().invoke(main, ["v0.1.0", "--images", "ghcr.io/acme/keypulse"])
    assert (done.exit_code, done.output) == (0, "The first.\n\n- `one`\n")


@pytest.mark.parametrize(
    ("tag", "sentence"),
    [
        ("v0.1.1", "pyproject.toml, version is 0.1.0, and the tag is v0.1.1"),
        ("v0.1.1", "CHANGELOG.md says nothing under the heading `## 0.1.1`"),
        ("v0.1", "the tag 'v0.1' is no version; it has to be v1.2.3"),
        ("v0.1.0rc1", "the tag 'v0.1.0rc1' is no version"),
    ],
)
def test_a_tag_that_is_no_version_of_the_repository_is_refused(checkout: Path, tag: str, sentence: str) -> None:
    done = CliRunner().invoke(main, [tag])
    assert done.exit_code == 1
    assert sentence in done.output


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("pyproject.toml", '"0.1.0"', '"0.2.0"', "pyproject.toml, version is 0.2.0"),
        (CHART, "\nversion: 0.1.0", "\nversion: 0.2.0", "Chart.yaml, version is 0.2.0"),
        (CHART, "appVersion: 0.1.0", "appVersion: 0.2.0", "Chart.yaml, appVersion is 0.2.0"),
        (EXAMPLE, "    version: 0.1.0", "    version: 0.2.0", "version of the dependency is 0.2.0"),
        (DOCKERFILE, "VERSION=0.1.0", "VERSION=0.2.0", "ops/docker/Dockerfile, ARG VERSION is 0.2.0"),
        (DOCKERFILE, f"@{DIGEST}", "", "ops/docker/Dockerfile names docker.io/library/python:3.13-slim-trixie without"),
        (
            "compose.yaml",
            f":v3.5.0@{DIGEST}",
            f":v3.5.0@{DIGEST[:-1]}",
            "compose.yaml names docker.io/prom/prometheus:",
        ),
        (
            ".github/workflows/release.yml",
            f":0.67.2@{DIGEST}",
            ":0.67.2",
            "names docker.io/aquasec/trivy:0.67.2 without",
        ),
        ("CHANGELOG.md", "The first.\n\n- `one`\n", "", "CHANGELOG.md says nothing under the heading `## 0.1.0`"),
        (
            "pyproject.toml",
            "https://github.com/acme/keypulse",
            "https://github.com/x/y",
            "sends readers to https://github.com/x/y",
        ),
        (VALUES, "ghcr.io/acme/keypulse", "ghcr.io/x/y", "takes images from ghcr.io/x/y, and they go to ghcr.io/acme"),
    ],
)
def test_a_file_that_contradicts_the_tag_is_named(checkout: Path, name: str, old: str, new: str, sentence: str) -> None:
    text = (checkout / name).read_text()
    assert old in text
    (checkout / name).write_text(text.replace(old, new))
    done = CliRunner().invoke(main, ["v0.1.0", "--images", "ghcr.io/acme/keypulse"])
    assert done.exit_code == 1
    assert sentence in done.output
    assert done.output.count("\n") == 1, "one line for one mistake"


def test_no_document_says_that_pypi_has_it_before_it_does() -> None:
    """Remove this with the first release to PyPI."""
    says = re.compile(
        r"\b(?:pip|pipx|uv|uv tool) (?:install|add) [^\n`]*?(?<![\w./-])keypulse\b(?![/-])|\buvx ['\"]?keypulse"
    )
    documents = list_tracked_files("*.md", "*.yml", "*.yaml", "*.txt", "services/**/*.py", "ops/**/*.py")
    assert [(file.name, found[0]) for file in documents if (found := says.search(file.read_text("utf-8")))] == []


def test_every_image_of_others_is_pinned_by_one_command_which_may_run_again(checkout: Path) -> None:
    for _ in range(2):
        done = CliRunner().invoke(pin.main)
        assert done.exit_code == 0, done.output
        found = list(find_references(checkout))
        assert len({each.name_with_tag for each in found}) == 10
        assert all(each.digest == f"sha256:{sha256(each.name_with_tag.encode()).hexdigest()}" for each in found)


def test_a_registry_that_refuses_leaves_everything_as_it_was(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSES", "1")
    before = {file: (checkout / file).read_text() for file in FILES_WITH_IMAGES}
    done = CliRunner().invoke(pin.main)
    assert done.exit_code == 1
    assert "docker.io/grafana/grafana:12.2.0: no digest was found: ERROR: unauthorized" in done.output
    assert {file: (checkout / file).read_text() for file in FILES_WITH_IMAGES} == before
