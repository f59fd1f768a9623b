"""The dashboards keep the rules of a good panel, those of grafana/dashboard-linter that fit here among them."""

import re
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import pytest

from tests.ops.grafana.dashboard import DASHBOARD, DASHBOARDS

FIRST = [
    "Health",
    "Crypto mode",
    "Crypto ready",
    "Uptime since init",
    "Decryption error rate",
    "Health over time",
    "Services",
    "Active alerts",
]
KINDS = {"stat", "timeseries", "state-timeline", "heatmap", "table"}
"""What comes with Grafana and is not deprecated, such as `graph`, `singlestat` and `table-old` are."""
Document = dict[str, Any]
Findings = Iterator[str]


def lint(dashboard: Document) -> list[str]:
    """Everything that is wrong."""
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    found = [finding for rule in WHOLE for finding in rule(dashboard["panels"])]
    return found + [f"{panel['title']}: {finding}" for panel in panels for rule in EACH for finding in rule(panel)]


def _ids(panels: list[Document]) -> Findings:
    ids = [panel.get("id") for panel in panels]
    if len(set(ids)) < len(ids) or not all(isinstance(number, int) and number > 0 for number in ids):
        yield "the ids of panels are not unique"


def _titles(panels: list[Document]) -> Findings:
    titles = [panel["title"] for panel in panels]
    if len(set(titles)) < len(titles) or not all(titles):
        yield "the titles of panels are not unique"


def _grid(panels: list[Document]) -> Findings:
    for panel in panels:
        at = panel["gridPos"]
        if at["x"] < 0 or at["x"] + at["w"] > 24 or at["w"] < 1 or at["h"] < 1:
            yield f"{panel['title']} stands beside the grid"
    for one, other in combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        if not beside and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
            yield f"{one['title']} and {other['title']} overlap"


def _kind(panel: Document) -> Findings:
    if panel["type"] not in KINDS:
        yield f"the type {panel['type']} is deprecated, or a plug-in"


def _check_texts(panel: Document) -> Findings:
    if not re.fullmatch(r"[A-Z].{20,}\.", panel.get("description", ""), re.DOTALL):
        yield "no description in whole sentences"
    if not panel.get("links"):
        yield "no link"


def _source(panel: Document) -> Findings:
    if panel.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
        yield "not of the chosen data source"


def _check_display(panel: Document) -> Findings:
    defaults = panel["fieldConfig"]["defaults"]
    if not defaults.get("unit"):
        yield "no unit"
    steps = defaults.get("thresholds", {}).get("steps") or [{"value": 0}]
    values = [step["value"] for step in steps[1:]]
    if steps[0]["value"] is not None or values != sorted(values):
        yield "no thresholds, or not from the lowest on"
    if panel["type"] in {"stat", "state-timeline"} and len(steps) < 2:
        yield "one colour whatever the value is"
    drawn = defaults.get("custom", {}).get("thresholdsStyle", {}).get("mode", "off") != "off"
    if panel["type"] == "timeseries" and drawn != bool(values):
        yield "a threshold that is not drawn"


def _legend(panel: Document) -> Findings:
    if panel["type"] in {"timeseries", "state-timeline"} and not panel["options"]["legend"].get("showLegend"):
        yield "no legend"
    if panel["type"] == "heatmap" and not panel["options"]["legend"].get("show"):
        yield "no legend"


def _targets(panel: Document) -> Findings:
    targets = panel.get("targets") or []
    refs = [target.get("refId") for target in targets]
    if not targets or not all(refs) or len(set(refs)) < len(refs):
        yield "queries without letters of their own"
    for target in targets:
        expression = target["expr"]
        if panel["type"] != "table" and "{{" not in target.get("legendFormat", ""):
            yield "series without names"
        if target.get("instant", False) != (panel["type"] in {"stat", "table"}):
            yield "a light that shows what is gone, or a course of one moment"
        if (target.get("format") == "heatmap") != (panel["type"] == "heatmap"):
            yield "buckets that are no heatmap"
        if 'env=~"$env"' not in expression:
            yield "not of the chosen env"
        windows = re.findall(r"(?:rate|increase)\([^][]*\[([^]]*)\]", expression)
        if any(window not in {"$__rate_interval", "$__range", "1h"} for window in windows):
            yield "a window that does not follow the time range"


WHOLE: list[Callable[[list[Document]], Findings]] = [_ids, _titles, _grid]
EACH: list[Callable[[Document], Findings]] = [_kind, _check_texts, _source, _check_display, _legend, _targets]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_dashboard_keeps_every_rule(name: str) -> None:
    assert lint(DASHBOARDS[name]) == []


def test_the_eight_panels_of_the_contract_stand_first_and_nothing_is_before_the_rows() -> None:
    assert [panel["title"] for panel in DASHBOARD["panels"][:8]] == FIRST
    assert [panel["type"] for panel in DASHBOARD["panels"][:9]].index("row") == 8
