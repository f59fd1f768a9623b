"""The relay put together: the only room that knows all the others."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import structlog
from starlette.applications import Starlette
from starlette.routing import Route

from services.relay.channels.channel import Channel, Reason, Receipt, Scope, SendError
from services.relay.channels.defect import defect
from services.relay.config import RelaySettings
from services.relay.console import api
from services.relay.delivery.enrich.links import LinkRules
from services.relay.delivery.retry import RetryPolicy
from services.relay.delivery.trial import trial, trial_over
from services.relay.delivery.worker import Delivering, Worker
from services.relay.intake.endpoint import Intake, Rules
from services.relay.intake.routing import Rule
from services.relay.metrics import Metrics, OutboxGauges
from services.relay.outbox import query
from services.relay.outbox.claim import give_back
from services.relay.outbox.schema import OPEN, State
from services.relay.outbox.store import Store, StoreUnavailableError, StoreUnusableError, opened
from shared.secret_file import SecretFile
from shared.server import StartError, application, registry, serve_until_stopped

GRACE_SECONDS: Final = 6.0
"""How long a stop waits for messages that are being sent; with the server's own drain it stays within its bound."""
_CLOSE_SECONDS: Final = 1.0
_COUNT_SECONDS: Final = 2.0
_OUTCOMES: Final = (State.DELIVERED, State.SUPERSEDED, State.DEAD)

log = structlog.get_logger(__name__)


@asynccontextmanager
async def running(settings: RelaySettings, *, clock: Callable[[], float] = time.time) -> AsyncIterator[Starlette]:
    """A relay that delivers while the body runs, and finishes what is in hand after it.

    Args:
        settings: the configuration.
        clock: unix seconds.

    Yields:
        The application; its `state.stop_intake` makes every webhook a 503 from then on.

    Raises:
        StartError: the database cannot be used.
    """
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(opened(settings.database, clock))
        except StoreUnusableError as error:
            raise StartError(str(error)) from None
        await asyncio.to_thread(_warn_of_orphans, settings, store)
        metrics_registry = registry()
        metrics = Metrics(metrics_registry, settings.channels, _OUTCOMES, Reason)
        for name in await _refused(store):
            if name in settings.channels:
                metrics.channel_up(name, up=False)
        metrics_registry.register(OutboxGauges(settings.channels, query.COUNTED, OPEN, lambda: _counted(store)))
        workers = await stack.enter_async_context(_delivering(settings, store, metrics))

        def accepted(channels: Iterable[str]) -> None:
            for name in channels:
                workers[name].wake()

        intake = Intake(store, SecretFile(settings.auth.bearer_token_file), _rules(settings), metrics, accepted)
        admin = SecretFile(settings.auth.admin_token_file) if settings.auth.admin_token_file else None
        app = application(
            "keypulse relay",
            metrics_registry,
            [Route("/alerts", intake.post, methods=["POST"]), *api.routes(store, admin)],
            admin=admin,
            not_ready=lambda: store.problem and f"the outbox cannot commit: {store.problem}",
        )
        app.state.stop_intake = intake.stop
        yield app


async def serve(settings: RelaySettings) -> None:
    """Runs the relay until SIGTERM. Raises StartError."""
    async with running(settings) as app:
        await serve_until_stopped(app, settings.listen, app.state.stop_intake)


async def send_test(settings: RelaySettings, name: str) -> list[Receipt]:
    """Sends a test page and its all-clear on one channel, past the outbox; gives both receipts. Raises SendError."""
    timeout = settings.delivery.timeout
    channel = settings.channels[name].connect(timeout)
    try:
        async with asyncio.timeout(2 * timeout):
            page = trial(datetime.now(UTC), _link_rules(settings))
            receipt = await channel.send(page)
            return [receipt, await channel.send(trial_over(page, receipt, datetime.now(UTC)))]
    except TimeoutError:
        raise SendError(Reason.TIMEOUT, Scope.ATTEMPT, f"no answer within {2 * timeout:g} s") from None
    finally:
        await _close(name, channel)


@asynccontextmanager
async def _delivering(settings: RelaySettings, store: Store, metrics: Metrics) -> AsyncIterator[Mapping[str, Worker]]:
    """A worker for each channel; at the end they finish what is in hand, within the grace period."""
    delivery = settings.delivery
    shared = Delivering(
        store=store,
        metrics=metrics,
        links=_link_rules(settings),
        retry=RetryPolicy(delivery.backoff_initial, delivery.backoff_max, delivery.give_up_after),
        timeout=delivery.timeout,
        lease=delivery.lease,
        owner=uuid4().hex,
        random=random.random,
    )
    channels = {name: channel.connect(delivery.timeout) for name, channel in settings.channels.items()}
    workers = {name: Worker(name, channel, shared) for name, channel in channels.items()}
    tasks = [asyncio.create_task(worker.run(), name=f"deliver {name}") for name, worker in workers.items()]
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.stop()
        _, late = await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await give_back(store, shared.owner)
        except StoreUnavailableError as error:
            log.warning("claims return when their lease ends", problem=str(error))
        await asyncio.gather(*(_close(name, channel) for name, channel in channels.items()))


async def _close(name: str, channel: Channel) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await channel.close()
    except Exception as error:  # noqa: BLE001  # whatever it is, the stop goes on
        log.error(  # noqa: TRY400  # without the exception's text, which may hold a secret
            "a channel could not be closed", channel=name, **defect(error)
        )


def _link_rules(settings: RelaySettings) -> LinkRules:
    return LinkRules(settings.links.runbook, settings.links.dashboard, frozenset(settings.links.allow_hosts))


def _rules(settings: RelaySettings) -> Rules:
    return Rules(
        allow_from=settings.auth.allow_from,
        routes=[Rule(route.receiver, route.matchers, route.channels) for route in settings.routes],
        default_channels=settings.default_channels,
        channels=frozenset(settings.channels),
        duplicate_window=settings.delivery.duplicate_window,
    )


def _counted(store: Store) -> list[tuple[str, str, int, float]] | None:
    try:
        counts = query.counts(store, _COUNT_SECONDS)
    except (StoreUnavailableError, TimeoutError) as error:
        log.warning("the outbox could not be counted for this scrape", problem=str(error))
        return None
    return [(count.channel, count.state, count.deliveries, count.oldest) for count in counts]


async def _refused(store: Store) -> set[str]:
    """The channels that refused everything when the relay stopped, as far as can be told."""
    try:
        return await query.refused(store, (Reason.UNAUTHORIZED, Reason.MISCONFIGURED))
    except StoreUnavailableError as error:
        log.warning("which channels are refused is not known before their next attempt", problem=str(error))
        return set()


def _warn_of_orphans(settings: RelaySettings, store: Store) -> None:
    for channel, state, deliveries, _ in _counted(store) or []:
        if channel not in settings.channels and state in OPEN:
            log.warning(
                "deliveries wait for a channel that is no longer configured", channel=channel, deliveries=deliveries
            )
