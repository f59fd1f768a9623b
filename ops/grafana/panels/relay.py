"""The row about the relay, by environment: does an alert reach people, and how fast."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ops.grafana import links
from ops.grafana.links import link, sections
from ops.grafana.panels.kinds import bars, lines, stat, timeline
from ops.grafana.panels.queries import now, over_time
from ops.grafana.variables import ENV

_UP = {"0": ("refuses", "red"), "1": ("accepts", "green")}
_CHANNEL = "{{env}} {{channel}}"


def panels() -> list[Builder[Panel]]:
    """From the webhook to the receipt."""
    return [
        timeline("Channels", "Whether each channel's provider accepts messages at all.", _UP)
        .with_target(over_time(f"min by (env, channel) (relay_channel_up{{{ENV}}})", _CHANNEL))
        .links([link("Relay", links.RELAY), *sections("RelayChannelFailing", "What a channel's reason means")])
        .span(12)
        .height(8),
        stat(
            "Dead letters",
            "Messages that were given up, by channel; they are kept, and can be sent again.",
            {0: "green", 1: "red"},
        )
        .with_target(now(f'max by (env, channel) (relay:outbox_deliveries{{{ENV}, state="dead"}})', _CHANNEL))
        .unit("short")
        .links([link("Relay", links.RELAY), *sections("RelayDeadLetters")])
        .span(6)
        .height(8),
        stat(
            "Since the last heartbeat",
            "How long ago Alertmanager's Watchdog arrived. Red after 5 minutes: Prometheus or Alertmanager is gone, "
            "and no alert arrives either.",
            {0: "green", 300: "red"},
        )
        .with_target(
            now(
                f"time() - max by (env, watchdog) (relay_watchdog_last_seen_timestamp_seconds{{{ENV}}})",
                "{{env}} {{watchdog}}",
            )
        )
        .unit("s")
        .links(sections("Watchdog", "WatchdogAbsent"))
        .span(6)
        .height(8),
        _receipt(0.5, "half"),
        _receipt(0.95, "19 of 20"),
        lines("Outbox", "Messages that wait, by channel and state.")
        .with_target(over_time(f'relay:outbox_deliveries{{{ENV}, state!="dead"}}', "{{env}} {{channel}} {{state}}"))
        .unit("short")
        .decimals(0)
        .links([link("Relay", links.RELAY), *sections("RelayOutboxStuck")])
        .span(12)
        .height(8),
        lines(
            "Age of the oldest that waits",
            "How long the oldest message has waited, by channel; absent where none does. RelayOutboxStuck judges by "
            "the lines: 10 minutes while nothing is delivered, 2 hours while something is.",
            {600: "orange", 7200: "red"},
        )
        .with_target(over_time(f"time() - relay:outbox_oldest_timestamp_seconds{{{ENV}}}", _CHANNEL))
        .unit("s")
        .links([link("Relay", links.RELAY), *sections("RelayOutboxStuck")])
        .span(12)
        .height(8),
        _events(
            "Deliveries",
            "Deliveries that ended in each interval: delivered, superseded by a later event, or dead.",
            ("relay_deliveries_total", "channel, outcome"),
            "RelayDeadLetters",
        ),
        _events(
            "Attempts by reason",
            "Attempts to send in each interval: ok, or why not.",
            ("relay_delivery_attempts_total", "channel, reason"),
            "What a channel's reason means",
        ),
        _events(
            "Webhooks",
            "Alertmanager's webhooks in each interval, by the status of the answer. What is answered 4xx reaches "
            "nobody; 503 is tried again.",
            ("relay_webhooks_total", "code"),
            "RelayWebhooksRejected",
            "RelayStoreUnavailable",
        ),
    ]


def _receipt(q: float, share: str) -> Builder[Panel]:
    rate = f"rate(relay_delivery_duration_seconds_bucket{{{ENV}}}[$__rate_interval])"
    return (
        lines(
            f"Accept to receipt, p{q * 100:.0f}",
            f"The time within which {share} of the messages got from the webhook to the provider's receipt, by "
            "channel. The line is at a minute.",
            {60: "orange"},
        )
        .with_target(over_time(f"histogram_quantile({q}, sum by (env, channel, le) ({rate}))", _CHANNEL))
        .unit("s")
        .links([link("Relay", links.RELAY), *sections("RelayOutboxStuck")])
        .span(12)
        .height(8)
    )


def _events(title: str, description: str, counted: tuple[str, str], *headings: str) -> Builder[Panel]:
    """A counter's increases by its labels."""
    counter, by = counted
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return (
        bars(title, description)
        .with_target(over_time(f"sum by ({by}) (increase({counter}{{{ENV}}}[$__rate_interval]))", legend))
        .unit("short")
        .links(sections(*headings))
        .span(8)
        .height(8)
    )
