"""The first eight panels: what is wrong, where, since when, and what to do."""

from grafana_foundation_sdk.builders.common import TableSortByFieldState
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue, Panel

from ops.grafana.panels.panel_types import (
    ALERTS_URL,
    BOARD_URL,
    ENV_SELECTOR,
    HEALTH_LABELS,
    MODE_LABELS,
    RED_GREEN,
    SERVICE_SELECTOR,
    YES_LABELS,
    build_link,
    build_runbook_links,
    build_runbook_url,
    build_stat,
    build_state_timeline,
    build_table,
    build_time_series,
    build_value_mappings,
    color_cells,
    link_cells,
    list_alert_names,
    query_instant,
    query_range,
    query_table,
    set_unit,
)
from shared.smoke.monitoring import DASHBOARD_UID

_LEGEND = "{{env}} {{service}}"
_HEALTH_QUERY = f"kms:crypto_health_status{{{SERVICE_SELECTOR}}}"
_MODE_QUERY = f"min by (env, service) (crypto_mode{{{SERVICE_SELECTOR}}})"
_READY_QUERY = f"min by (env, service) (crypto_ready{{{SERVICE_SELECTOR}}})"
_UPTIME_QUERY = f"kms:uptime_since_last_crypto_init{{{SERVICE_SELECTOR}}}"
_ERRORS_QUERY = f"kms:decryption_error_rate_5m{{{SERVICE_SELECTOR}}}"
_PROBES_QUERY = f"min by (env, service) (kms_probe_success{{{SERVICE_SELECTOR}}})"
_ALERT_STATE_LABELS = {"firing": ("firing", "red"), "pending": ("pending", "orange")}


def build_panels() -> list[Builder[Panel]]:
    """Four lights, two courses, two tables."""
    return [
        build_stat(
            "Health",
            "Green: KMS wraps the data keys, the service is ready, and its health check answers. Red: one of them is "
            "not so, or nothing reports on a service that was there within a day. Of replicas the worst counts. Where "
            "only keys are probed: whether the last round trip of each succeeded.",
            RED_GREEN,
        )
        .with_target(query_instant(_HEALTH_QUERY, _LEGEND))
        .unit("none")
        .mappings(build_value_mappings(HEALTH_LABELS))
        .links(
            [
                build_link("Board", BOARD_URL),
                *build_runbook_links("What to look at first", "KMSHealthChecksFailing"),
            ]
        )
        .span(6)
        .height(5),
        build_stat(
            "Crypto mode",
            "What wraps the service's data keys: kms, or env, a local key out of the reach of KMS and its audit log. "
            "Absent while the service cannot be read, and where its health check names no mode.",
            RED_GREEN,
        )
        .with_target(query_instant(_MODE_QUERY, _LEGEND))
        .unit("none")
        .mappings(build_value_mappings(MODE_LABELS))
        .links(build_runbook_links("KMSCryptoModeNotKMS", "KMSBackendOnEnvWhileKMSHealthy", "KMSCryptoModeFlapping"))
        .span(6)
        .height(5),
        build_stat(
            "Crypto ready",
            "Whether the service can encrypt and decrypt. Absent while the service cannot be read.",
            RED_GREEN,
        )
        .with_target(query_instant(_READY_QUERY, _LEGEND))
        .unit("none")
        .mappings(build_value_mappings(YES_LABELS))
        .links(build_runbook_links("KMSCryptoNotReady", "KMSCryptoDownOnLocalKey"))
        .span(6)
        .height(5),
        build_stat(
            "Uptime since init",
            "How long ago the service last initialised its encryption: at its start, and when its mode or readiness "
            "changed. Orange for the first 5 minutes.",
            {0: "orange", 300: "green"},
        )
        .with_target(query_instant(_UPTIME_QUERY, _LEGEND))
        .unit("s")
        .links(build_runbook_links("KMSCryptoModeFlapping"))
        .span(6)
        .height(5),
        build_time_series(
            "Decryption error rate",
            "Records that could not be decrypted, per second, over 5 minutes. KMSHighCryptoErrorRate fires above the "
            "line at 0.1.",
            {0.1: "red"},
        )
        .with_target(query_range(_ERRORS_QUERY, _LEGEND))
        .unit("cps")
        .links(
            [
                *build_runbook_links("KMSHighCryptoErrorRate", "KMSDecryptionErrorsBurst"),
                build_link("Alerts", ALERTS_URL),
            ]
        )
        .span(12)
        .height(8),
        build_state_timeline("Health over time", "The health of each service over time.", HEALTH_LABELS)
        .with_target(query_range(_HEALTH_QUERY, _LEGEND))
        .links([build_link("Board", BOARD_URL), *build_runbook_links("What to look at first")])
        .span(12)
        .height(8),
        _build_services_table(),
        _build_alerts_table(),
    ]


