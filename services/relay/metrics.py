"""The relay's metrics. Every label value exists, at 0, from the start."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.relay.channels.port import SendReason
from services.relay.model import MessagePart, PartOutcome
from services.relay.outbox.proofs import NEVER_PROVEN, ChannelTimes, Hop
from services.relay.outbox.tables import UNFINISHED, UNSETTLED, DeliveryState
from services.relay.text import WORST_FIRST
from shared.credentials import Credentials
from shared.http.server import CredentialCollector

PRESSED_ACTIONS = ("acknowledge", "unacknowledge", "silence")
CODES = (200, 202, 400, 401, 403, 413, 500, 503)
ACKNOWLEDGED_VIA = ("api", "console", "mail", "slack")
"""Where an acknowledgement that a relay itself sees can come from."""
TEMPLATES = ("title", "summary", "description")
_OUTCOMES = (DeliveryState.DELIVERED, DeliveryState.SUPERSEDED, DeliveryState.DEAD)
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)


class PressOutcome(StrEnum):
    """What came of a press of a button."""

    DONE = "done"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    FAILED = "failed"
    """It was not committed, and Slack tells the person."""


@dataclass(frozen=True, slots=True)
class OutboxState:
    """What a scrape reads from the outbox."""

    counts: Iterable[tuple[str, str, int, float]]
    """(channel, state, deliveries, acceptance time of the oldest)."""
    down_channels: Collection[str]
    """The channels that are down until a person acts."""
    watchdogs_last_seen: Mapping[str, float]
    """When each watchdog's last heartbeat came, unix seconds."""
    open_incidents: Iterable[tuple[str, int, int]] = ()
    """(severity, or nothing, open incidents, how many of them are acknowledged)."""
    proofs: Mapping[str, ChannelTimes] = field(default_factory=dict)
    """When each channel was proven."""


