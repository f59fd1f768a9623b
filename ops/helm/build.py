"""Generates the chart's derived files: `python -m ops.helm.build`.

Helm reads nothing outside a chart, so the rules, the dashboard and Alertmanager's configuration are copied into it.
values.schema.json comes from values.yaml and the servers' own schemas, README.md's table from values.yaml's comments.
"""

import json
from pathlib import Path
from typing import Final

from ops.helm import CHART
from ops.helm.values import build_values_schema, build_values_table

_OPS: Final = Path(__file__).parents[1]
TABLE_MARKER: Final = "<!-- values.yaml's comments, by python -m ops.helm.build -->\n\n"


def build_files() -> dict[Path, str]:
    """Return the content of each derived file."""
    copied = {f"rules/{rules.name}": rules for rules in (_OPS / "prometheus/rules").glob("*.yml")}
    copied["kms-health.json"] = _OPS / "grafana/dashboards/kms-health.json"
    copied["alertmanager.yml"] = _OPS / "alertmanager/alertmanager.yml"
    files = {CHART / "files" / name: source.read_text(encoding="utf-8") for name, source in copied.items()}
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    files[CHART / "values.schema.json"] = json.dumps(build_values_schema(values), indent=1) + "\n"
    readme = CHART / "README.md"
    prose = readme.read_text(encoding="utf-8").partition(TABLE_MARKER)[0]
    files[readme] = prose + TABLE_MARKER + build_values_table(values)
    return files


def main() -> None:
    """Write them, and remove copies without a source."""
    files = build_files()
    for file in (CHART / "files").rglob("*.*"):
        if file not in files:
            file.unlink()
    for file, content in files.items():
        file.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
