"""Each generated file of the chart equals what `python -m ops.helm.build` generates now."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.helm import CHART
from ops.helm.build import build_files
from ops.helm.values import build_values_schema, build_values_table
from tests.ops.helm.matrix import SIDECAR_EXAMPLE


def test_nothing_has_changed_since_it_was_built() -> None:
    differ = [str(file) for file, content in build_files().items() if file.read_text(encoding="utf-8") != content]

    assert differ == [], "run: .venv/bin/python -m ops.helm.build"


def test_the_table_has_each_value_with_its_default_and_its_comment() -> None:
    text = "# About a.\n# Of two lines.\na: 1\nb:\n  # About c|d.\n  c: {e: [x]}\n  config:\n    f: null\n"

    assert build_values_table(text).splitlines()[2:] == [
        "| `a` | `1` | About a. Of two lines. |",
        '| `b.c` | `{"e": ["x"]}` | About c\\|d. |',
        '| `b.config` | `{"f": null}` |  |',
    ]


def test_the_schema_explains_every_value_by_its_comment() -> None:
    built = build_files()[CHART / "values.schema.json"]
    assert list(_unexplained(json.loads(built), "")) == []

    schema = build_values_schema(_VALUES)
    relay = schema["properties"]["relay"]["properties"]
    assert (relay["c"]["description"], relay["b"]["description"]) == ("Of b.", "Of b.")
    assert list(_unexplained(schema, "")) == ["a", "relay"]


_VALUES = """
a: 1
# A part.
exporter:
  # Its Secret.
  existingSecret: a
  # Of b.
  b: 1
relay:
  existingSecret: a
  # As exporter.b.
  c: 1
  b: 1
# A part.
rotator:
  existingSecret: a
# A part.
backend:
  existingSecret: a
"""


def _unexplained(schema: dict[str, Any], path: str) -> Iterator[str]:
    """The values without a description; what is below one of Kubernetes's own objects is explained with it."""
    for name, value in schema["properties"].items():
        if "description" not in value:
            yield f"{path}{name}"
        elif value.get("properties", {}).keys() & {"requests", "runAsUser", "smoke"} or name in {"config", "endpoint"}:
            continue
        if "properties" in value:
            yield from _unexplained(value, f"{path}{name}.")


@pytest.mark.parametrize("chart", [CHART, SIDECAR_EXAMPLE])
def test_the_charts_have_the_version_of_keypulse(chart: Path) -> None:
    from shared import VERSION

    about = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))

    assert about.get("appVersion", VERSION) == VERSION
    assert [each["version"] for each in about.get("dependencies", [])] in ([], [VERSION])
