"""The metrics of the relay; the only room that names them. Every label value exists, at 0, from the start."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CODES = (200, 202, 400, 401, 403, 413, 500, 503)
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)

OutboxCounts = Callable[[], Iterable[tuple[str, str, int, float]] | None]
"""(channel, state, deliveries, acceptance time of the oldest); None where the outbox cannot be read."""


class Metrics:
    """What the relay counts.

    Args:
        registry: where `/metrics` finds it.
        channels: the configured names.
        outcomes: how a delivery can end.
        reasons: how an attempt can end.
    """

    def __init__(
        self, registry: CollectorRegistry, channels: Iterable[str], outcomes: Iterable[str], reasons: Iterable[str]
    ) -> None:
        self._webhooks = Counter(
            "relay_webhooks_total", "Webhooks answered, by HTTP status.", ["code"], registry=registry
        )
        self._deliveries = Counter(
            "relay_deliveries_total", "Deliveries that ended.", ["channel", "outcome"], registry=registry
        )
        self._attempts = Counter(
            "relay_delivery_attempts_total", "Attempts that ended.", ["channel", "reason"], registry=registry
        )
        self._duration = Histogram(
            "relay_delivery_duration_seconds",
            "From the commit of an event to its receipt on a channel.",
            ["channel"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._up = Gauge(
            "relay_channel_up",
            "0 while a channel refuses everything until a person acts, such as for a revoked token.",
            ["channel"],
            registry=registry,
        )
        for code in CODES:
            self._webhooks.labels(code)
        outcomes, reasons = tuple(outcomes), tuple(reasons)
        for channel in channels:
            self._up.labels(channel).set(1)
            self._duration.labels(channel)
            for outcome in outcomes:
                self._deliveries.labels(channel, outcome)
            for reason in reasons:
                self._attempts.labels(channel, reason)

    def webhook(self, code: int) -> None:
        """A webhook was answered with this status."""
        self._webhooks.labels(code).inc()

    def attempt(self, channel: str, reason: str) -> None:
        """An attempt ended."""
        self._attempts.labels(channel, reason).inc()

    def ended(self, channel: str, outcome: str) -> None:
        """A delivery ended."""
        self._deliveries.labels(channel, outcome).inc()

    def delivered_after(self, channel: str, seconds: float) -> None:
        """A delivery arrived so long after its commit."""
        self._duration.labels(channel).observe(seconds)

    def channel_up(self, channel: str, up: bool) -> None:
        """A channel took a message, or refuses them all."""
        self._up.labels(channel).set(up)


class OutboxGauges(Collector):
    """Counted by the outbox at each scrape, on the scrape's own thread; absent where it cannot be read.

    Args:
        channels: the configured names; those with nothing waiting show 0.
        states: those that are counted.
        unsent: which of them are still to be sent.
        counts: asks the outbox.
    """

    def __init__(
        self, channels: Iterable[str], states: Iterable[str], unsent: Iterable[str], counts: OutboxCounts
    ) -> None:
        self._channels = tuple(channels)
        self._states = tuple(states)
        self._unsent = frozenset(unsent)
        self._counts = counts

    def describe(self) -> Iterator[Metric]:
        """The families without values, so that registering asks no outbox."""
        yield from self._families()

    def collect(self) -> Iterator[Metric]:
        """The families as the outbox stands now."""
        deliveries, oldest = self._families()
        counted = self._counts()
        if counted is None:
            return
        values = {(channel, state): 0 for channel in self._channels for state in self._states}
        waiting: dict[str, float] = {}
        for channel, state, number, accepted_at in counted:
            values[channel, state] = number
            if state in self._unsent:
                waiting[channel] = min(accepted_at, waiting.get(channel, accepted_at))
        for labels, number in values.items():
            deliveries.add_metric(labels, number)
        for channel, accepted_at in waiting.items():
            oldest.add_metric([channel], accepted_at)
        yield deliveries
        yield oldest

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily(
                "relay_outbox_deliveries",
                "Deliveries that are still to be made, and those that were given up.",
                labels=["channel", "state"],
            ),
            GaugeMetricFamily(
                "relay_outbox_oldest_timestamp_seconds",
                "When the oldest delivery that is still to be made was accepted; absent where none is.",
                labels=["channel"],
            ),
        )
