"""The workers of all channels put together, and how they stop."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final
from uuid import uuid4

import structlog

from services.relay.channels.channel import ChannelSettings
from services.relay.config import RelaySettings
from services.relay.delivery.deliver import Delivering
from services.relay.delivery.retry import RetryPolicy
from services.relay.delivery.worker import Worker
from services.relay.metrics import Metrics
from services.relay.outbox import gate
from services.relay.outbox.fallback import fall_back_of_gone
from services.relay.outbox.held import give_back
from services.relay.outbox.overdue import look_after
from services.relay.outbox.restored import HELD_FOR, notice_restore
from services.relay.outbox.schema import State
from services.relay.outbox.served import catch_up, serve
from services.relay.outbox.store import Store
from services.relay.outbox.waiting import StoreUnavailableError
from services.relay.sending.enrich.links import LinkRules
from services.relay.sending.outgoing import Send, Sending, SendingSettings

GRACE_SECONDS: Final = 6.0
"""How long a stop waits for messages that are being sent; with the server's own drain it stays within its bound."""
_CLOSE_SECONDS: Final = 1.0
_PAUSE: Final = 1.0
"""Seconds to wait after the outbox failed."""
_LOOK_AFTER_SECONDS: Final = 15.0

Wake = Callable[[Iterable[str]], None]
log = structlog.get_logger(__name__)


@asynccontextmanager
async def delivering(settings: RelaySettings, store: Store, metrics: Metrics, sending: Sending) -> AsyncIterator[Wake]:
    """A worker for each channel; at the end they finish what is in hand, within the grace period.

    Yields:
        What tells the workers of some channels that there is something new.
    """
    owner = uuid4().hex
    timeout = settings.delivery.timeout
    given = SendingSettings(settings.channels, link_rules(settings), settings.contacts, timeout)
    try:
        async with sending(given) as send, _working(settings, store, metrics, owner, send) as wake:
            yield wake
    finally:  # nothing is sent any more
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await give_back(store, owner)
                await notice_restore(store, held_for=_held_for(settings))  # until now it was used
        except (StoreUnavailableError, TimeoutError) as error:
            log.warning("claims return when their lease ends", problem=str(error) or "the outbox does not answer")


@asynccontextmanager
async def _working(
    settings: RelaySettings, store: Store, metrics: Metrics, owner: str, send: Send
) -> AsyncIterator[Wake]:
    delivery = settings.delivery
    workers: dict[str, Worker] = {}

    def wake(names: Iterable[str]) -> None:
        for name in names:
            if name in workers:
                workers[name].wake()

    shared = Delivering(
        store=store,
        metrics=metrics,
        send=send,
        retry=RetryPolicy(delivery.backoff_initial, delivery.backoff_max, delivery.give_up_after),
        timeout=delivery.timeout,
        lease=delivery.lease,
        owner=owner,
        random=random.random,
        fallback=settings.default_channels,
        woken=wake,
    )
    # Of these nothing is asked but whether their secrets are others: they connect at their first send, and never send.
    channels = {name: channel.connect(delivery.timeout) for name, channel in settings.channels.items()}
    for name, channel in channels.items():
        own = settings.channels[name]
        sharing = _sharing(own, settings.channels)
        workers[name] = Worker(name, channel, _rate(settings, own), own.lanes, shared, sharing)
    held_for = _held_for(settings)
    begun = await _begin(store, channels, held_for)
    beginning = asyncio.create_task(_begin_late(store, channels, held_for, begun=begun), name="begin to deliver")

    async def deliver(worker: Worker) -> None:
        await asyncio.wait([beginning])  # before, what waits may be that of a backup
        await worker.run()

    tasks = [asyncio.create_task(deliver(worker), name=f"deliver {name}") for name, worker in workers.items()]
    looking = asyncio.create_task(_look_after(store, shared, wake, channels, held_for), name="overdue deliveries")
    try:
        yield wake
    finally:
        looking.cancel()
        beginning.cancel()
        for worker in workers.values():
            worker.stop()
        try:
            await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        finally:  # whoever cancels a reload, such as a stop, ends the grace, and no more than that
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, looking, beginning, return_exceptions=True)


def link_rules(settings: RelaySettings) -> LinkRules:
    """What a person set about links."""
    return LinkRules(settings.links.runbook, settings.links.dashboard, frozenset(settings.links.allow_hosts))


def _held_for(settings: RelaySettings) -> float:
    """Seconds for which what waits in a restored backup is held back, where it can be compared."""
    return HELD_FOR if settings.alertmanager.urls else 0.0


def _sharing(channel: ChannelSettings, channels: Mapping[str, ChannelSettings]) -> tuple[str, ...]:
    place = channel.shared_place()
    return tuple(name for name, other in channels.items() if place is not None and other.shared_place() == place)


def _rate(settings: RelaySettings, channel: ChannelSettings) -> float | None:
    rate = channel.rate or channel.usual_rate
    return rate.messages if rate is not None and settings.pacing.enabled else None


async def _begin(store: Store, names: Collection[str], held_for: float) -> bool:
    """Whoever starts the relay anew may have mended why a channel refused everything, or brought one back.

    Or restored a backup. False where the outbox is not available, so that nothing of it is known.
    """
    try:
        await _brought_back(store, names)
        await notice_restore(store, held_for=held_for)
    except StoreUnavailableError as error:
        log.warning("nothing is delivered until the outbox can be used", problem=str(error))
        return False
    return True


async def _begin_late(store: Store, names: Collection[str], held_for: float, *, begun: bool) -> None:
    while not begun:
        await asyncio.sleep(_PAUSE)
        with suppress(StoreUnavailableError):  # the store has logged it
            with suppress(StoreUnavailableError):  # then they are tried when their pause ends
                await _brought_back(store, names)
            await notice_restore(store, held_for=held_for)
            begun = True


async def _brought_back(store: Store, names: Collection[str]) -> None:
    await serve(store, names)
    await catch_up(store, names)
    await gate.reopened(store, names)


async def _look_after(store: Store, shared: Delivering, wake: Wake, channels: Collection[str], held_for: float) -> None:
    async def overdue() -> None:
        await serve(store, channels)
        told = await fall_back_of_gone(store, channels, shared.fallback)
        for channel in told.superseded:
            shared.metrics.ended(channel, State.SUPERSEDED)
        wake(told.woken)
        looked = await look_after(store, shared.owner, shared.retry.give_up_after, shared.fallback)
        for channel, state in looked.ended:
            shared.metrics.ended(channel, state)
        wake(looked.woken)

    looks: tuple[Callable[[], Awaitable[object]], ...] = (partial(notice_restore, store, held_for=held_for), overdue)
    while True:
        await asyncio.sleep(_LOOK_AFTER_SECONDS)
        for look in looks:
            try:
                await look()
            except StoreUnavailableError:
                continue  # the store has logged it
            except Exception:
                log.exception("a defect in looking after what is overdue; it goes on")
