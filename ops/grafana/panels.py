"""The panels: the first eight, and the rows below them."""

from collections.abc import Callable
from typing import Final

from grafana_foundation_sdk.builders.common import TableSortByFieldState
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue, Panel

from ops.grafana.panel_types import (
    BOARD_URL,
    ENV_SELECTOR,
    HEALTH_LABELS,
    MODE_LABELS,
    SERVICE_SELECTOR,
    YES_LABELS,
    build_bar_chart,
    build_heatmap,
    build_link,
    build_links,
    build_runbook_url,
    build_stat,
    build_state_timeline,
    build_table,
    build_time_series,
    build_value_mappings,
    color_cells,
    link_cells,
    place,
    query_instant,
    query_range,
    set_unit,
)
from ops.prometheus.build import list_alert_names
from shared.smoke.monitoring import DASHBOARD_UID

_BY_SERVICE: Final = "{{env}} {{service}}"
_BY_TARGET: Final = "{{env}} {{service}} {{target}}"
_BY_CHANNEL: Final = "{{env}} {{channel}}"
_HEALTH: Final = f"kms:crypto_health_status{{{SERVICE_SELECTOR}}}"
_MODE: Final = f"min by (env, service) (crypto_mode{{{SERVICE_SELECTOR}}})"
_READY: Final = f"min by (env, service) (crypto_ready{{{SERVICE_SELECTOR}}})"
_UPTIME: Final = f"kms:uptime_since_last_crypto_init{{{SERVICE_SELECTOR}}}"
_ERRORS: Final = f"kms:decryption_error_rate_5m{{{SERVICE_SELECTOR}}}"
_PROBES: Final = f"min by (env, service) (kms_probe_success{{{SERVICE_SELECTOR}}})"


def build_health_panels() -> list[Builder[Panel]]:
    """What is wrong, where, since when, and what to do: four lights, two courses, two tables."""
    return [
        build_stat(
            "Health",
            "Green: KMS wraps the data keys, the service is ready, and its health check answers. Red: one of them "
            "is not so, or nothing reports on a service that was there within a day. Of replicas the worst counts. "
            "Where only keys are probed: whether the last round trip of each succeeded.",
            (6, 5),
            build_links("Board", "What to look at first", "KMSHealthChecksFailing"),
            query_instant(_HEALTH, _BY_SERVICE),
            labels=HEALTH_LABELS,
        ),
        build_stat(
            "Crypto mode",
            "What wraps the service's data keys: kms, or env, a local key out of the reach of KMS and its audit "
            "log. Absent while the service cannot be read, and where its health check names no mode.",
            (6, 5),
            build_links("KMSCryptoModeNotKMS", "KMSBackendOnEnvWhileKMSHealthy", "KMSCryptoModeFlapping"),
            query_instant(_MODE, _BY_SERVICE),
            labels=MODE_LABELS,
        ),
        build_stat(
            "Crypto ready",
            "Whether the service can encrypt and decrypt. Absent while the service cannot be read.",
            (6, 5),
            build_links("KMSCryptoNotReady", "KMSCryptoDownOnLocalKey"),
            query_instant(_READY, _BY_SERVICE),
            labels=YES_LABELS,
        ),
        build_stat(
            "Uptime since init",
            "How long ago the service last initialised its encryption: at its start, and when its mode or "
            "readiness changed. Orange for the first 5 minutes.",
            (6, 5),
            build_links("KMSCryptoModeFlapping"),
            query_instant(_UPTIME, _BY_SERVICE),
            unit="s",
            colors={0: "orange", 300: "green"},
        ),
        build_time_series(
            "Decryption error rate",
            "Records that could not be decrypted, per second, over 5 minutes. KMSHighCryptoErrorRate fires above "
            "the line at 0.1.",
            (12, 8),
            build_links("KMSHighCryptoErrorRate", "KMSDecryptionErrorsBurst", "Alerts"),
            query_range(_ERRORS, _BY_SERVICE),
            unit="cps",
            colors={0.1: "red"},
        ),
        build_state_timeline(
            "Health over time",
            "The health of each service over time.",
            (12, 8),
            build_links("Board", "What to look at first"),
            query_range(_HEALTH, _BY_SERVICE),
            labels=HEALTH_LABELS,
        ),
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
        *build_links("Alerts", "What to look at first"),
    ]
    values = {
        "health": _HEALTH,
        "mode": _MODE,
        "ready": _READY,
        "probes succeeded": _PROBES,
        "uptime": _UPTIME,
        "errors": _ERRORS,
    }
    panel = (
        build_table(
            "Services",
            "Each service: its health, what wraps its data keys, whether it is ready, whether the last round trip of "
            "each of its keys succeeded, how long since it initialised, its decryption errors. Its name leads to its "
            "health.",
            ("env", "service"),
            {name: f"min by (env, service) ({expr})" for name, expr in values.items()},
        )
        .override_by_name("service", link_cells(*more))
        .override_by_name("health", color_cells(HEALTH_LABELS))
        .override_by_name("mode", color_cells(MODE_LABELS))
        .override_by_name("ready", color_cells(YES_LABELS))
        .override_by_name("probes succeeded", color_cells(YES_LABELS))
        .override_by_name("uptime", set_unit("s"))
        .override_by_name("errors", set_unit("cps"))
    )
    return place(panel, (12, 9), build_links("Board", "What to look at first"))


