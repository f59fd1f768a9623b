"""panels.yml → dashboards/kms-health.json, which Grafana imports: `python -m ops.grafana.build` writes it anew."""

import json
from pathlib import Path
from typing import Final

import yaml
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    ConstantVariable,
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Panel,
    VariableHide,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from ops.grafana.panel_types import (
    ENV_SELECTOR,
    SERVICE_SELECTOR,
    build_link,
    build_links,
    build_panel,
    build_runbook_url,
)
from ops.prometheus.build import select_exporter_job
from shared.smoke.monitoring import DASHBOARD_UID

DATASOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
LINK_ADDRESSES: Final = {
    "runbook": "https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md",
    "board": "http://127.0.0.1:9911/",
    "relay": "http://127.0.0.1:9912/",
    "prometheus": "http://127.0.0.1:9090",
}
"""Constants of the dashboard; each installation has its own."""


def build_variables() -> list[Builder[VariableModel]]:
    """In the order of the dashboard's head; the addresses are hidden."""
    default = VariableOption(text="default", value="default")
    datasource = DatasourceVariable("datasource").label("Data source").type("prometheus").current(default)
    return [
        datasource,
        _build_query_variable("env", 'label_values(up{job=~"keypulse-exporter|keypulse-relay"}, env)'),
        # A service may have keys and no backend, or a backend and no keys.
        _build_query_variable(
            "service", f'label_values({{__name__=~"crypto_backend_up|kms_probe_success", {ENV_SELECTOR}}}, service)'
        ),
        *(_build_address_variable(name, url) for name, url in LINK_ADDRESSES.items()),
    ]


def _build_query_variable(name: str, query: str) -> QueryVariable:
    """Any number of a label's values; at the start all of them."""
    return (
        QueryVariable(name)
        .label(name)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")  # short for any number of values, and correct if Prometheus adds no `env`
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _build_address_variable(name: str, url: str) -> ConstantVariable:
    constant = ConstantVariable(name).label(name).value(url)
    constant.build().hide = VariableHide.HIDE_VARIABLE
    constant.build().skip_url_sync = True  # a link to the dashboard must not change its own links
    return constant


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
    initialised = f"1000 * max by (env, service) (crypto_init_timestamp_seconds{{{SERVICE_SELECTOR}}} > 0)"
    started = (
        "1000 * max by (env, job, instance) "
        f'(process_start_time_seconds{{job=~"keypulse-exporter|keypulse-relay", {ENV_SELECTOR}}})'
    )
    changed = "{{service}} was deployed, or its crypto mode or readiness changed"
    alerts = _AnnotationQuery(FIRING_ALERTS, "{{alertname}}", "{{service}} {{target}} {{channel}}", at_value=False)
    queries = {
        "Alerts": ("red", alerts),
        "Crypto initialised": ("blue", _AnnotationQuery(initialised, changed, "{{env}}", at_value=True)),
        "Deployments": (
            "purple",
            _AnnotationQuery(started, "{{job}} started", "{{instance}} in {{env}}", at_value=True),
        ),
    }
    return [_build_annotation(name, *query) for name, query in queries.items()]


def _build_annotation(name: str, color: str, query: _AnnotationQuery) -> AnnotationQuery:
    builder = AnnotationQuery()
    builder._internal = query  # noqa: SLF001 - the builder has no other way in for a type of our own
    return builder.name(name).icon_color(color).datasource(DATASOURCE).enable(enable=True)


PANELS_FILE: Final = Path(__file__).with_name("panels.yml")
DASHBOARD_FILE: Final = Path(__file__).parent / "dashboards/kms-health.json"


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
                *build_links("Board", "Relay", "Alerts"),
                build_link("Runbook", build_runbook_url("what-to-look-at-first")),
            ]
        )
    )
    # A row's panels keep their numbers, which stand in links to them, when another row gets one more.
    rows = yaml.safe_load(PANELS_FILE.read_text(encoding="utf-8"))
    for number, row in enumerate(rows):
        if row["row"]:
            dashboard.with_row(Row(row["row"]).id(100 * number))
        for panel in _number_panels([build_panel(each) for each in row["panels"]], after=100 * number):
            dashboard.with_panel(panel)
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def _number_panels(panels: list[Builder[Panel]], *, after: int) -> list[Builder[Panel]]:
    for number, panel in enumerate(panels, start=after + 1):
        panel.build().id_val = number
        panel.build().datasource = DATASOURCE
    return panels


if __name__ == "__main__":
    DASHBOARD_FILE.write_text(build_dashboard(), encoding="utf-8")
