"""`python -m ops.release TAG`: checks the repository for a release, and prints its section of CHANGELOG.md.

The tag must be the version of pyproject.toml, of the chart and of the images' labels, and the chart must name the
pushed images. Every third-party image must have a digest, so that no build uses another one tomorrow.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import yaml

from ops.release.pin import find_references

_CHART_FILE = "ops/helm/keypulse/Chart.yaml"
_EXAMPLE_CHART_FILE = "ops/helm/examples/sidecar/Chart.yaml"
_VALUES_FILE = "ops/helm/keypulse/values.yaml"
_DOCKERFILE = "ops/docker/Dockerfile"


@click.command()
@click.argument("tag")
@click.option("--images", metavar="NAME", help="The registry path of the images, such as ghcr.io/acme/keypulse.")
def main(tag: str, images: str | None) -> None:
    """Print the release notes of TAG, or one line for each error with exit code 1."""
    errors = [*_find_version_errors(Path(), tag, images)]
    for line in errors:
        click.echo(line, err=True)
    if errors:
        sys.exit(1)
    click.echo(extract_release_notes(Path("CHANGELOG.md").read_text(encoding="utf-8"), tag.removeprefix("v")))


def extract_release_notes(changelog: str, version: str) -> str:
    """Return the section of a version without its heading `## 1.2.3`, which may have a date; empty if there is none."""
    found = re.search(rf"^## {re.escape(version)}(?: [^\n]*)?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def _find_version_errors(root: Path, tag: str, images: str | None) -> list[str]:
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        return [f"the tag {tag!r} is no version; it has to be v1.2.3"]
    version = tag.removeprefix("v")
    chart = _load_yaml(root / _CHART_FILE)
    label = re.search(r"^ARG VERSION=(.*)$", (root / _DOCKERFILE).read_text(encoding="utf-8"), re.MULTILINE)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = {
        "pyproject.toml, version": project["version"],
        f"{_CHART_FILE}, version": chart["version"],
        f"{_CHART_FILE}, appVersion": chart["appVersion"],
        f"{_EXAMPLE_CHART_FILE}, version of the dependency": _load_yaml(root / _EXAMPLE_CHART_FILE)["dependencies"][0][
            "version"
        ],
        f"{_DOCKERFILE}, ARG VERSION": label and label[1],
    }
    errors = [f"{where} is {found}, and the tag is {tag}" for where, found in versions.items() if found != version]
    if not extract_release_notes((root / "CHANGELOG.md").read_text(encoding="utf-8"), version):
        errors.append(f"CHANGELOG.md says nothing under the heading `## {version}`; give `## Unreleased` that name")
    repository = _load_yaml(root / _VALUES_FILE)["image"]["repository"]
    if images not in {None, repository}:
        errors.append(
            f"{_VALUES_FILE} takes images from {repository}, and they go to {images}; "
            "change image.repository there, and run: python -m ops.helm.build"
        )
    address = project["urls"]["Repository"]
    if images and f"ghcr.io{urlsplit(address).path.lower()}" != images:
        errors.append(f"pyproject.toml sends readers to {address}, and the images go to {images}; change project.urls")
    unpinned = dict.fromkeys((each.name_with_tag, each.file) for each in find_references(root) if each.digest is None)
    errors += [
        f"{file} names {tagged} without its digest; expected TAG@sha256:…, which python -m ops.release.pin writes"
        for tagged, file in unpinned
    ]
    return errors


def _load_yaml(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    main()