def _build_alerts_table() -> Builder[Panel]:
    """A row for each alert. Anchors are in lower case, which PromQL cannot produce from a name; a value mapping can."""
    which = f'alertname=~"(KMS|Relay).*", {ENV_SELECTOR}, service=~"$service|"'
    since = f"1000 * (ALERTS{{{which}}} * ignoring (alertstate) group_left () ALERTS_FOR_STATE{{{which}}})"
    anchors = {name: (name.lower(), None) for name in list_alert_names()}
    panel = (
        build_table(
            "Active alerts",
            "The alerts of keypulse that fire or wait to fire, with what to do about each. None is a good sign only "
            "while Prometheus and Alertmanager run: the row of the relay shows whether their heartbeat arrives.",
            ("alertname", "alertstate", "severity", "env", "service", "target", "version", "channel"),
            {"since": f'label_replace({since}, "runbook", "$1", "alertname", "(.*)")'},
            last=("runbook",),
        )
        .sort_by([TableSortByFieldState().display_name("state")])  # firing, then pending
        .override_by_name("state", color_cells({"firing": ("firing", "red"), "pending": ("pending", "orange")}))
        .override_by_name("since", set_unit("dateTimeFromNow"))
        .override_by_name(
            "runbook",
            [
                DynamicConfigValue(id_val="mappings", value=build_value_mappings(anchors)),
                *link_cells(build_link("What to do", build_runbook_url("${__value.text}"))),
            ],
        )
    )
    return place(panel, (12, 9), build_links("Alerts", "What to look at first", "Escalation"))


def _build_latency_panels() -> list[Builder[Panel]]:
    """Median, tail, and the whole distribution for each operation."""
    operations = {
        "encrypt": "Encrypt",
        "decrypt": "Decrypt",
        "canary_decrypt": "Decrypt of what an older version encrypted",
    }
    return [
        *(_build_quantile_panel(quantile, percentile) for quantile, percentile in ((0.5, "half"), (0.95, "19 of 20"))),
        *(_build_heatmap_panel(operation, name) for operation, name in operations.items()),
    ]


def _build_quantile_panel(quantile: float, percentile: str) -> Builder[Panel]:
    rate = f"rate(kms_operation_duration_seconds_bucket{{{SERVICE_SELECTOR}}}[$__rate_interval])"
    series = f"sum by (env, service, target, operation, le) ({rate})"
    return build_time_series(
        f"Latency, p{quantile * 100:.0f}",
        f"The time within which {percentile} of the calls to KMS end, by key and operation; a timeout counts at "
        "its full length. KMSHighLatency judges p95 by the line at 1 s.",
        (12, 8),
        build_links("KMSHighLatency", "timeout", "Alerts"),
        query_range(f"histogram_quantile({quantile}, {series})", f"{_BY_TARGET} {{{{operation}}}}"),
        unit="s",
        colors={1: "red"},
    )


