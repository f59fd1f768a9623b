"""panels.yml and on_call.yml → the dashboards' JSON: `python -m ops.grafana.build` writes it anew.

Each has two forms. That in `dashboards` is for provisioning by files, which asks for nothing: its data source is the
default one, its links are changed in the file. That in `portable` is for Grafana's import, which asks for both.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, NamedTuple

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
"""Constants of the dashboards; each installation has its own."""
_ADDRESS_LABELS: Final = {
    "runbook": "Address of KMS_OPERATIONS.md, as people here read it",
    "board": "Address of the exporter's board, with a slash at its end",
    "relay": "Address of the relay's console, with a slash at its end",
    "prometheus": "Address of Prometheus, without a slash at its end",
}


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
    constant = ConstantVariable(name).label(_ADDRESS_LABELS[name]).value(url)
    constant.build().hide = VariableHide.HIDE_VARIABLE
    constant.build().skip_url_sync = True  # a link to the dashboard must not change its own links
    return constant


FIRING_ALERTS: Final = (
    f'ALERTS{{alertstate="firing", alertname=~"(KMS|Relay).*", severity!="none", {ENV_SELECTOR}, service=~"$service|"}}'
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


class _About(NamedTuple):
    """What of a dashboard is not in its panels."""

    uid: str
    title: str
    description: str
    since: str
    panels: str
    """The file of its panels."""
    other: str
    """The dashboard that its head leads to."""


_HEALTH, _ON_CALL = "kms-health", "kms-on-call"
_ABOUT: Final = {
    _HEALTH: _About(
        DASHBOARD_UID,
        "KMS crypto health",
        "Is envelope encryption healthy, do the keys work, and does an alert reach people? By keypulse.",
        "now-6h",
        "panels.yml",
        _ON_CALL,
    ),
    _ON_CALL: _About(
        "kms-on-call",
        "KMS on call",
        "One screen: what is wrong now, since when, who has it, and what was delivered. By keypulse.",
        "now-3h",
        "on_call.yml",
        _HEALTH,
    ),
}
_FOLDER: Final = Path(__file__).parent
MINIMUM_GRAFANA: Final = "11.6.0"
_PANEL_TYPES: Final = {
    "heatmap": "Heatmap",
    "stat": "Stat",
    "state-timeline": "State timeline",
    "table": "Table",
    "timeseries": "Time series",
}


def build_files() -> dict[Path, str]:
    """Return the content of each file: both forms of both dashboards."""
    files = {}
    for name in _ABOUT:
        dashboard = build_dashboard(name)
        for folder, form in (("dashboards", dashboard), ("portable", build_portable(dashboard))):
            files[_FOLDER / folder / f"{name}.json"] = json.dumps(form, indent=2, ensure_ascii=False) + "\n"
    return files


def build_dashboard(name: str) -> dict[str, Any]:
    """Return the JSON of a dashboard, as provisioning reads it."""
    about = _ABOUT[name]
    other = _ABOUT[about.other]
    dashboard = (
        Dashboard(about.title)
        .uid(about.uid)
        .description(about.description)
        .tags(["keypulse", "kms"])
        .time(about.since, "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .variables(build_variables())
        .annotations(build_annotations())
        .links(
            [
                *build_links("Board", "Relay", "Alerts"),
                build_link("Runbook", build_runbook_url("what-to-look-at-first")),
                build_link(other.title, f"/d/{other.uid}", include_vars=True),
            ]
        )
    )
    # A row's panels keep their numbers, which stand in links to them, when another row gets one more.
    rows = yaml.safe_load((_FOLDER / about.panels).read_text(encoding="utf-8"))
    for number, row in enumerate(rows):
        if row["row"]:
            dashboard.with_row(Row(row["row"]).id(100 * number))
        for panel in _number_panels([build_panel(each) for each in row["panels"]], after=100 * number):
            dashboard.with_panel(panel)
    built: dict[str, Any] = json.loads(json.dumps(dashboard.build(), cls=JSONEncoder))
    return built


def build_portable(dashboard: dict[str, Any]) -> dict[str, Any]:
    """Return a dashboard as Grafana exports one to be shared: its import asks for each of `__inputs`.

    The value takes the place of `${NAME}` wherever that stands.
    https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/import-dashboards/
    """
    portable = deepcopy(dashboard)
    source = {"name": "DS_PROMETHEUS", "label": "Prometheus", "description": "It has the rules of keypulse."}
    inputs = [source | {"type": "datasource", "pluginId": "prometheus", "pluginName": "Prometheus"}]
    for variable in portable["templating"]["list"]:
        if variable["type"] == "datasource":
            variable["current"] = {"text": "${DS_PROMETHEUS}", "value": "${DS_PROMETHEUS}"}
        elif variable["type"] == "constant":
            name, label = f"VAR_{variable['name'].upper()}", variable["label"]
            inputs.append(
                {"name": name, "type": "constant", "label": label, "value": variable["query"], "description": label}
            )
            variable["query"] = f"${{{name}}}"
    panels = sorted({panel["type"] for panel in dashboard["panels"]} - {"row"})
    requires = [
        {"type": "grafana", "id": "grafana", "name": "Grafana", "version": MINIMUM_GRAFANA},
        {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
        *({"type": "panel", "id": panel, "name": _PANEL_TYPES[panel], "version": ""} for panel in panels),
    ]
    return {"__inputs": inputs, "__elements": {}, "__requires": requires, **portable}


def _number_panels(panels: list[Builder[Panel]], *, after: int) -> list[Builder[Panel]]:
    for number, panel in enumerate(panels, start=after + 1):
        panel.build().id_val = number
        panel.build().datasource = DATASOURCE
    return panels


if __name__ == "__main__":
    for file, text in build_files().items():
        file.write_text(text, encoding="utf-8")
