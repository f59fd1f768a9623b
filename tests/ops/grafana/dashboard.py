"""The dashboards as they are checked in, and what tests look for in them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[3] / "ops/grafana"


def _load(folder: str) -> dict[str, dict[str, Any]]:
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted((FOLDER / folder).glob("*.json"))
    }


DASHBOARDS, PORTABLE = _load("dashboards"), _load("portable")
"""By name: as provisioning reads them, and as the import does."""
DASHBOARD, ON_CALL = DASHBOARDS["kms-health"], DASHBOARDS["kms-on-call"]
PANELS: list[dict[str, Any]] = [
    panel for dashboard in DASHBOARDS.values() for panel in dashboard["panels"] if panel["type"] != "row"
]
"""Of both."""
ANNOTATIONS: list[dict[str, Any]] = DASHBOARD["annotations"]["list"]
VARIABLES: dict[str, dict[str, Any]] = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
BY_ENV_ONLY = {panel["title"] for panel in PANELS if panel["id"] > 600} | {
    *("Nobody has it", "Channels now", "Heartbeat", "What was delivered")
}
"""Neither the relay nor a credential has a service."""


def expressions() -> Iterator[tuple[str, str]]:
    """What asks, and what it asks."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in ANNOTATIONS:
        yield f"annotation {annotation['name']}", annotation["expr"]


def metrics(expression: str) -> set[str]:
    """The names of metrics in an expression."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\b(?:by|ignoring|on|group_left)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"\b(?:[a-z]+:[a-z0-9_]+|(?:crypto|kms|relay|process|keypulse)_\w+|ALERTS\w*|up)\b", bare))


def labels(expression: str) -> set[str]:
    """The labels that an expression matches or groups by."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    grouped = re.findall(r"\b(?:by|ignoring|on|group_left)\s*\(([^)]*)\)", bare)
    matched = re.findall(r"\{([^}]*)\}", bare)
    return set(re.findall(r"\w+", " ".join(grouped))) | set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)", " ".join(matched)))


def urls(node: Any) -> Iterator[str]:
    """Every address in the dashboard."""
    if isinstance(node, dict):
        if isinstance(node.get("url"), str):
            yield node["url"]
        for value in node.values():
            yield from urls(value)
    elif isinstance(node, list):
        for value in node:
            yield from urls(value)