def _build_heatmap_panel(operation: str, name: str) -> Builder[Panel]:
    selected = f'{SERVICE_SELECTOR}, operation="{operation}"'
    rate = f"increase(kms_operation_duration_seconds_bucket{{{selected}}}[$__rate_interval])"
    panel = build_heatmap(
        f"Latency of {operation}",
        f"{name}: how many calls took how long, in seconds, of all keys together.",
        f"sum by (le) ({rate})",
    )
    return place(panel, (8, 8), build_links("KMSHighLatency"))


def _build_failure_panels() -> list[Builder[Panel]]:
    """Which key fails, since when, and why."""
    failed = f"kms_probe_failures_total{{{SERVICE_SELECTOR}}}"
    last = f"time() - max by (env, service, target) (kms_probe_last_success_timestamp_seconds{{{SERVICE_SELECTOR}}})"
    return [
        build_state_timeline(
            "Round trips",
            "Whether the last round trip with each key succeeded: encrypt, check, decrypt, compare.",
            (16, 8),
            build_links("Board", "KMSProbeFailing"),
            query_range(f"min by (env, service, target) (kms_probe_success{{{SERVICE_SELECTOR}}})", _BY_TARGET),
            labels=YES_LABELS,
        ),
        build_stat(
            "Since the last successful round trip",
            "How long ago a round trip with each key succeeded. Orange after a minute, red after 5.",
            (8, 8),
            build_links("KMSProbeFailing"),
            query_instant(last, _BY_TARGET),
            unit="s",
            colors={0: "green", 60: "orange", 300: "red"},
        ),
        build_bar_chart(
            "Failures by reason",
            "What failed in each interval, by reason. Each reason counts from 0: a gap is an exporter that is gone.",
            (12, 8),
            build_links("What a reason means"),
            query_range(f"sum by (reason) (increase({failed}[$__rate_interval]))", "{{reason}}"),
        ),
        place(
            build_table(
                "Failures of each key",
                "How often which operation failed, and why, within the time range. The reason leads to what it means.",
                ("env", "service", "target", "operation", "reason"),
                {
                    "failures": "round(sum by (env, service, target, operation, reason) "
                    f"(increase({failed}[$__range]))) > 0"
                },
            ).override_by_name("reason", link_cells(build_link("What it means", build_runbook_url("${__value.raw}")))),
            (12, 8),
            build_links("What a reason means", "KMSProbeFailing"),
        ),
    ]


def _build_key_panels() -> list[Builder[Panel]]:
    """The exporter's key inspections: versions, canaries, permissions, destructions."""
    by_version = "by (env, service, target, version)"
    inspections = {
        "primary version": "max by (env, service, target) (kms_key_primary_version{})",
        "next rotation": "1000 * max by (env, service, target) (kms_key_next_rotation_timestamp_seconds{})",
        "wrong AAD refused": "min by (env, service, target) (kms_wrong_aad_refused{})",
        "problems": "max by (env, service, target) (kms_key_inspection_problems{})",
    }
    return [
        place(
            build_table(
                "Keys",
                "Each key: the version that encrypts, when KMS makes the next one (blank where no rotation is "
                "planned), whether KMS refuses a wrong AAD, and how many things were wrong at the last key inspection; "
                "the board names them.",
                ("env", "service", "target"),
                {name: expr.replace("{}", f"{{{SERVICE_SELECTOR}}}") for name, expr in inspections.items()},
            )
            .override_by_name("next rotation", set_unit("dateTimeAsIso"))
            .override_by_name("wrong AAD refused", color_cells(YES_LABELS)),
            (12, 8),
            build_links("Board", "KMSWrongAADAccepted"),
        ),
        build_time_series(
            "Versions by state",
            "Versions of each key, by what they can be used for.",
            (12, 8),
            build_links("key_disabled", "Enable a version"),
            query_range(
                f"max by (env, service, target, state) (kms_key_versions{{{SERVICE_SELECTOR}}}) > 0",
                f"{_BY_TARGET} {{{{state}}}}",
            ),
        ).decimals(0),
        build_state_timeline(
            "Canaries",
            "Whether what each older version once encrypted can still be decrypted. Where it cannot, whatever data "
            "is still of that version cannot be read either.",
            (12, 8),
            build_links("Board", "KMSCanaryLost", "key_destroyed"),
            query_range(
                f"min {by_version} (kms_canary_success{{{SERVICE_SELECTOR}}})", f"{_BY_TARGET} version {{{{version}}}}"
            ),
            labels={"0": ("does not decrypt", "red"), "1": ("decrypts", "green")},
        ),
        build_state_timeline(
            "Permissions",
            "Whether IAM grants the exporter's account what the key needs.",
            (12, 8),
            build_links("KMSPermissionMissing", "Grant the role"),
            query_range(
                f"min by (env, service, target, permission) (kms_key_permission{{{SERVICE_SELECTOR}}})",
                f"{_BY_TARGET} {{{{permission}}}}",
            ),
            labels={"0": ("missing", "red"), "1": ("granted", "green")},
        ),
        place(
            build_table(
                "Scheduled destructions",
                "Versions that will be destroyed, and when. Nothing that such a version encrypted can be read already "
                "now; until then it can be restored.",
                ("env", "service", "target", "version"),
                {"when": f"1000 * min {by_version} (kms_key_version_destroy_timestamp_seconds{{{SERVICE_SELECTOR}}})"},
            ).override_by_name("when", set_unit("dateTimeAsIso")),
            (24, 6),
            build_links("KMSKeyVersionDestroyScheduled", "Alerts"),
        ),
    ]