def _build_services_table() -> Builder[Panel]:
    """A row for each service, with links to details."""
    this = "${__data.fields.service:percentencode}"
    more = [
        build_link("Health on the board", f"{BOARD_URL}?q={this}"),
        build_link(
            "Only this service", f"/d/{DASHBOARD_UID}?var-env=${{__data.fields.env:percentencode}}&var-service={this}"
        ),
        build_link("Alerts", ALERTS_URL),
        build_link("Runbook: What to look at first", build_runbook_url("what-to-look-at-first")),
    ]
    names = {
        "env": "env",
        "service": "service",
        "Value #A": "health",
        "Value #B": "mode",
        "Value #C": "ready",
        "Value #D": "probes succeeded",
        "Value #E": "uptime",
        "Value #F": "errors",
    }
    panel = build_table(
        "Services",
        "Each service: its health, what wraps its data keys, whether it is ready, whether the last round trip of each "
        "of its keys succeeded, how long since it initialised, its decryption errors. Its name leads to its health.",
        names,
    )
    for ref, expr in zip(
        "ABCDEF", (_HEALTH_QUERY, _MODE_QUERY, _READY_QUERY, _PROBES_QUERY, _UPTIME_QUERY, _ERRORS_QUERY), strict=True
    ):
        panel.with_target(query_table(f"min by (env, service) ({expr})", ref))
    return (
        panel.override_by_name("service", link_cells(*more))
        .override_by_name("health", color_cells(HEALTH_LABELS))
        .override_by_name("mode", color_cells(MODE_LABELS))
        .override_by_name("ready", color_cells(YES_LABELS))
        .override_by_name("probes succeeded", color_cells(YES_LABELS))
        .override_by_name("uptime", set_unit("s"))
        .override_by_name("errors", set_unit("cps"))
        .links([build_link("Board", BOARD_URL), *build_runbook_links("What to look at first")])
        .span(12)
        .height(9)
    )


def _build_alerts_table() -> Builder[Panel]:
    """A row for each alert. Anchors are in lower case, which PromQL cannot produce from a name; a value mapping can."""
    which = f'alertname=~"(KMS|Relay).*", {ENV_SELECTOR}, service=~"$service|"'
    since = f"1000 * (ALERTS{{{which}}} * ignoring (alertstate) group_left () ALERTS_FOR_STATE{{{which}}})"
    anchors = {name: (name.lower(), None) for name in list_alert_names()}
    columns = ("alertname", "alertstate", "severity", "env", "service", "target", "version", "channel")
    names = {name: name.removeprefix("alert") for name in columns} | {"Value": "since", "runbook": "runbook"}
    return (
        build_table(
            "Active alerts",
            "The alerts of keypulse that fire or wait to fire, with what to do about each. None is a good sign only "
            "while Prometheus and Alertmanager run: the row of the relay shows whether their heartbeat arrives.",
            names,
        )
        .with_target(query_table(f'label_replace({since}, "runbook", "$1", "alertname", "(.*)")'))
        .sort_by([TableSortByFieldState().display_name("state")])  # firing, then pending
        .override_by_name("state", color_cells(_ALERT_STATE_LABELS))
        .override_by_name("since", set_unit("dateTimeFromNow"))
        .override_by_name(
            "runbook",
            [
                DynamicConfigValue(id_val="mappings", value=build_value_mappings(anchors)),
                *link_cells(build_link("What to do", build_runbook_url("${__value.text}"))),
            ],
        )
        .links([build_link("Alerts", ALERTS_URL), *build_runbook_links("What to look at first", "Escalation")])
        .span(12)
        .height(9)
    )
