"""Workers over a real outbox, for the tests of delivery."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from services.relay.channels.channel import Reason, Scope, SendError
from services.relay.delivery.enrich.links import LinkRules
from services.relay.delivery.retry import RetryPolicy
from services.relay.delivery.worker import Delivering, Worker
from services.relay.metrics import Metrics
from services.relay.outbox.accept import Incoming, Plan, accept
from services.relay.outbox.query import Delivery, Filter, recent
from services.relay.outbox.store import Store, opened
from tests.relay.scripted import Scripted, event_of, until

QUICK = RetryPolicy(backoff_initial=0.01, backoff_max=0.3, give_up_after=60)
NEARLY = 0.99
"""The wall clock says when it is due, the event loop's clock how long that was."""


class Rig:
    """Workers over a real outbox."""

    def __init__(self, store: Store, workers: dict[str, Worker], registry: CollectorRegistry) -> None:
        self.store = store
        self.workers = workers
        self.registry = registry

    async def tell(self, *statuses: str, group: str = "one", **changes: Any) -> None:
        channels = tuple(self.workers)
        for status in statuses:
            incoming = Incoming(event_of(status, group=group, **changes), group, "", "KMSTest", b"{}")
            await accept(self.store, incoming, lambda _known, _now: Plan(1, open=True, channels=channels))
            for worker in self.workers.values():
                worker.wake()

    async def deliveries(self, channel: str = "a") -> list[Delivery]:
        return (await recent(self.store, Filter(channel=channel), limit=100))[::-1]

    async def finished(self, channel: str = "a") -> list[Delivery]:
        """The deliveries of a channel, oldest first, once all have ended."""

        async def over() -> bool:
            return all(delivery.finished_at is not None for delivery in await self.deliveries(channel))

        await until(over)
        return await self.deliveries(channel)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@asynccontextmanager
async def rig(
    folder: Path,
    policy: RetryPolicy = QUICK,
    timeout: float = 10,
    clock: Callable[[], float] = time.time,
    hosts: frozenset[str] = frozenset(),
    **channels: Scripted,
) -> AsyncIterator[Rig]:
    registry = CollectorRegistry()
    async with opened(folder / "relay.db", clock) as store:
        shared = Delivering(
            store=store,
            metrics=Metrics(registry, channels, ["delivered", "dead"], Reason),
            links=LinkRules("https://docs.example.org/#{alertname_lower}", None, hosts),
            retry=policy,
            timeout=timeout,
            lease=20,
            owner="test",
            random=lambda: 1.0,
        )
        workers = {name: Worker(name, channel, shared) for name, channel in channels.items()}
        tasks = [asyncio.create_task(worker.run()) for worker in workers.values()]
        try:
            yield Rig(store, workers, registry)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def broken(scope: Scope = Scope.ATTEMPT, **options: float) -> SendError:
    return SendError(Reason.SERVER_ERROR, scope, "503 from the provider", **options)
