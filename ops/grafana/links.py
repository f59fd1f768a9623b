"""Links of the dashboard, its panels and its tables.

Grafana replaces `${…}`; `raw` leaves a URL unescaped.
"""

import re
from pathlib import Path
from typing import Final

import yaml
from grafana_foundation_sdk.builders.dashboard import DashboardLink
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard

Link = Builder[dashboard.DashboardLink]
_RULES_FOLDER: Final = Path(__file__).parents[1] / "prometheus/rules"
BOARD_URL: Final = "${board:raw}"
RELAY_URL: Final = "${relay:raw}"
ALERTS_URL: Final = "${prometheus:raw}/alerts"


def build_runbook_url(anchor: str) -> str:
    """The address of a section of docs/KMS_OPERATIONS.md."""
    return f"${{runbook:raw}}#{anchor}"


def build_link(title: str, url: str) -> Link:
    """Opens beside the dashboard."""
    return DashboardLink(title).icon("external link").url(url).target_blank(target_blank=True)


def build_runbook_links(*headings: str) -> list[Link]:
    """A link to each section of the runbook, by its heading; GitHub makes the anchor from it."""
    return [
        build_link(f"Runbook: {heading}", build_runbook_url(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")))
        for heading in headings
    ]


def list_alert_names() -> list[str]:
    """The names of the product's alerts."""
    return [
        rule["alert"]
        for file in sorted(_RULES_FOLDER.glob("*.yml"))
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
