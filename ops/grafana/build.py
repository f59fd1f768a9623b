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
from ops.grafana.annotations import build_annotations
from ops.grafana.links import build_link, build_runbook_url
from ops.grafana.panels import health, keys, kms, relay
from ops.grafana.variables import DATASOURCE, build_variables
from shared.smoke.monitoring import DASHBOARD_UID

DASHBOARD_FILE: Final = Path(__file__).parent / "dashboards/kms-health.json"
ROW_PANELS: Final[dict[str, Callable[[], list[Builder[Panel]]]]] = {
    "KMS latency": kms.build_latency_panels,
    "Failures": kms.build_failure_panels,
    "Key lifecycle": keys.build_key_panels,
    "Rotation": keys.build_rotation_panels,
    "Calls to KMS": kms.build_call_panels,
    "Relay": relay.build_panels,
}


def build_dashboard() -> str:
    """The dashboard as it is checked in."""
    dashboard = (
        Dashboard("KMS crypto health")
        .uid(DASHBOARD_UID)
        .description("Is envelope encryption healthy, do the keys work, and does an alert reach people? By keypulse.")
        .tags(["keypulse", "kms"])
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .variables(build_variables())
        .annotations(build_annotations())
        .links(
            [
                build_link("Board", links.BOARD_URL),
                build_link("Relay", links.RELAY_URL),
                build_link("Alerts", links.ALERTS_URL),
                build_link("Runbook", build_runbook_url("what-to-look-at-first")),
            ]
        )
    )
    for panel in _number_panels(health.build_panels(), after=0):
        dashboard.with_panel(panel)
    # A row's panels keep their numbers, which stand in links to them, when another row gets one more.
    for number, (title, panels) in enumerate(ROW_PANELS.items(), start=1):
        dashboard.with_row(Row(title).id(100 * number))
        for panel in _number_panels(panels(), after=100 * number):
            dashboard.with_panel(panel)
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def _number_panels(panels: list[Builder[Panel]], *, after: int) -> list[Builder[Panel]]:
    for number, panel in enumerate(panels, start=after + 1):
        panel.build().id_val = number
        panel.build().datasource = DATASOURCE
    return panels


if __name__ == "__main__":
    DASHBOARD_FILE.write_text(build_dashboard(), encoding="utf-8")
