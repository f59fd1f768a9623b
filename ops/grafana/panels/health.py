"""The eight panels that stand first: is anything wrong, where, since when, and what to do."""

from grafana_foundation_sdk.builders.common import TableSortByFieldState
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue, Panel

from ops.grafana import links
from ops.grafana.links import link, runbook, sections
from ops.grafana.panels.kinds import cell, leads, lines, stat, table, timeline, unit
from ops.grafana.panels.looks import HEALTH, LIGHT, MODE, YES, words
from ops.grafana.panels.queries import columns, now, over_time
from ops.grafana.variables import ENV, SERVICE

_NAME = "{{env}} {{service}}"
_HEALTH = f"kms:crypto_health_status{{{SERVICE}}}"
_MODE = f"min by (env, service) (crypto_mode{{{SERVICE}}})"
_READY = f"min by (env, service) (crypto_ready{{{SERVICE}}})"
_UPTIME = f"kms:uptime_since_last_crypto_init{{{SERVICE}}}"
_ERRORS = f"kms:decryption_error_rate_5m{{{SERVICE}}}"
_KEYS = f"min by (env, service) (kms_probe_success{{{SERVICE}}})"
_STATES = {"firing": ("firing", "red"), "pending": ("pending", "orange")}


def panels() -> list[Builder[Panel]]:
    """Four lights, two courses, two tables."""
    return [
        stat(
            "Health",
            "Green: KMS wraps the data keys, the service is ready, and its health check answers. Red: one of them is "
            "not so, or nothing reports on a service that was there within a day. Of replicas the worst counts.",
            LIGHT,
        )
        .with_target(now(_HEALTH, _NAME))
        .unit("none")
        .mappings(words(HEALTH))
        .links([link("Board", links.BOARD), *sections("What to look at first", "KMSHealthChecksFailing")])
        .span(6)
        .height(5),
        stat(
            "Crypto mode",
            "What wraps the service's data keys: kms, or env, a local key out of the reach of KMS and its audit log. "
            "Absent while the service cannot be read.",
            LIGHT,
        )
        .with_target(now(_MODE, _NAME))
        .unit("none")
        .mappings(words(MODE))
        .links(sections("KMSCryptoModeNotKMS", "KMSBackendOnEnvWhileKMSHealthy", "KMSCryptoModeFlapping"))
        .span(6)
        .height(5),
        stat(
            "Crypto ready",
            "Whether the service can encrypt and decrypt. Absent while the service cannot be read.",
            LIGHT,
        )
        .with_target(now(_READY, _NAME))
        .unit("none")
        .mappings(words(YES))
        .links(sections("KMSCryptoNotReady", "KMSCryptoDownOnLocalKey"))
        .span(6)
        .height(5),
        stat(
            "Uptime since init",
            "How long ago the service last initialised its encryption: at its start, and when its mode or readiness "
            "changed. Orange for the first 5 minutes.",
            {0: "orange", 300: "green"},
        )
        .with_target(now(_UPTIME, _NAME))
        .unit("s")
        .links(sections("KMSCryptoModeFlapping"))
        .span(6)
        .height(5),
        lines(
            "Decryption error rate",
            "Records that could not be decrypted, per second, over 5 minutes. KMSHighCryptoErrorRate fires above the "
            "line at 0.1.",
            {0.1: "red"},
        )
        .with_target(over_time(_ERRORS, _NAME))
        .unit("cps")
        .links([*sections("KMSHighCryptoErrorRate", "KMSDecryptionErrorsBurst"), link("Alerts", links.ALERTS)])
        .span(12)
        .height(8),
        timeline("Health over time", "The light of each service over time.", HEALTH)
        .with_target(over_time(_HEALTH, _NAME))
        .links([link("Board", links.BOARD), *sections("What to look at first")])
        .span(12)
        .height(8),
        _services(),
        _alerts(),
    ]


def _services() -> Builder[Panel]:
    """A row for each service, with links to what tells more of it."""
    this = "${__data.fields.service:percentencode}"
    more = [
        link("Health on the board", f"{links.BOARD}?q={this}"),
        link(
            "Only this service", f"/d/kms-crypto-health?var-env=${{__data.fields.env:percentencode}}&var-service={this}"
        ),
        link("Alerts", links.ALERTS),
        link("Runbook: What to look at first", runbook("what-to-look-at-first")),
    ]
    names = {
        "env": "env",
        "service": "service",
        "Value #A": "health",
        "Value #B": "mode",
        "Value #C": "ready",
        "Value #D": "keys right",
        "Value #E": "uptime",
        "Value #F": "errors",
    }
    panel = table(
        "Services",
        "Each service: its health, what wraps its data keys, whether it is ready, whether the last round trip of each "
        "of its keys was right, how long since it initialised, its decryption errors. Its name leads to its health.",
        names,
    )
    for ref, expr in zip("ABCDEF", (_HEALTH, _MODE, _READY, _KEYS, _UPTIME, _ERRORS), strict=True):
        panel.with_target(columns(f"min by (env, service) ({expr})", ref))
    return (
        panel.override_by_name("service", leads(*more))
        .override_by_name("health", cell(HEALTH))
        .override_by_name("mode", cell(MODE))
        .override_by_name("ready", cell(YES))
        .override_by_name("keys right", cell(YES))
        .override_by_name("uptime", unit("s"))
        .override_by_name("errors", unit("cps"))
        .links([link("Board", links.BOARD), *sections("What to look at first")])
        .span(12)
        .height(9)
    )


def _alerts() -> Builder[Panel]:
    """A row for each alert. Anchors are in lower case, which PromQL cannot make of a name: a column's words can."""
    which = f'alertname=~"(KMS|Relay).*", {ENV}, service=~"$service|"'
    since = f"1000 * (ALERTS{{{which}}} * ignoring (alertstate) group_left () ALERTS_FOR_STATE{{{which}}})"
    anchors = {name: (name.lower(), None) for name in links.alerts()}
    shown = ("alertname", "alertstate", "severity", "env", "service", "target", "version", "channel")
    names = {name: name.removeprefix("alert") for name in shown} | {"Value": "since", "runbook": "runbook"}
    return (
        table(
            "Active alerts",
            "The alerts of keypulse that fire or wait to fire, with what to do about each. None is a good sign only "
            "while Prometheus and Alertmanager run: the row of the relay shows whether their heartbeat arrives.",
            names,
        )
        .with_target(columns(f'label_replace({since}, "runbook", "$1", "alertname", "(.*)")'))
        .sort_by([TableSortByFieldState().display_name("state")])  # what fires, then what waits
        .override_by_name("state", cell(_STATES))
        .override_by_name("since", unit("dateTimeFromNow"))
        .override_by_name(
            "runbook",
            [
                DynamicConfigValue(id_val="mappings", value=words(anchors)),
                *leads(link("What to do", runbook("${__value.text}"))),
            ],
        )
        .links([link("Alerts", links.ALERTS), *sections("What to look at first", "Escalation")])
        .span(12)
        .height(9)
    )
