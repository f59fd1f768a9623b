"""Where the dashboard leads: addresses of its own constants, and sections that the runbook has."""

import re
from typing import Any
from urllib.parse import parse_qsl

import pytest

from services.relay.deliveries.pages import parse_form_query
from services.relay.incidents.pages import ListQuery
from shared.http.json_api import parse_query
from shared.kms.reason import Reason
from shared.smoke.monitoring import DASHBOARD_UID
from tests.ops.grafana.dashboard import DASHBOARDS, ON_CALL, PANELS, VARIABLES, urls
from tests.ops.rules import ALERTS, RUNBOOK

ANCHORS = {
    re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
    for title in re.findall(r"^#+ (.+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
}
OF_A_ROW = {"${__value.text}", "${__value.raw}"}
"""Anchors that stand in the row itself."""


def of_column(title: str, name: str) -> list[dict[str, Any]]:
    """How a column of a table differs from the others."""
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    (override,) = [one for one in panel["fieldConfig"]["overrides"] if one["matcher"]["options"] == name]
    properties: list[dict[str, Any]] = override["properties"]
    return properties


def test_every_link_starts_with_a_constant_of_the_dashboard_or_leads_to_itself() -> None:
    constants = {name for name, variable in VARIABLES.items() if variable["type"] == "constant"}
    others = {f"/d/{dashboard['uid']}" for dashboard in DASHBOARDS.values()}
    for dashboard in DASHBOARDS.values():
        beginnings = {re.match(r"\$\{(\w+):raw\}|/d/[\w-]+", url) for url in urls(dashboard)}
        assert None not in beginnings
        found = {each[1] or each[0] for each in beginnings if each}
        assert constants <= found <= constants | others


def test_the_console_understands_the_links_that_lead_into_it() -> None:
    seen = set()
    for url in urls(ON_CALL):
        path, _, query = url.removeprefix("${relay:raw}").partition("?")
        if url.startswith("${relay:raw}") and query:
            parameters = dict(parse_qsl(query))
            if path == "incidents":
                parse_query(ListQuery, parameters)
            else:
                assert not parse_form_query(parameters, now=0.0).problems
            seen.add(path)
    assert seen == {"incidents", "deliveries"}


def test_every_section_of_the_runbook_to_which_a_link_leads_exists() -> None:
    every = [url for dashboard in DASHBOARDS.values() for url in urls(dashboard)]
    anchors = {url.partition("#")[2] for url in every if url.startswith("${runbook:raw}")}
    assert len(anchors) > 20
    assert anchors - OF_A_ROW <= ANCHORS


@pytest.mark.parametrize("title", ["Active alerts", "What is wrong"])
def test_every_alert_leads_to_its_section(title: str) -> None:
    (mapping,), (link,) = (one["value"] for one in of_column(title, "runbook"))
    assert link["url"] == "${runbook:raw}#${__value.text}"
    texts = {name: to["text"] for name, to in mapping["options"].items()}
    assert texts == {name: name.lower() for name in ALERTS}
    assert set(texts.values()) <= ANCHORS


@pytest.mark.parametrize("title", ["Failures of each key", "Why it fails"])
def test_every_reason_leads_to_its_section(title: str) -> None:
    (links,) = of_column(title, "reason")
    assert [link["url"] for link in links["value"]] == ["${runbook:raw}#${__value.raw}"]
    assert set(Reason) <= ANCHORS


def test_a_service_leads_to_its_health_on_the_board_and_to_what_else_is_known_of_it() -> None:
    (links,) = of_column("Services", "service")
    assert [link["url"] for link in links["value"]] == [
        "${board:raw}?q=${__data.fields.service:percentencode}",
        f"/d/{DASHBOARD_UID}?var-env=${{__data.fields.env:percentencode}}&var-service=${{__data.fields.service:percentencode}}",
        "${prometheus:raw}/alerts",
        "${runbook:raw}#what-to-look-at-first",
    ]