def _build_rotation_panels() -> list[Builder[Panel]]:
    """The data keys of services. Services that share a database report the same, so nothing is summed."""
    data_keys = f"max by (env, service, type) (kms_rotation_last_success_timestamp_seconds{{{SERVICE_SELECTOR}}})"
    failed = f"max by (env, service) (kms_rotation_last_failure_timestamp_seconds{{{SERVICE_SELECTOR}}})"
    keys = f"max by (env, service, kek_version, status) (kms_data_keys{{{SERVICE_SELECTOR}}})"
    in_progress = f"max by (env, service) (kms_rotation_in_progress{{{SERVICE_SELECTOR}}})"
    steps = f"increase(kms_rotation_failures_total{{{SERVICE_SELECTOR}}}[$__rate_interval])"
    return [
        build_stat(
            "Since the last rotation",
            "How long ago data keys were last rotated, by type: a new one made, or old ones wrapped anew. Orange "
            "after 35 days: a rotation is monthly.",
            (8, 5),
            build_links("Board", "KMSRotationOverdue"),
            query_instant(f"time() - {data_keys}", f"{_BY_SERVICE} {{{{type}}}}"),
            unit="s",
            colors={0: "green", 35 * 86400: "orange"},
        ),
        build_stat(
            "Rotation under way",
            "Whether a rotation is under way, or was left in the middle.",
            (8, 5),
            build_links("Board", "KMSRotationFailed"),
            query_instant(in_progress, _BY_SERVICE),
            colors={0: "green", 1: "blue"},
            labels={"0": ("no", "green"), "1": ("under way", "blue")},
        ),
        build_stat(
            "Since a step last failed",
            "How long ago a step of a rotation failed. Red within a day; none is best.",
            (8, 5),
            build_links("Board", "KMSRotationFailed"),
            query_instant(f"time() - {failed}", _BY_SERVICE),
            unit="s",
            colors={0: "red", 86400: "green"},
        ).no_value("none failed"),
        build_time_series(
            "Data keys",
            "Data keys by the version of the KMS key that wraps them (0: the local key) and by status. A version "
            "is to be disabled only when it wraps none.",
            (12, 8),
            build_links("KMSRotationOverdue", "KMSKeyVersionDestroyScheduled"),
            query_range(keys, f"{_BY_SERVICE} version {{{{kek_version}}}} {{{{status}}}}"),
        ).decimals(0),
        build_bar_chart(
            "Failures of rotations",
            "Steps of rotations that failed in each interval.",
            (12, 8),
            build_links("Board", "KMSRotationFailed"),
            query_range(f"max by (env, service, step) ({steps})", f"{_BY_SERVICE} {{{{step}}}}"),
        ),
    ]


