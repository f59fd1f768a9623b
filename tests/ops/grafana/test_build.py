"""The JSON that is checked in: what the Python says, in types that Grafana knows, with what provisions it."""

import pytest

from ops.grafana.build import DASHBOARD_FILE, build_dashboard
from shared.smoke.monitoring import DASHBOARD_UID
from tests.ops.grafana.dashboard import DASHBOARD, PANELS, VARIABLES
from tests.ops.rules import ALERTS, PROMETHEUS, REFERENCE


def test_the_json_is_what_the_python_builds() -> None:
    assert DASHBOARD_FILE.read_text(encoding="utf-8") == build_dashboard(), "python -m ops.grafana.build writes it anew"


def test_the_dashboard_is_where_messages_and_the_smoke_test_search_for_it() -> None:
    assert DASHBOARD["uid"] == DASHBOARD_UID == "kms-crypto-health"
    links = (PROMETHEUS.parent / "relay/relay.yml").read_text(encoding="utf-8")
    assert f"/d/{DASHBOARD_UID}?var-env={{env}}&var-service={{service}}&from={{from_ms}}&to={{to_ms}}" in links


def test_addresses_are_constants_that_a_link_to_the_dashboard_cannot_change() -> None:
    constants = [variable for variable in VARIABLES.values() if variable["type"] == "constant"]
    assert [constant["name"] for constant in constants] == ["runbook", "board", "relay", "prometheus"]
    assert all((constant["hide"], constant["skipUrlSync"]) == (2, True) for constant in constants)


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
