"""The dashboard's variables: the choices at its top, and the base URLs of its links."""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import ConstantVariable, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    VariableHide,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

DATASOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
ENV_SELECTOR: Final = 'env=~"$env"'
"""Selects metrics by environment, such as all of the relay."""
SERVICE_SELECTOR: Final = 'env=~"$env", service=~"$service"'
"""Selects metrics by service."""
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
