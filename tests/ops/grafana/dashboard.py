"""The dashboard as it is checked in, and what tests look for in it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from ops.grafana.build import DASHBOARD_FILE

DASHBOARD: dict[str, Any] = json.loads(DASHBOARD_FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ANNOTATIONS: list[dict[str, Any]] = DASHBOARD["annotations"]["list"]
VARIABLES: dict[str, dict[str, Any]] = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
BY_ENV_ONLY = {panel["title"] for panel in PANELS if panel["id"] > 600}
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
