"""What Artifact Hub shows of the chart: https://artifacthub.io/docs/topics/annotations/helm/."""

import re
from typing import Any

import pytest
import yaml

from ops.helm import CHART
from ops.helm.build import build_annotations
from tests.ops.helm.matrix import MATRIX
from tests.ops.helm.rendering import containers, pods, texts_as_they_are
from tests.tracked_files import ROOT

ABOUT: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
CATEGORIES = {
    *("ai-machine-learning", "database", "integration-delivery", "monitoring-logging", "networking", "security"),
    *("storage", "streaming-messaging"),
}


def _annotation(name: str) -> Any:
    return yaml.safe_load(ABOUT["annotations"][f"artifacthub.io/{name}"])


def test_every_link_leads_into_the_repository_to_a_file_that_it_has() -> None:
    links = [ABOUT["home"], ABOUT["icon"], *ABOUT["sources"], *(each["url"] for each in _annotation("links"))]
    links += [each["url"] for each in ABOUT["maintainers"]]
    for link in links:
        found = re.fullmatch(
            r"https://(?:github|raw\.githubusercontent)\.com/acme/keypulse(?:/(?:tree/|blob/)?main/(.+)|/issues)?", link
        )
        assert found, link
        assert (ROOT / (found[1] or "")).exists(), link


def test_the_images_are_those_that_the_chart_runs() -> None:
    values = MATRIX["everything on"] | {"env": "staging"}
    run = {
        container["image"]
        for _, pod in pods(
            [
                each
                for name, text in texts_as_they_are(values).items()
                if name.endswith(".yaml")
                for each in yaml.safe_load_all(text)
                if each
            ]
        )
        for container in containers(pod)
    }
    assert {each["image"] for each in _annotation("images")} == run


def test_artifact_hub_knows_every_value() -> None:
    assert ABOUT["annotations"]["artifacthub.io/category"] in CATEGORIES
    assert ABOUT["annotations"]["artifacthub.io/containsSecurityUpdates"] in {"true", "false"}
    assert all(isinstance(value, str) for value in ABOUT["annotations"].values())
    assert [each["name"] for each in _annotation("links")][-1] == "support", "it has a place of its own"
    repository = yaml.safe_load((CHART.parent / "artifacthub-repo.yml").read_text(encoding="utf-8"))
    assert repository.keys() <= {"repositoryID", "owners", "ignore"}


@pytest.mark.parametrize(
    ("changelog", "change", "is_secure"),
    [
        (
            "# C\n\n## 2.0.0 — 2026-02-01\n\nTwo: `a`\nand b.\n\n### Relay\n\n## 1.0.0\n\nOne.\n",
            "Two: `a` and b.",
            "false",
        ),
        ("# C\n\n## Unreleased\n\nFixed.\n\n### Security\n\n- x\n\n## 1.0.0\n", "Fixed.", "true"),
        ("# C\n\n## 2.0.0\n\n### Relay\n\n## 1.0.0\n\nOne.\n\n### Security\n\n- x\n", "See CHANGELOG.md.", "false"),
    ],
)
def test_the_change_is_what_the_changelog_says_of_the_version(changelog: str, change: str, is_secure: str) -> None:
    built = yaml.safe_load(build_annotations("a/{}:1", changelog))
    assert yaml.safe_load(built["artifacthub.io/changes"]) == [change]
    assert built["artifacthub.io/containsSecurityUpdates"] == is_secure
