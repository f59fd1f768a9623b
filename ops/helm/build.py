"""Generates the chart's derived files: `python -m ops.helm.build`.

Helm reads nothing outside a chart, so the rules, the dashboard and Alertmanager's configuration are copied into it.
values.schema.json comes from values.yaml and the servers' own schemas, README.md's table from values.yaml's comments,
the last annotations of Chart.yaml from values.yaml and CHANGELOG.md.
"""

import json
import re
from pathlib import Path
from typing import Final

import yaml

from ops.helm import CHART
from ops.helm.values import PARTS, build_values_schema, build_values_table

_OPS: Final = Path(__file__).parents[1]
TABLE_MARKER: Final = "<!-- values.yaml's comments, by python -m ops.helm.build -->\n\n"
_ANNOTATIONS_MARKER: Final = "  # From here on of values.yaml and CHANGELOG.md, by python -m ops.helm.build.\n"


def build_files() -> dict[Path, str]:
    """Return the content of each derived file."""
    copied = {f"rules/{rules.name}": rules for rules in (_OPS / "prometheus/rules").glob("*.yml")}
    copied["thresholds.yml"] = _OPS / "prometheus/thresholds.yml"
    copied |= {f"dashboards/{board.name}": board for board in (_OPS / "grafana/dashboards").glob("*.json")}
    copied["alertmanager.yml"] = _OPS / "alertmanager/alertmanager.yml"
    files = {CHART / "files" / name: source.read_text(encoding="utf-8") for name, source in copied.items()}
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    files[CHART / "values.schema.json"] = json.dumps(build_values_schema(values), indent=1) + "\n"
    readme = CHART / "README.md"
    prose = readme.read_text(encoding="utf-8").partition(TABLE_MARKER)[0]
    files[readme] = prose + TABLE_MARKER + build_values_table(values)
    about = CHART / "Chart.yaml"
    written = about.read_text(encoding="utf-8").partition(_ANNOTATIONS_MARKER)[0]
    repository, version = yaml.safe_load(values)["image"]["repository"], yaml.safe_load(written)["appVersion"]
    changelog = (_OPS.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    files[about] = written + _ANNOTATIONS_MARKER + build_annotations(f"{repository}/{{}}:{version}", changelog)
    return files


def build_annotations(image: str, changelog: str) -> str:
    """Return Artifact Hub's annotations that each release changes.

    Args:
        image: an image's name, with `{}` for the part's.
        changelog: its first section is that of the version. What the section says before its headings is the change;
            a heading `### Security` makes it a security update.
    """
    section = re.split(r"^## .*$", changelog, maxsplit=2, flags=re.MULTILINE)[1]
    change = " ".join(section.partition("\n#")[0].split()) or "See CHANGELOG.md."
    lines = {
        "images": "|\n" + "\n".join(f"    - {{name: {part}, image: {image.format(part)}}}" for part in PARTS),
        "changes": f"|\n    - {json.dumps(change, ensure_ascii=False)}",
        "containsSecurityUpdates": json.dumps(str("\n### Security\n" in section).lower()),
    }
    return "".join(f"  artifacthub.io/{key}: {value}\n" for key, value in lines.items())


def main() -> None:
    """Write them, and remove copies without a source."""
    files = build_files()
    for file in (CHART / "files").rglob("*.*"):
        if file not in files:
            file.unlink()
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