def _build_call_panels() -> list[Builder[Panel]]:
    """The number of calls, and their cost."""
    rate = f"rate(kms_operations_total{{{SERVICE_SELECTOR}}}[$__rate_interval])"
    billed = f'kms_operations_total{{{SERVICE_SELECTOR}, operation=~"encrypt|decrypt|canary_decrypt"}}'
    month = f"sum by (env, service) (rate({billed}[1h])) * 86400 * 30 * 0.03 / 10000"
    active = f"max by (env, service, target, protection_level) (kms_key_active_versions{{{SERVICE_SELECTOR}, LEVEL}})"
    prices = {'protection_level="SOFTWARE"': 0.06, 'protection_level="HSM"': 1, 'protection_level=~"EXTERNAL.*"': 3}
    versions = " or ".join(f"{active.replace('LEVEL', level)} * {price}" for level, price in prices.items())
    return [
        build_time_series(
            "Calls by operation",
            "Calls of the exporter to KMS per second, reads of the key included.",
            (6, 8),
            build_links("quota_exhausted"),
            query_range(f"sum by (operation) ({rate})", "{{operation}}"),
            unit="cps",
        ),
        build_time_series(
            "Calls by key",
            "Calls of the exporter to KMS per second, by key.",
            (6, 8),
            build_links("quota_exhausted"),
            query_range(f"sum by (env, service, target) ({rate})", _BY_TARGET),
            unit="cps",
        ),
        build_stat(
            "Costs of probing in 30 days",
            "At the pace of the last hour, and 0.03 USD for 10,000 cryptographic operations; reading a key is "
            "free. Orange above 10 USD.",
            (6, 8),
            build_links("quota_exhausted"),
            query_instant(month, _BY_SERVICE),
            unit="currencyUSD",
            colors={0: "green", 10: "orange"},
        ).decimals(2),
        build_stat(
            "Costs of versions in a month",
            "Of the watched keys' versions that are enabled or disabled: 0.06 USD each with SOFTWARE, 1.00 with HSM, "
            "3.00 with EXTERNAL, list prices of 2025-03-17. Orange above 10 USD.",
            (6, 8),
            build_links("quota_exhausted"),
            query_instant(f"sum by (env, service) ({versions})", _BY_SERVICE),
            unit="currencyUSD",
            colors={0: "green", 10: "orange"},
        ).decimals(2),
    ]


