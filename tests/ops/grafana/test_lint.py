"""The rules of a good panel, kept by the dashboard; and each rule turns red where it is broken."""

from collections.abc import Callable
from typing import Any

from tests.ops.grafana.dashboard import DASHBOARD, PANELS
from tests.ops.grafana.lint import lint

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
Break = Callable[[dict[str, Any]], None]
BROKEN: list[tuple[str, str, Break]] = [
    ("Health", "the ids of panels are not unique", lambda panel: panel.update(id=2)),
    ("Health", "the titles of panels are not unique", lambda panel: panel.update(title="Crypto mode")),
    ("Health", "Health and Crypto mode overlap", lambda panel: panel["gridPos"].update(w=7)),
    ("Crypto mode", "Crypto mode stands beside the grid", lambda panel: panel["gridPos"].update(x=19, y=900)),
    ("Health", "Health: the type singlestat is deprecated", lambda panel: panel.update(type="singlestat")),
    ("Health", "Health: no description", lambda panel: panel.update(description="health")),
    ("Health", "Health: no link", lambda panel: panel.update(links=[])),
    ("Health", "Health: not of the chosen data source", lambda panel: panel["datasource"].update(uid="mine")),
    ("Health", "Health: no unit", lambda panel: panel["fieldConfig"]["defaults"].pop("unit")),
    ("Health", "Health: no thresholds", lambda panel: panel["fieldConfig"]["defaults"].pop("thresholds")),
    (
        "Health",
        "Health: one colour whatever the value is",
        lambda panel: panel["fieldConfig"]["defaults"]["thresholds"].update(steps=[{"value": None}]),
    ),
    (
        "Decryption error rate",
        "Decryption error rate: a threshold that is not drawn",
        lambda panel: panel["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"].update(mode="off"),
    ),
    (
        "Decryption error rate",
        "Decryption error rate: no legend",
        lambda panel: panel["options"]["legend"].update(showLegend=False),
    ),
    ("Latency of encrypt", "Latency of encrypt: no", lambda panel: panel["options"]["legend"].update(show=False)),
    ("Health", "Health: series without names", lambda panel: panel["targets"][0].pop("legendFormat")),
    ("Health", "Health: a light that shows what is gone", lambda panel: panel["targets"][0].update(instant=False)),
    ("Latency of encrypt", "Latency of encrypt: buckets", lambda panel: panel["targets"][0].pop("format")),
    ("Health", "Health: not of the chosen env", lambda panel: panel["targets"][0].update(expr="crypto_mode")),
    ("Services", "Services: queries without letters", lambda panel: panel["targets"][1].update(refId="A")),
    (
        "Calls by key",
        "Calls by key: a window that does not follow",
        lambda panel: panel["targets"][0].update(expr='rate(kms_operations_total{env=~"$env"}[5m])'),
    ),
]


def test_the_dashboard_keeps_every_rule() -> None:
    assert lint(DASHBOARD) == []


def test_the_eight_panels_of_the_contract_stand_first_and_nothing_is_before_the_rows() -> None:
    assert [panel["title"] for panel in PANELS[:8]] == FIRST
    assert [panel["type"] for panel in DASHBOARD["panels"][:9]].index("row") == 8
