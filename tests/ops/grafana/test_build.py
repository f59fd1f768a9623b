"""The JSON that is checked in: what the Python says, in types that Grafana knows, and in a form for each way in."""

import re
from typing import Any

import pytest

from ops.grafana.build import LINK_ADDRESSES, build_files
from shared.smoke.monitoring import DASHBOARD_UID
from tests.ops.grafana.dashboard import DASHBOARD, DASHBOARDS, ON_CALL, PANELS, PORTABLE, VARIABLES
from tests.ops.rules import ALERTS, PROMETHEUS, REFERENCE


def test_the_json_is_what_the_python_builds() -> None:
    differ = [str(file) for file, text in build_files().items() if file.read_text(encoding="utf-8") != text]
    assert differ == [], "run: .venv/bin/python -m ops.grafana.build"


def test_the_dashboard_is_where_messages_and_the_smoke_test_search_for_it() -> None:
    assert DASHBOARD["uid"] == DASHBOARD_UID == "kms-crypto-health"
    links = (PROMETHEUS.parent / "relay/relay.yml").read_text(encoding="utf-8")
    assert f"/d/{DASHBOARD_UID}?var-env={{env}}&var-service={{service}}&from={{from_ms}}&to={{to_ms}}" in links


def test_addresses_are_constants_that_a_link_to_the_dashboard_cannot_change() -> None:
    constants = [variable for variable in VARIABLES.values() if variable["type"] == "constant"]
    assert [constant["name"] for constant in constants] == ["runbook", "board", "relay", "prometheus"]
    assert all((constant["hide"], constant["skipUrlSync"]) == (2, True) for constant in constants)


def _import(dashboard: dict[str, Any], values: dict[str, str]) -> Any:
    """As Grafana does it: each `${NAME}` of an input becomes its value, everything else stays as it is."""

    def put(node: Any) -> Any:
        if isinstance(node, str):
            return re.sub(r"\$\{(.+?)\}", lambda found: values.get(found[1], found[0]), node)
        if isinstance(node, list):
            return [put(each) for each in node]
        return {key: put(each) for key, each in node.items()} if isinstance(node, dict) else node

    return put({key: value for key, value in dashboard.items() if not key.startswith("__")})


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_import_asks_for_the_data_source_and_the_addresses_and_makes_the_dashboard_of_them(name: str) -> None:
    portable = PORTABLE[name]
    asked = {each["name"]: each for each in portable["__inputs"]}
    assert {key: (each["type"], each.get("value")) for key, each in asked.items()} == {
        "DS_PROMETHEUS": ("datasource", None),
        **{f"VAR_{address.upper()}": ("constant", url) for address, url in LINK_ADDRESSES.items()},
    }
    assert all(each["label"] and each["description"] for each in asked.values())
    assert asked["DS_PROMETHEUS"]["pluginId"] == "prometheus"
    required = {(each["type"], each["id"]) for each in portable["__requires"]}
    kinds = {panel["type"] for panel in portable["panels"]} - {"row"}
    assert required == {("grafana", "grafana"), ("datasource", "prometheus"), *(("panel", kind) for kind in kinds)}

    defaults = {key: each.get("value", "default") for key, each in asked.items()}
    assert _import(portable, defaults) == DASHBOARDS[name]
    own = {key: f"https://{key.lower()}.test/" for key in asked}
    variables = {each["name"]: each for each in _import(portable, own)["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == own["DS_PROMETHEUS"]
    assert {address: variables[address]["query"] for address in LINK_ADDRESSES} == {
        address: own[f"VAR_{address.upper()}"] for address in LINK_ADDRESSES
    }


def test_the_form_for_provisioning_has_nothing_that_only_an_import_would_replace() -> None:
    for dashboard in DASHBOARDS.values():
        assert not [key for key in dashboard if key.startswith("__")]
        assert not re.search(r"\$\{(VAR|DS)_", str(dashboard))


def test_the_dashboard_for_whoever_is_on_call_is_one_screen() -> None:
    panels = ON_CALL["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)

    assert len(panels) <= 10
    assert all(panel["type"] != "row" for panel in panels)
    # A row of the grid is 30 pixels, and 8 are between two; Grafana's own bars and the variables take 140 at most.
    assert 140 + rows * 38 - 8 <= 1080
    assert [each["name"] for each in ON_CALL["templating"]["list"]] == list(VARIABLES)


@pytest.mark.parametrize(
    ("title", "alert", "limit"),
    [
        ("Decryption error rate", "KMSHighCryptoErrorRate", "0.1"),
        ("Latency, p95", "KMSHighLatency", "1"),
        ("Age of the oldest that waits", "RelayOutboxStuck", "600"),
        ("Age of the oldest that waits", "RelayOutboxStuck", "7200"),
    ],
)
def test_a_line_is_drawn_where_the_alert_judges(title: str, alert: str, limit: str) -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    assert float(limit) in [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
    assert f"> {limit}\n" in ALERTS[alert]["expr"] + "\n"


@pytest.mark.parametrize("title", ["Costs of probing in 30 days", "Costs of versions in a month"])
def test_the_costs_are_those_of_the_documentation(title: str) -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    expression = panel["targets"][0]["expr"].replace('env=~"$env", service=~"$service", ', "")
    assert "".join(expression.split()) in "".join(REFERENCE.read_text(encoding="utf-8").split())