def _build_relay_panels() -> list[Builder[Panel]]:
    """By environment, from the webhook to the receipt: does an alert reach people, and how fast."""
    heartbeat = f"max by (env, watchdog) (relay_watchdog_last_seen_timestamp_seconds{{{ENV_SELECTOR}}})"
    return [
        build_state_timeline(
            "Channels",
            "Whether each channel's provider accepts messages at all.",
            (12, 8),
            build_links("Relay", "RelayChannelFailing", "What a channel's reason means"),
            query_range(f"min by (env, channel) (relay_channel_up{{{ENV_SELECTOR}}})", _BY_CHANNEL),
            labels={"0": ("refuses", "red"), "1": ("accepts", "green")},
        ),
        build_stat(
            "Dead letters",
            "Messages that were given up, by channel; they are kept, and can be sent again.",
            (6, 8),
            build_links("Relay", "RelayDeadLetters"),
            query_instant(
                f'max by (env, channel) (relay:outbox_deliveries{{{ENV_SELECTOR}, state="dead"}})', _BY_CHANNEL
            ),
            unit="short",
            colors={0: "green", 1: "red"},
        ),
        build_stat(
            "Since the last heartbeat",
            "How long ago Alertmanager's Watchdog arrived. Red after 5 minutes: Prometheus or Alertmanager is "
            "gone, and no alert arrives either.",
            (6, 8),
            build_links("Watchdog", "WatchdogAbsent"),
            query_instant(f"time() - {heartbeat}", "{{env}} {{watchdog}}"),
            unit="s",
            colors={0: "green", 300: "red"},
        ),
        _build_receipt_panel(0.5, "half"),
        _build_receipt_panel(0.95, "19 of 20"),
        build_time_series(
            "Outbox",
            "Messages that wait, by channel and state.",
            (12, 8),
            build_links("Relay", "RelayOutboxStuck"),
            query_range(f'relay:outbox_deliveries{{{ENV_SELECTOR}, state!="dead"}}', f"{_BY_CHANNEL} {{{{state}}}}"),
        ).decimals(0),
        build_time_series(
            "Age of the oldest that waits",
            "How long the oldest message has waited, by channel; absent where none does. RelayOutboxStuck judges "
            "by the lines: 10 minutes while nothing is delivered, 2 hours while something is.",
            (12, 8),
            build_links("Relay", "RelayOutboxStuck"),
            query_range(f"time() - relay:outbox_oldest_timestamp_seconds{{{ENV_SELECTOR}}}", _BY_CHANNEL),
            unit="s",
            colors={600: "orange", 7200: "red"},
        ),
        build_bar_chart(
            "Deliveries",
            "Deliveries that ended in each interval: delivered, superseded by a later event, or dead.",
            (8, 8),
            build_links("RelayDeadLetters"),
            query_range(
                f"sum by (channel, outcome) (increase(relay_deliveries_total{{{ENV_SELECTOR}}}[$__rate_interval]))",
                "{{channel}} {{outcome}}",
            ),
        ),
        build_bar_chart(
            "Attempts by reason",
            "Attempts to send in each interval: ok, or why not.",
            (8, 8),
            build_links("What a channel's reason means"),
            query_range(
                "sum by (channel, reason) "
                f"(increase(relay_delivery_attempts_total{{{ENV_SELECTOR}}}[$__rate_interval]))",
                "{{channel}} {{reason}}",
            ),
        ),
        build_bar_chart(
            "Webhooks",
            "Alertmanager's webhooks in each interval, by the status of the answer. What is answered 4xx reaches "
            "nobody; 503 is tried again.",
            (8, 8),
            build_links("RelayWebhooksRejected", "RelayStoreUnavailable"),
            query_range(
                f"sum by (code) (increase(relay_webhooks_total{{{ENV_SELECTOR}}}[$__rate_interval]))", "{{code}}"
            ),
        ),
    ]


def _build_receipt_panel(quantile: float, percentile: str) -> Builder[Panel]:
    rate = f"rate(relay_delivery_duration_seconds_bucket{{{ENV_SELECTOR}}}[$__rate_interval])"
    return build_time_series(
        f"Accept to receipt, p{quantile * 100:.0f}",
        f"The time within which {percentile} of the messages got from the webhook to the provider's receipt, by "
        "channel. The line is at a minute.",
        (12, 8),
        build_links("Relay", "RelayOutboxStuck"),
        query_range(f"histogram_quantile({quantile}, sum by (env, channel, le) ({rate}))", _BY_CHANNEL),
        unit="s",
        colors={60: "orange"},
    )


def _build_credential_panels() -> list[Builder[Panel]]:
    """By environment, since what authenticates is of the exporter and of the relay."""
    kinds = (f"{kind}_credential_expiry_timestamp_seconds{{{ENV_SELECTOR}}}" for kind in ("kms", "relay"))
    table = build_table(
        "Credentials that end",
        "Certificates and tokens of exporters and relays, and of those that they connect to, and when they end unless "
        "they are renewed.",
        ("env", "credential"),
        {"end": f"1000 * min by (env, credential) ({' or '.join(kinds)})"},
    ).override_by_name("end", set_unit("dateTimeAsIso"))
    return [place(table, (24, 8), build_links("KMSCredentialExpiring"))]


ROW_PANELS: Final[dict[str, Callable[[], list[Builder[Panel]]]]] = {
    "KMS latency": _build_latency_panels,
    "Failures": _build_failure_panels,
    "Key lifecycle": _build_key_panels,
    "Rotation": _build_rotation_panels,
    "Calls to KMS": _build_call_panels,
    "Relay": _build_relay_panels,
    "Credentials": _build_credential_panels,
}
