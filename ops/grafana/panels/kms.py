"""Rows about the exporter's round trips: duration, failures and number of calls."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ops.grafana.panels.panel_types import (
    ALERTS_URL,
    BOARD_URL,
    SERVICE_SELECTOR,
    YES_LABELS,
    build_bar_chart,
    build_heatmap,
    build_link,
    build_runbook_links,
    build_runbook_url,
    build_stat,
    build_state_timeline,
    build_table,
    build_time_series,
    link_cells,
    query_buckets,
    query_instant,
    query_range,
    query_table,
)

_OPERATIONS = {
    "encrypt": "Encrypt",
    "decrypt": "Decrypt",
    "canary_decrypt": "Decrypt of what an older version encrypted",
}


def build_latency_panels() -> list[Builder[Panel]]:
    """Median, tail, and the whole distribution for each operation."""
    return [
        _build_quantile_panel(0.5, "half"),
        _build_quantile_panel(0.95, "19 of 20"),
        *(_build_heatmap_panel(name) for name in _OPERATIONS),
    ]


def _build_quantile_panel(quantile: float, percentile: str) -> Builder[Panel]:
    series = "sum by (env, service, target, operation, le)"
    rate = f"rate(kms_operation_duration_seconds_bucket{{{SERVICE_SELECTOR}}}[$__rate_interval])"
    return (
        build_time_series(
            f"Latency, p{quantile * 100:.0f}",
            f"The time within which {percentile} of the calls to KMS end, by key and operation; a timeout counts at "
            "its full length. KMSHighLatency judges p95 by the line at 1 s.",
            {1: "red"},
        )
        .with_target(
            query_range(
                f"histogram_quantile({quantile}, {series} ({rate}))", "{{env}} {{service}} {{target}} {{operation}}"
            )
        )
        .unit("s")
        .links([*build_runbook_links("KMSHighLatency", "timeout"), build_link("Alerts", ALERTS_URL)])
        .span(12)
        .height(8)
    )


def _build_heatmap_panel(operation: str) -> Builder[Panel]:
    selected = f'{SERVICE_SELECTOR}, operation="{operation}"'
    rate = f"increase(kms_operation_duration_seconds_bucket{{{selected}}}[$__rate_interval])"
    return (
        build_heatmap(
            f"Latency of {operation}",
            f"{_OPERATIONS[operation]}: how many calls took how long, in seconds, of all keys together.",
        )
        .with_target(query_buckets(f"sum by (le) ({rate})"))
        .links(build_runbook_links("KMSHighLatency"))
        .span(8)
        .height(8)
    )


def build_failure_panels() -> list[Builder[Panel]]:
    """Which key fails, since when, and why."""
    failed = f"kms_probe_failures_total{{{SERVICE_SELECTOR}}}"
    names = {name: name for name in ("env", "service", "target", "operation", "reason")} | {"Value": "failures"}
    last = f"time() - max by (env, service, target) (kms_probe_last_success_timestamp_seconds{{{SERVICE_SELECTOR}}})"
    explained = build_link("What it means", build_runbook_url("${__value.raw}"))
    return [
        build_state_timeline(
            "Round trips",
            "Whether the last round trip with each key succeeded: encrypt, check, decrypt, compare.",
            YES_LABELS,
        )
        .with_target(
            query_range(
                f"min by (env, service, target) (kms_probe_success{{{SERVICE_SELECTOR}}})",
                "{{env}} {{service}} {{target}}",
            )
        )
        .links([build_link("Board", BOARD_URL), *build_runbook_links("KMSProbeFailing")])
        .span(16)
        .height(8),
        build_stat(
            "Since the last successful round trip",
            "How long ago a round trip with each key succeeded. Orange after a minute, red after 5.",
            {0: "green", 60: "orange", 300: "red"},
        )
        .with_target(query_instant(last, "{{env}} {{service}} {{target}}"))
        .unit("s")
        .links(build_runbook_links("KMSProbeFailing"))
        .span(8)
        .height(8),
        build_bar_chart(
            "Failures by reason",
            "What failed in each interval, by reason. Each reason counts from 0: a gap is an exporter that is gone.",
        )
        .with_target(query_range(f"sum by (reason) (increase({failed}[$__rate_interval]))", "{{reason}}"))
        .unit("short")
        .links(build_runbook_links("What a reason means"))
        .span(12)
        .height(8),
        build_table(
            "Failures of each key",
            "How often which operation failed, and why, within the time range. The reason leads to what it means.",
            names,
        )
        .with_target(
            query_table(f"round(sum by (env, service, target, operation, reason) (increase({failed}[$__range]))) > 0")
        )
        .override_by_name("reason", link_cells(explained))
        .links(build_runbook_links("What a reason means", "KMSProbeFailing"))
        .span(12)
        .height(8),
    ]


def build_call_panels() -> list[Builder[Panel]]:
    """The number of calls, and their cost."""
    called = f"kms_operations_total{{{SERVICE_SELECTOR}}}"
    billed = f'kms_operations_total{{{SERVICE_SELECTOR}, operation=~"encrypt|decrypt|canary_decrypt"}}'
    month = f"sum by (env, service) (rate({billed}[1h])) * 86400 * 30 * 0.03 / 10000"
    return [
        build_time_series("Calls by operation", "Calls of the exporter to KMS per second, reads of the key included.")
        .with_target(query_range(f"sum by (operation) (rate({called}[$__rate_interval]))", "{{operation}}"))
        .unit("cps")
        .links(build_runbook_links("quota_exhausted"))
        .span(9)
        .height(8),
        build_time_series("Calls by key", "Calls of the exporter to KMS per second, by key.")
        .with_target(
            query_range(
                f"sum by (env, service, target) (rate({called}[$__rate_interval]))", "{{env}} {{service}} {{target}}"
            )
        )
        .unit("cps")
        .links(build_runbook_links("quota_exhausted"))
        .span(9)
        .height(8),
        build_stat(
            "Costs of probing in 30 days",
            "At the pace of the last hour, and 0.03 USD for 10,000 cryptographic operations; reading a key is free. "
            "Orange above 10 USD.",
            {0: "green", 10: "orange"},
        )
        .with_target(query_instant(month, "{{env}} {{service}}"))
        .unit("currencyUSD")
        .decimals(2)
        .links(build_runbook_links("quota_exhausted"))
        .span(6)
        .height(8),
    ]
