"""A teller over a real outbox, and what it has told: the latest event of each incident."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from sqlalchemy import select

from services.relay.config import RelaySettings
from services.relay.intake.routing import RouteSettings, WatchdogSettings
from services.relay.metrics import Metrics
from services.relay.model import (
    Alert,
    Event,
    Status,
    decode_event,
)
from services.relay.monitors.self_alerts import AlertPublisher
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import deliveries, events
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept_webhook

CHANNELS = ("slack", "email", "pagerduty")
START = 1_700_000_000.0


class Clock:
    """The wall clock, and the monotonic one; both go only when told."""

    def __init__(self) -> None:
        self.now = START
        self.monotonic = 0.0

    def wall(self) -> float:
        return self.now

    def steady(self) -> float:
        return self.monotonic

    def go(self, seconds: float) -> None:
        self.now += seconds
        self.monotonic += seconds


def configure(**changes: Any) -> RelaySettings:
    """A configuration whose channels nobody connects."""
    defaults: dict[str, Any] = {"channels": dict.fromkeys(CHANNELS), "default_channels": ("slack",)}
    return RelaySettings.model_construct(**defaults | changes)


def watch(name: str, expect_every: str, *channels: str, file: Path | None = None) -> WatchdogSettings:
    """The settings of a watchdog, by the name of its alert."""
    return WatchdogSettings(
        matchers=(f'alertname="{name}"',), expect_every=expect_every, channels=channels, ping_url_file=file
    )


class PublishedEvent(NamedTuple):
    """One event that was accepted, and the channels it went to."""

    event: Event
    channels: set[str]


class MonitoredOutbox:
    """A teller, its outbox, and the channels that it woke."""

    def __init__(self, store: Store, registry: CollectorRegistry) -> None:
        self.store = store
        self.registry = registry
        self.woken: list[str] = []
        self.duplicate_window = 60.0
        metrics = Metrics(registry, CHANNELS)
        self.publisher = AlertPublisher(store, metrics, configure(), self._accepted)

    def route(self, *channels: str, escalate: Sequence[Mapping[str, object]] = ()) -> None:
        """Where every event goes by the routes."""
        route = RouteSettings(channels=channels, escalate=tuple(escalate))
        self.publisher.settings = configure(routes=(route,))

    def _accepted(self, channels: Iterable[str]) -> None:
        self.woken += channels

    async def list_published(self) -> list[PublishedEvent]:
        """Every event, the oldest first."""
        query = (
            select(events.c.seq, events.c.event, deliveries.c.channel)
            .outerjoin(deliveries, deliveries.c.event_seq == events.c.seq)
            .order_by(events.c.seq)
        )
        rows = await self.store.read(lambda connection: connection.execute(query).all())
        published: dict[int, PublishedEvent] = {}
        for seq, event, channel in rows:
            published.setdefault(seq, PublishedEvent(decode_event(event), set())).channels.update({channel} - {None})
        return list(published.values())

    async def accept(self, event: Event, *channels: str) -> str:
        """Accepts a webhook's event; gives its id."""
        routed = channels or ("slack",)
        window = self.duplicate_window
        accepted = await accept_webhook(self.store, event, routed, configured=CHANNELS, duplicate_window=window)
        return accepted.event_id


@asynccontextmanager
async def open_monitored_outbox(database: DatabaseUrl, clock: Clock) -> AsyncIterator[MonitoredOutbox]:
    async with open_store(database, clock.wall) as store:
        yield MonitoredOutbox(store, CollectorRegistry())


def event(*alerts: tuple[str, Status], group: str = "one", source: str = "", truncated: int = 0) -> Event:
    """A group of alerts, each given by its name and its status."""
    moment = datetime.fromtimestamp(START - 60, UTC)
    published = tuple(
        Alert(
            status, {"alertname": name}, {}, moment, moment if status is Status.RESOLVED else None, "", f"print-{name}"
        )
        for name, status in alerts
    )
    firing = any(status is Status.FIRING for _, status in alerts)
    return Event(
        source=source,
        receiver="kms-critical",
        group_key=f"{{}}:{{{group}}}",
        status=Status.FIRING if firing else Status.RESOLVED,
        alerts=published,
        group_labels={},
        common_labels={},
        common_annotations={},
        truncated_alerts=truncated,
    )
