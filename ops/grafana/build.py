"""The panels → dashboards/kms-health.json, which Grafana imports: `python -m ops.grafana.build` writes it anew."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, Panel

from ops.grafana import links
from ops.grafana.annotations import annotations
from ops.grafana.links import link, runbook
from ops.grafana.panels import health, keys, kms, relay
from ops.grafana.variables import DATASOURCE, variables

FILE: Final = Path(__file__).parent / "dashboards/kms-health.json"
UID: Final = "kms-crypto-health"
ROWS: Final[dict[str, Callable[[], list[Builder[Panel]]]]] = {
    "KMS latency": kms.latency,
    "Failures": kms.failures,
    "Key lifecycle": keys.lifecycle,
    "Rotation": keys.rotation,
    "Calls to KMS": kms.calls,
    "Relay": relay.panels,
}


def text() -> str:
    """The dashboard as it is checked in."""
    dashboard = (
        Dashboard("KMS crypto health")
        .uid(UID)
        .description("Is envelope encryption well, do the keys work, and does an alert reach people? By keypulse.")
        .tags(["keypulse", "kms"])
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .variables(variables())
        .annotations(annotations())
        .links(
            [
                link("Board", links.BOARD),
                link("Relay", links.RELAY),
                link("Alerts", links.ALERTS),
                link("Runbook", runbook("what-to-look-at-first")),
            ]
        )
    )
    for panel in _numbered(health.panels(), after=0):
        dashboard.with_panel(panel)
    # A row's panels keep their numbers, which stand in links to them, when another row gets one more.
    for number, (title, panels) in enumerate(ROWS.items(), start=1):
        dashboard.with_row(Row(title).id(100 * number))
        for panel in _numbered(panels(), after=100 * number):
            dashboard.with_panel(panel)
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def _numbered(panels: list[Builder[Panel]], *, after: int) -> list[Builder[Panel]]:
    for number, panel in enumerate(panels, start=after + 1):
        panel.build().id_val = number
        panel.build().datasource = DATASOURCE
    return panels


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
