"""Everything that the dashboard asks for is told by the exporter, the relay, a rule or Prometheus itself."""

from pathlib import Path

from tests.ops import exposed_metrics
from tests.ops.grafana.dashboard import VARIABLES, expressions, metrics
from tests.ops.rules import RECORDINGS

OF_PROMETHEUS = {"up", "ALERTS", "ALERTS_FOR_STATE", "process_start_time_seconds"}
"""The last one is of Prometheus's clients, in every server."""


def test_every_metric_is_exposed_or_recorded(tmp_path: Path) -> None:
    exposed = (
        exposed_metrics.names([*exposed_metrics.by_the_exporter(), *exposed_metrics.by_a_relay(tmp_path)])
        | RECORDINGS.keys()
    )
    for title, expression in expressions():
        assert metrics(expression), title
        assert metrics(expression) <= exposed | OF_PROMETHEUS, title
    for variable in ("env", "service"):
        assert metrics(VARIABLES[variable]["query"]) <= exposed | OF_PROMETHEUS
