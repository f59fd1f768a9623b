"""Workers over a real outbox, for the tests of delivery."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry

from services.relay.channels.port import MessageRate, SendError, SendReason, SendScope
from services.relay.config import DeliverySettings, PacingSettings
from services.relay.deliveries.queries import DeliveryFilter, DeliverySummary, list_deliveries
from services.relay.delivery.attempt import SenderSettings, open_local_sender
from services.relay.delivery.enrichment import NO_ENRICHMENT, EnrichmentSettings
from services.relay.delivery.message import LinkRules
from services.relay.delivery.task import DeliveryContext
from services.relay.delivery.worker import Worker
from services.relay.metrics import Metrics
from services.relay.outbox.accept import DeliveryPlan, IncomingEvent, accept_event
from services.relay.outbox.incidents import IncidentState
from services.relay.outbox.store import open_store
from services.relay.outbox.tables import CHANNELS
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.relay.served_relay import Scripted, ScriptedSettings, event_of, until


def policy_of(backoff_initial: float, backoff_max: float, give_up_after: float) -> DeliverySettings:
    return DeliverySettings.model_construct(
        backoff_initial=backoff_initial, backoff_max=backoff_max, give_up_after=give_up_after
    )


QUICK = policy_of(0.01, 0.3, 60)
LANES = 8
NEARLY = 0.99
"""The wall clock says when it is due, the event loop's clock how long that was."""


def _always(plan: DeliveryPlan, _state: IncidentState | None, _now: float) -> DeliveryPlan:
    return plan


class _Lanes(ScriptedSettings):
    max_concurrency: ClassVar[int] = LANES


class Rig:
    """Workers over a real outbox."""

    def __init__(self, shared: DeliveryContext, workers: dict[str, Worker], registry: CollectorRegistry) -> None:
        self.shared = shared
        self.store = shared.store
        self.workers = workers
        self.registry = registry

    async def accept_events(
        self, *statuses: str, group: str = "one", channels: tuple[str, ...] | None = None, **changes: Any
    ) -> None:
        channels = channels or tuple(self.workers)
        for status in statuses:
            incoming = IncomingEvent(event_of(status, group=group, **changes), group, "", "KMSTest", b"{}")
            plan = DeliveryPlan(1, is_open=True, channels=channels)
            await accept_event(self.store, incoming, partial(_always, plan))
            for worker in self.workers.values():
                worker.wake(channels)

    async def deliveries(self, channel: str = "a") -> list[DeliverySummary]:
        return (await list_deliveries(self.store, DeliveryFilter(channel=channel), limit=200)).deliveries[::-1]

    async def finished(self, channel: str = "a") -> list[DeliverySummary]:
        """The deliveries of a channel, oldest first, once all have ended."""

        async def over() -> bool:
            return all(delivery.finished_at is not None for delivery in await self.deliveries(channel))

        await until(over)
        return await self.deliveries(channel)

    async def refused(self) -> set[str]:
        return {each.name for each in await self.store.read(CHANNELS.fetch_all) if each.is_down}

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@asynccontextmanager
async def rig(
    where: Path | DatabaseUrl,
    policy: DeliverySettings = QUICK,
    timeout: float = 10,
    clock: Callable[[], float] = time.time,
    hosts: frozenset[str] = frozenset(),
    fallback: tuple[str, ...] = (),
    rate: float | None = None,
    *,
    enrichment: EnrichmentSettings = NO_ENRICHMENT,
    **channels: Scripted,
) -> AsyncIterator[Rig]:
    registry = CollectorRegistry()
    unmerged = frozenset(name for name in channels if name.startswith("every"))
    file = database_url.create_sqlite_url(where / "relay.db") if isinstance(where, Path) else where
    given = SenderSettings(
        channels={name: _Lanes(channel=channel, rate=rate and MessageRate(rate)) for name, channel in channels.items()},
        link_rules=LinkRules("https://docs.example.org/#{alertname_lower}", None, allow_hosts=hosts),
        contacts={"service owner": "#ledger-team"},
        timeout=timeout,
        enrichment=enrichment,
    )
    async with open_store(file, clock, unmerged) as store, open_local_sender(given) as send:
        workers: dict[str, Worker] = {}

        def wake(names: Iterable[str]) -> None:
            for worker in workers.values():
                worker.wake(frozenset(names))

        shared = DeliveryContext(
            store=store,
            metrics=Metrics(registry, channels),
            send=send,
            channels=given.channels,
            settings=policy.model_copy(update={"timeout": timeout, "lease": timeout * 2}),
            pacing=PacingSettings(),
            lease_owner="test",
            random=lambda: 1.0,
            fallback_channels=fallback,
            wake_channels=wake,
        )
        workers |= {name: Worker(name, shared) for name in channels}
        tasks = [asyncio.create_task(worker.run()) for worker in workers.values()]
        try:
            yield Rig(shared, workers, registry)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def broken(scope: SendScope = SendScope.ATTEMPT, retry_after: float | None = None) -> SendError:
    return SendError(SendReason.SERVER_ERROR, scope, "503 from the provider", retry_after=retry_after)
