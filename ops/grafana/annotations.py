"""Annotations across every panel: firing alerts, restarts of services, and deployments.

The SDK's annotation type lacks the keys that Grafana's Prometheus data source reads beside `expr`: `_AnnotationQuery`
has them.
"""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import AnnotationQuery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard

from ops.grafana.variables import DATASOURCE, ENV_SELECTOR, SERVICE_SELECTOR
from ops.prometheus.build import select_exporter_job

FIRING_ALERTS: Final = (
    f'ALERTS{{alertstate="firing", alertname=~"(KMS|Relay).*", {ENV_SELECTOR}, service=~"$service|"}}'
)
"""Alerts of the relay, and of an absent exporter, have no service."""


class _AnnotationQuery(dashboard.AnnotationQuery):
    """Of Prometheus, with a title and a text in which `{{label}}` stands for the label's value."""

    def __init__(self, expr: str, title: str, text: str, *, at_value: bool) -> None:
        super().__init__(expr=select_exporter_job(expr))
        self._extra_fields: Final = {
            "step": "30s",
            "titleFormat": title,
            "textFormat": text,
            "tagKeys": "env,service",
            "useValueForTime": at_value,
        }

    def to_json(self) -> dict[str, object]:
        return super().to_json() | self._extra_fields


def build_annotations() -> list[Builder[dashboard.AnnotationQuery]]:
    """Alerts as regions; the others at the second that the value names, in ms."""
    return [
        _build_annotation(
            "Alerts",
            "red",
            _AnnotationQuery(FIRING_ALERTS, "{{alertname}}", "{{service}} {{target}} {{channel}}", at_value=False),
        ),
        _build_annotation(
            "Crypto initialised",
            "blue",
            _AnnotationQuery(
                f"1000 * max by (env, service) (crypto_init_timestamp_seconds{{{SERVICE_SELECTOR}}} > 0)",
                "{{service}} was deployed, or its crypto mode or readiness changed",
                "{{env}}",
                at_value=True,
            ),
        ),
        _build_annotation(
            "Deployments",
            "purple",
            _AnnotationQuery(
                "1000 * max by (env, job, instance) ("
                f'process_start_time_seconds{{job=~"keypulse-exporter|keypulse-relay", {ENV_SELECTOR}}})',
                "{{job}} started",
                "{{instance}} in {{env}}",
                at_value=True,
            ),
        ),
    ]


def _build_annotation(name: str, color: str, query: _AnnotationQuery) -> AnnotationQuery:
    builder = AnnotationQuery()
    builder._internal = query  # noqa: SLF001 - the builder has no other way in for a type of our own
    return builder.name(name).icon_color(color).datasource(DATASOURCE).enable(enable=True)