class Metrics:
    """What the relay counts.

    Args:
        registry: where `/metrics` finds it.
        channels: the configured names; see `set_channels`.
        clock: unix seconds.
        get_server_credentials: those of web.yml that end.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        channels: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
        get_server_credentials: Callable[[], Credentials] = dict,
    ) -> None:
        self.certificates: Credentials = {}
        """Of the servers that the relay logs in to."""
        CredentialCollector("relay", registry, lambda: {**get_server_credentials(), **self.certificates})
        self.webhook_times: dict[int, float] = {}
        """When a webhook was last answered with each HTTP status, unix seconds."""
        self._clock = clock

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        self._webhooks = counter("relay_webhooks_total", "Webhooks answered, by HTTP status.", "code")
        self.deliveries = counter("relay_deliveries_total", "Deliveries that ended.", "channel", "outcome")
        self.attempts = counter("relay_delivery_attempts_total", "Attempts that ended.", "channel", "reason")
        self.duration = Histogram(
            "relay_delivery_duration_seconds",
            "From the commit of an event to its receipt on a channel.",
            ["channel"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.partial_deliveries = counter(
            "relay_partial_deliveries_total",
            "Messages that a provider took, but refused for some of their recipients.",
            "channel",
        )
        self.leases_lost = counter(
            "relay_leases_lost_total",
            "Leases that expired before the outcome was recorded, as while a process is stopped.",
            "channel",
        )
        self.acknowledgements = counter(
            "relay_acknowledgements_total", "Incidents acknowledged through this relay.", "via"
        )
        self.escalations = counter(
            "relay_escalations_total",
            "Incidents that went to a further channel, since nobody acknowledged them.",
            "channel",
        )
        self.proof_failures = counter(
            "relay_path_proof_failures_total", "Proofs of the path that were lost, by the hop.", "channel", "hop"
        )
        self.proof_interval = gauge(
            "relay_path_proof_interval_seconds", "How often the path is proven: proof.every; 0 is never."
        )
        self.edits = counter(
            "relay_edits_total", "Attempts to edit the first message of an incident.", "channel", "outcome"
        )
        self.message_parts = counter(
            "relay_message_parts_total", "What messages got beside their event, by how that ended.", "part", "outcome"
        )
        self.presses = counter(
            "relay_presses_total", "Presses of buttons in Slack that reached this relay.", "action", "outcome"
        )
        self.slack_connected = gauge("relay_slack_connected", "1 while this relay is connected to Slack's Socket Mode.")
        self.slack_connections = gauge(
            "relay_slack_connections", "Connections that Slack counted when this relay connected."
        )
        self.template_errors = counter(
            "relay_template_errors_total",
            "Messages for which a template of `messages.templates` gave no text, so that keypulse's own was sent.",
            "template",
        )
        self._used_bytes = gauge(
            "relay_outbox_bytes", "Bytes that the outbox holds, as measured last, and what was accepted since."
        )
        self._max_bytes = gauge(
            "relay_outbox_max_bytes",
            "Bytes that the outbox may hold: retention.max_bytes. Near it, webhooks get 503 if nothing can be removed.",
        )
        self.streams = gauge("relay_event_streams", "Pages of the console that this relay keeps live.")
        self.refused_streams = counter(
            "relay_event_streams_refused_total",
            "Pages that are not kept live, because the relay stops or too many are open.",
        )
        for code in CODES:
            self._webhooks.labels(code)
        for via in ACKNOWLEDGED_VIA:
            self.acknowledgements.labels(via)
        for action in PRESSED_ACTIONS:
            for outcome in PressOutcome:
                self.presses.labels(action, outcome)
        for part in MessagePart:
            for ending in PartOutcome:
                self.message_parts.labels(part, ending)
        for template in TEMPLATES:
            self.template_errors.labels(template)
        self._channels: frozenset[str] = frozenset()
        self.set_channels(channels)

    def set_channels(self, channels: Iterable[str], proof_interval: float = 0.0) -> None:
        """Sets the configured channels, and the seconds between proofs; the counts of other channels are removed."""
        self.proof_interval.set(proof_interval)
        channels = frozenset(channels)
        for channel in self._channels - channels:
            of_channels = (self.leases_lost, self.duration, self.deliveries, self.attempts)
            for each in (*of_channels, self.edits, self.escalations, self.proof_failures):
                each.remove_by_labels({"channel": channel})
        for channel in channels:
            self.leases_lost.labels(channel)
            self.duration.labels(channel)
            self.escalations.labels(channel)
            for outcome in _OUTCOMES:
                self.deliveries.labels(channel, outcome)
            for reason in SendReason:
                self.attempts.labels(channel, reason)
            for hop in Hop:
                self.proof_failures.labels(channel, hop)
        self._channels = channels

    def set_size_functions(self, read_used: Callable[[], int], read_limit: Callable[[], int]) -> None:
        """Sets what reads at each scrape how many bytes the outbox holds, and may hold."""
        self._used_bytes.set_function(read_used)
        self._max_bytes.set_function(read_limit)

    def count_webhook(self, code: int) -> None:
        self._webhooks.labels(code).inc()
        self.webhook_times[code] = self._clock()


class OutboxGauges(Collector):
    """Read from the outbox at each scrape, in the scrape's thread; absent where it cannot be read.

    Args:
        read_state: reads the outbox; None if it cannot.
    """

    def __init__(self, read_state: Callable[[], OutboxState | None]) -> None:
        self.set_configuration((), ())
        self._read_state = read_state

    def set_configuration(
        self, channels: Iterable[str], watchdogs: Collection[str], proven_channels: Collection[str] = ()
    ) -> None:
        """Sets the configured names; channels with nothing waiting show 0."""
        self._channels = tuple(channels)
        self._proven_channels = proven_channels
        self._watchdogs = watchdogs

    def describe(self) -> Iterator[Metric]:
        """The families without values, so that registering reads no outbox."""
        yield from _build_families()

    def collect(self) -> Iterator[Metric]:
        deliveries, oldest, up, heartbeats, incidents, proofs = _build_families()
        state = self._read_state()
        if state is None:
            return
        values: dict[tuple[str, str], int] = {(channel, each): 0 for channel in self._channels for each in UNSETTLED}
        oldest_waiting: dict[str, float] = {}
        for channel, each, number, accepted_at in state.counts:
            values[channel, each] = number
            if each in UNFINISHED:
                oldest_waiting[channel] = min(accepted_at, oldest_waiting.get(channel, accepted_at))
        _add_all(deliveries, values.items())
        _add_all(proofs, self._list_proofs(state))
        for channel, accepted_at in oldest_waiting.items():
            oldest.add_metric([channel], accepted_at)
        for channel in self._channels:
            up.add_metric([channel], channel not in state.down_channels)
        for watchdog, last_seen_at in state.watchdogs_last_seen.items():
            if watchdog in self._watchdogs:
                heartbeats.add_metric([watchdog], last_seen_at)
        counts = {severity: (number, acknowledged) for severity, number, acknowledged in state.open_incidents}
        for severity in WORST_FIRST:
            number, acknowledged = counts.get(severity, (0, 0))
            incidents.add_metric([severity or "none", "true"], acknowledged)
            incidents.add_metric([severity or "none", "false"], number - acknowledged)
        yield from (deliveries, oldest, up, heartbeats, incidents, proofs)

    def _list_proofs(self, state: OutboxState) -> Iterator[tuple[tuple[str, str], float]]:
        for channel in self._proven_channels:
            for level, at in state.proofs.get(channel, NEVER_PROVEN).list_levels():
                yield (channel, level), at


def _add_all(family: GaugeMetricFamily, values: Iterable[tuple[Sequence[str], float]]) -> None:
    for labels, value in values:
        family.add_metric(labels, value)


def _build_families() -> tuple[GaugeMetricFamily, ...]:
    return (
        GaugeMetricFamily(
            "relay_outbox_deliveries",
            "Deliveries that wait, are being sent, or are dead.",
            labels=["channel", "state"],
        ),
        GaugeMetricFamily(
            "relay_outbox_oldest_timestamp_seconds",
            "When the oldest unfinished delivery was accepted; absent where there is none.",
            labels=["channel"],
        ),
        GaugeMetricFamily(
            "relay_channel_up",
            "0 while a channel is down until a person acts, such as for a revoked token.",
            labels=["channel"],
        ),
        GaugeMetricFamily(
            "relay_watchdog_last_seen_timestamp_seconds",
            "When the last heartbeat of a watchdog came; before the first, since when it is expected.",
            labels=["watchdog"],
        ),
        GaugeMetricFamily(
            "relay_open_incidents",
            "Incidents that fire, by their worst severity and by whether somebody acknowledged them.",
            labels=["severity", "acknowledged"],
        ),
        GaugeMetricFamily(
            "relay_path_proof_timestamp_seconds",
            "When a proof of the path last succeeded on a channel, by how far it was proven; none: since when it is "
            "served without a proof.",
            labels=["channel", "level"],
        ),
    )
