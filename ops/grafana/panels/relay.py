"""The row about the relay, by environment: does an alert reach people, and how fast."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ops.grafana.panels.panel_types import (
    ENV_SELECTOR,
    RELAY_URL,
    build_bar_chart,
    build_link,
    build_runbook_links,
    build_stat,
    build_state_timeline,
    build_time_series,
    query_instant,
    query_range,
)

_CHANNEL_LABELS = {"0": ("refuses", "red"), "1": ("accepts", "green")}
_LEGEND = "{{env}} {{channel}}"


def build_panels() -> list[Builder[Panel]]:
    """From the webhook to the receipt."""
    return [
        build_state_timeline("Channels", "Whether each channel's provider accepts messages at all.", _CHANNEL_LABELS)
        .with_target(query_range(f"min by (env, channel) (relay_channel_up{{{ENV_SELECTOR}}})", _LEGEND))
        .links(
            [
                build_link("Relay", RELAY_URL),
                *build_runbook_links("RelayChannelFailing", "What a channel's reason means"),
            ]
        )
        .span(12)
        .height(8),
        build_stat(
            "Dead letters",
            "Messages that were given up, by channel; they are kept, and can be sent again.",
            {0: "green", 1: "red"},
        )
        .with_target(
            query_instant(f'max by (env, channel) (relay:outbox_deliveries{{{ENV_SELECTOR}, state="dead"}})', _LEGEND)
        )
        .unit("short")
        .links([build_link("Relay", RELAY_URL), *build_runbook_links("RelayDeadLetters")])
        .span(6)
        .height(8),
        build_stat(
            "Since the last heartbeat",
            "How long ago Alertmanager's Watchdog arrived. Red after 5 minutes: Prometheus or Alertmanager is gone, "
            "and no alert arrives either.",
            {0: "green", 300: "red"},
        )
        .with_target(
            query_instant(
                f"time() - max by (env, watchdog) (relay_watchdog_last_seen_timestamp_seconds{{{ENV_SELECTOR}}})",
                "{{env}} {{watchdog}}",
            )
        )
        .unit("s")
        .links(build_runbook_links("Watchdog", "WatchdogAbsent"))
        .span(6)
        .height(8),
        _build_receipt_panel(0.5, "half"),
        _build_receipt_panel(0.95, "19 of 20"),
        build_time_series("Outbox", "Messages that wait, by channel and state.")
        .with_target(
            query_range(f'relay:outbox_deliveries{{{ENV_SELECTOR}, state!="dead"}}', "{{env}} {{channel}} {{state}}")
        )
        .unit("short")
        .decimals(0)
        .links([build_link("Relay", RELAY_URL), *build_runbook_links("RelayOutboxStuck")])
        .span(12)
        .height(8),
        build_time_series(
            "Age of the oldest that waits",
            "How long the oldest message has waited, by channel; absent where none does. RelayOutboxStuck judges by "
            "the lines: 10 minutes while nothing is delivered, 2 hours while something is.",
            {600: "orange", 7200: "red"},
        )
        .with_target(query_range(f"time() - relay:outbox_oldest_timestamp_seconds{{{ENV_SELECTOR}}}", _LEGEND))
        .unit("s")
        .links([build_link("Relay", RELAY_URL), *build_runbook_links("RelayOutboxStuck")])
        .span(12)
        .height(8),
        _build_event_panel(
            "Deliveries",
            "Deliveries that ended in each interval: delivered, superseded by a later event, or dead.",
            ("relay_deliveries_total", "channel, outcome"),
            "RelayDeadLetters",
        ),
        _build_event_panel(
            "Attempts by reason",
            "Attempts to send in each interval: ok, or why not.",
            ("relay_delivery_attempts_total", "channel, reason"),
            "What a channel's reason means",
        ),
        _build_event_panel(
            "Webhooks",
            "Alertmanager's webhooks in each interval, by the status of the answer. What is answered 4xx reaches "
            "nobody; 503 is tried again.",
            ("relay_webhooks_total", "code"),
            "RelayWebhooksRejected",
            "RelayStoreUnavailable",
        ),
    ]


def _build_receipt_panel(quantile: float, percentile: str) -> Builder[Panel]:
    rate = f"rate(relay_delivery_duration_seconds_bucket{{{ENV_SELECTOR}}}[$__rate_interval])"
    return (
        build_time_series(
            f"Accept to receipt, p{quantile * 100:.0f}",
            f"The time within which {percentile} of the messages got from the webhook to the provider's receipt, by "
            "channel. The line is at a minute.",
            {60: "orange"},
        )
        .with_target(query_range(f"histogram_quantile({quantile}, sum by (env, channel, le) ({rate}))", _LEGEND))
        .unit("s")
        .links([build_link("Relay", RELAY_URL), *build_runbook_links("RelayOutboxStuck")])
        .span(12)
        .height(8)
    )


def _build_event_panel(title: str, description: str, counted: tuple[str, str], *headings: str) -> Builder[Panel]:
    """A counter's increases by its labels."""
    counter, by = counted
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return (
        build_bar_chart(title, description)
        .with_target(query_range(f"sum by ({by}) (increase({counter}{{{ENV_SELECTOR}}}[$__rate_interval]))", legend))
        .unit("short")
        .links(build_runbook_links(*headings))
        .span(8)
        .height(8)
    )
