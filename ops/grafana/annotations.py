"""What happened when, drawn across every panel: alerts that fire, services that began anew, and deployments.

The SDK's type of an annotation lacks the keys that Grafana's Prometheus data source reads beside `expr`: `_Query` has
them.
"""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import AnnotationQuery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard

from ops.grafana.variables import DATASOURCE, ENV, SERVICE

FIRING: Final = f'ALERTS{{alertstate="firing", alertname=~"(KMS|Relay).*", {ENV}, service=~"$service|"}}'
"""Those of the relay, and of an exporter that is gone, name no service."""


class _Query(dashboard.AnnotationQuery):
    """Of Prometheus, with a title and a text in which `{{label}}` stands for the label's value."""

    def __init__(self, expr: str, title: str, text: str, *, at_value: bool) -> None:
        super().__init__(expr=expr)
        self._written: Final = {
            "step": "30s",
            "titleFormat": title,
            "textFormat": text,
            "tagKeys": "env,service",
            "useValueForTime": at_value,
        }

    def to_json(self) -> dict[str, object]:
        return super().to_json() | self._written


def annotations() -> list[Builder[dashboard.AnnotationQuery]]:
    """Alerts as regions; the others at the second that the value names, in ms."""
    return [
        _annotation(
            "Alerts", "red", _Query(FIRING, "{{alertname}}", "{{service}} {{target}} {{channel}}", at_value=False)
        ),
        _annotation(
            "Crypto initialised",
            "blue",
            _Query(
                f"1000 * max by (env, service) (crypto_init_timestamp_seconds{{{SERVICE}}} > 0)",
                "{{service}} was deployed, or its crypto mode or readiness changed",
                "{{env}}",
                at_value=True,
            ),
        ),
        _annotation(
            "Deployments",
            "purple",
            _Query(
                "1000 * max by (env, job, instance) ("
                f'process_start_time_seconds{{job=~"keypulse-exporter|keypulse-relay", {ENV}}})',
                "{{job}} started",
                "{{instance}} in {{env}}",
                at_value=True,
            ),
        ),
    ]


def _annotation(name: str, color: str, query: _Query) -> AnnotationQuery:
    builder = AnnotationQuery()
    builder._internal = query  # noqa: SLF001 - the builder has no other way in for a type of our own
    return builder.name(name).icon_color(color).datasource(DATASOURCE).enable(enable=True)
