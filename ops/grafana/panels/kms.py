"""Rows about KMS as the exporter's round trips meet it: how long calls take, why they fail, how many there are."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ops.grafana import links
from ops.grafana.links import link, runbook, sections
from ops.grafana.panels.kinds import bars, heat, leads, lines, stat, table, timeline
from ops.grafana.panels.looks import YES
from ops.grafana.panels.queries import buckets, columns, now, over_time
from ops.grafana.variables import SERVICE

_OPERATIONS = {
    "encrypt": "Encrypt",
    "decrypt": "Decrypt",
    "canary_decrypt": "Decrypt of what an older version encrypted",
}


def latency() -> list[Builder[Panel]]:
    """Median, tail, and the whole distribution for each operation."""
    return [_quantile(0.5, "half"), _quantile(0.95, "19 of 20"), *(_distribution(name) for name in _OPERATIONS)]


def _quantile(q: float, share: str) -> Builder[Panel]:
    series = "sum by (env, service, target, operation, le)"
    rate = f"rate(kms_operation_duration_seconds_bucket{{{SERVICE}}}[$__rate_interval])"
    return (
        lines(
            f"Latency, p{q * 100:.0f}",
            f"The time within which {share} of the calls to KMS end, by key and operation; a timeout counts at its "
            "full length. KMSHighLatency judges p95 by the line at 1 s.",
            {1: "red"},
        )
        .with_target(
            over_time(f"histogram_quantile({q}, {series} ({rate}))", "{{env}} {{service}} {{target}} {{operation}}")
        )
        .unit("s")
        .links([*sections("KMSHighLatency", "timeout"), link("Alerts", links.ALERTS)])
        .span(12)
        .height(8)
    )


def _distribution(operation: str) -> Builder[Panel]:
    selected = f'{SERVICE}, operation="{operation}"'
    rate = f"increase(kms_operation_duration_seconds_bucket{{{selected}}}[$__rate_interval])"
    return (
        heat(
            f"Latency of {operation}",
            f"{_OPERATIONS[operation]}: how many calls took how long, in seconds, of all keys together.",
        )
        .with_target(buckets(f"sum by (le) ({rate})"))
        .links(sections("KMSHighLatency"))
        .span(8)
        .height(8)
    )


def failures() -> list[Builder[Panel]]:
    """Which key fails, since when, and why."""
    failed = f"kms_probe_failures_total{{{SERVICE}}}"
    names = {name: name for name in ("env", "service", "target", "operation", "reason")} | {"Value": "failures"}
    last = f"time() - max by (env, service, target) (kms_probe_last_success_timestamp_seconds{{{SERVICE}}})"
    explained = link("What it means", runbook("${__value.raw}"))
    return [
        timeline(
            "Round trips",
            "Whether the last round trip with each key was right in every respect: encrypt, check, decrypt, compare.",
            YES,
        )
        .with_target(
            over_time(
                f"min by (env, service, target) (kms_probe_success{{{SERVICE}}})", "{{env}} {{service}} {{target}}"
            )
        )
        .links([link("Board", links.BOARD), *sections("KMSProbeFailing")])
        .span(16)
        .height(8),
        stat(
            "Since the last right round trip",
            "How long ago a round trip with each key was right. Orange after a minute, red after 5.",
            {0: "green", 60: "orange", 300: "red"},
        )
        .with_target(now(last, "{{env}} {{service}} {{target}}"))
        .unit("s")
        .links(sections("KMSProbeFailing"))
        .span(8)
        .height(8),
        bars(
            "Failures by reason",
            "What failed in each interval, by reason. Each reason counts from 0: a gap is an exporter that is gone.",
        )
        .with_target(over_time(f"sum by (reason) (increase({failed}[$__rate_interval]))", "{{reason}}"))
        .unit("short")
        .links(sections("What a reason means"))
        .span(12)
        .height(8),
        table(
            "Failures of each key",
            "How often which operation failed, and why, within the time range. The reason leads to what it means.",
            names,
        )
        .with_target(
            columns(f"round(sum by (env, service, target, operation, reason) (increase({failed}[$__range]))) > 0")
        )
        .override_by_name("reason", leads(explained))
        .links(sections("What a reason means", "KMSProbeFailing"))
        .span(12)
        .height(8),
    ]


def calls() -> list[Builder[Panel]]:
    """How many calls, and what they cost."""
    called = f"kms_operations_total{{{SERVICE}}}"
    billed = f'kms_operations_total{{{SERVICE}, operation=~"encrypt|decrypt|canary_decrypt"}}'
    month = f"sum by (env, service) (rate({billed}[1h])) * 86400 * 30 * 0.03 / 10000"
    return [
        lines("Calls by operation", "Calls of the exporter to KMS per second, reads of the key included.")
        .with_target(over_time(f"sum by (operation) (rate({called}[$__rate_interval]))", "{{operation}}"))
        .unit("cps")
        .links(sections("quota_exhausted"))
        .span(9)
        .height(8),
        lines("Calls by key", "Calls of the exporter to KMS per second, by key.")
        .with_target(
            over_time(
                f"sum by (env, service, target) (rate({called}[$__rate_interval]))", "{{env}} {{service}} {{target}}"
            )
        )
        .unit("cps")
        .links(sections("quota_exhausted"))
        .span(9)
        .height(8),
        stat(
            "Costs of probing in 30 days",
            "At the pace of the last hour, and 0.03 USD for 10,000 cryptographic operations; reading a key is free. "
            "Orange above 10 USD.",
            {0: "green", 10: "orange"},
        )
        .with_target(now(month, "{{env}} {{service}}"))
        .unit("currencyUSD")
        .decimals(2)
        .links(sections("quota_exhausted"))
        .span(6)
        .height(8),
    ]
