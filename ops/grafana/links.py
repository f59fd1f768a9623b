"""Links of the dashboard, its panels and its tables.

Grafana replaces `${…}`; `raw` leaves a URL unescaped.
"""

import re
from typing import Final

from grafana_foundation_sdk.builders.dashboard import DashboardLink
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard

from ops.prometheus.rule_files import read_rules

Link = Builder[dashboard.DashboardLink]
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
    return [rule["alert"] for rules in read_rules().values() for rule in rules if "alert" in rule]
