"""`python -m ops.helm.lint`, a step of `make check`, fails of what Helm refuses, and of what it only warns of."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops.helm import CHART

OLD = "apiVersion: policy/v1beta1\nkind: PodDisruptionBudget\nmetadata: {name: old}\nspec: {}\n"


def _lint(chart: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.helm.lint", chart], check=False, capture_output=True, text=True, timeout=60
    )


def test_the_chart_as_it_is_passes() -> None:
    passed = _lint(CHART)

    assert passed.returncode == 0
    findings = [line.partition('message="')[2] for line in passed.stderr.splitlines()]
    assert [line.partition(":")[0] for line in findings] == ["image.repository, runbookUrl"], (
        "to fill in before an installation"
    )


@pytest.mark.parametrize(
    ("template", "finding"),
    [(OLD, "policy/v1beta1 PodDisruptionBudget is deprecated"), ("{{ .Values.nobody.knows }}", "nil pointer")],
    ids=["a warning", "a mistake"],
)
def test_what_helm_finds_is_named_and_fails(template: str, finding: str, tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "keypulse")
    (tmp_path / "keypulse/templates/one.yaml").write_text(template)

    failed = _lint(tmp_path / "keypulse")

    assert failed.returncode == 1
    assert finding in failed.stderr
