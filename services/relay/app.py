"""The relay put together: the only room that knows all the others."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from starlette.applications import Starlette

from services.relay.channels.channel import Reason, Receipt, Scope, SendError
from services.relay.config import Auth, RelaySettings
from services.relay.console import api
from services.relay.delivery.trial import TrialAttempt, trial, trial_over
from services.relay.intake.endpoint import TURN_SECONDS, TURNS, Intake, Rules
from services.relay.intake.heartbeat import Heartbeat
from services.relay.intake.routing import Rule, first_match
from services.relay.metrics import Metrics, OutboxGauges, OutboxState
from services.relay.model import Event
from services.relay.outbox import query
from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.byte_limit import ByteLimit
from services.relay.outbox.prune import pruning
from services.relay.outbox.schema import COUNTED, OPEN, State
from services.relay.outbox.store import Store, StoreUnusableError, opened
from services.relay.outbox.waiting import StoreUnavailableError
from services.relay.outbox.watchdogs import last_seen
from services.relay.sending.apart import apart
from services.relay.sending.here import close
from services.relay.sending.outgoing import Sending
from services.relay.watch.telling import Teller
from services.relay.watch.watchdog import Able, Watchdog
from services.relay.watch.watching import Watched, Watching
from services.relay.workers import delivering, link_rules
from shared.auth import Access, Token, access_of
from shared.generations import Generations
from shared.guard import Guard, GuardedRoute, Requires
from shared.launch import Launch
from shared.secret_file import TokenFile
from shared.server import StartError, application, registry
from shared.settings import Role
from shared.turns import Turns

_OUTCOMES: Final = (State.DELIVERED, State.SUPERSEDED, State.DEAD)

log = structlog.get_logger(__name__)


@asynccontextmanager
async def running(
    settings: RelaySettings, *, clock: Callable[[], float] = time.time, sending: Sending = apart
) -> AsyncIterator[Starlette]:
    """A relay that delivers while the body runs, and finishes what is in hand after it.

    Args:
        settings: the configuration.
        clock: unix seconds.
        sending: what sends.

    Yields:
        The application; its `state.stop` makes every webhook a 503 from then on, and bounds the wait for the outbox,
        and `state.apply` makes what runs what other settings say, but for the database.

    Raises:
        StartError: the database cannot be used.
    """
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(opened(settings.database, clock, settings.unmerged))
        except StoreUnusableError as error:
            raise StartError(str(error)) from None
        shown, able = registry(), Able(time.monotonic)
        guard = Guard(shown, OutboxAudit(store), clock=clock)
        metrics = Metrics(shown, (), _OUTCOMES, Reason)
        limit = ByteLimit()
        metrics.show_bytes(lambda: limit.used, lambda: limit.most)
        gauges = OutboxGauges((), (), COUNTED, OPEN, lambda: _outbox_state(store))
        shown.register(gauges)

        @asynccontextmanager
        async def generation(settings: RelaySettings) -> AsyncIterator[Starlette]:
            store.tell_alone(settings.unmerged)
            metrics.show(settings.channels)
            gauges.show(settings.channels, frozenset(watchdog.name for watchdog in settings.watchdogs))
            await asyncio.to_thread(_warn_of_orphans, settings, store)
            limit.most = settings.retention.max_bytes
            bearer = TokenFile(settings.auth.bearer_token_file)
            async with _working(settings, store, metrics, limit, able, sending) as (intake, wake):
                app = application(
                    "keypulse relay",
                    shown,
                    [
                        GuardedRoute("/alerts", intake.post, _sending(settings.auth, bearer, metrics), ["POST"]),
                        *api.routes(store, settings.channels, wake),
                    ],
                    guard=guard,
                    access=access_of(settings.auth),
                    not_ready=lambda: (
                        generations.problem
                        or (store.problem and f"the outbox cannot commit: {store.problem}")
                        or _unusable(bearer)
                    ),
                )

                def stop() -> None:
                    intake.stop()
                    store.stop()

                app.state.stop = stop
                yield app

        generations = Generations(generation)
        app = await stack.enter_async_context(generations.running(settings))
        app.state.apply = generations.apply
        yield app


async def serve(launch: Launch[RelaySettings]) -> None:
    """Runs the relay until SIGTERM. Raises StartError."""
    # What is there by now stays, and looking for cycles in it again and again took a seventh of the time of a storm.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    async with running(launch.settings) as app:
        await launch.serve(
            app,
            app.state.apply,
            restart=("listen", "database"),
            own_credentials=("/alerts",),
            stopping=lambda: app.state.stop(),  # noqa: PLW0108 - the one of the generation that runs by then
            turns=Turns(b"POST /alerts", TURNS, TURN_SECONDS),
        )


async def send_test(settings: RelaySettings, name: str) -> list[Receipt]:
    """Sends a test page and its all-clear on one channel, past the outbox; gives both receipts. Raises SendError."""
    timeout = settings.delivery.timeout
    channel = settings.channels[name].connect(timeout)
    try:
        async with asyncio.timeout(2 * timeout):
            page = trial(datetime.now(UTC), link_rules(settings))
            receipt = await channel.send(TrialAttempt(page))
            return [receipt, await channel.send(TrialAttempt(trial_over(page, receipt, datetime.now(UTC))))]
    except TimeoutError:
        raise SendError(Reason.TIMEOUT, Scope.ATTEMPT, f"no answer within {2 * timeout:g} s") from None
    finally:
        await close(name, channel)


@asynccontextmanager
async def _working(
    settings: RelaySettings, store: Store, metrics: Metrics, limit: ByteLimit, able: Able, sending: Sending
) -> AsyncIterator[tuple[Intake, Callable[[Iterable[str]], None]]]:
    """Takes in, delivers and watches while the body runs; gives the intake, and what wakes channels."""
    async with delivering(settings, store, metrics, sending) as wake:
        rules = _rules(settings)

        def route(event: Event) -> Sequence[str]:
            place = first_match(event, rules.routes)
            return rules.default_channels if place is None else rules.routes[place].channels

        watching = Watching(Teller(store, metrics, settings.channels, wake, route), _watched(settings), able)
        retention, young = settings.retention, settings.delivery.duplicate_window
        kept = pruning(store, retention.max_age, retention.max_deliveries, limit, young=young)
        async with _beside(watching.run(), kept):
            yield Intake(store, rules, metrics, wake, watching.heartbeat, limit), wake


@asynccontextmanager
async def _beside(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Loops that run while the body does."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _sending(auth: Auth, bearer: TokenFile, metrics: Metrics) -> Requires:
    """Who may send alerts: the holder of the bearer token, or a user of web.yml who is a responder at least."""
    sender = Token("sender", Role.RESPONDER, bearer)
    access = Access([sender], auth.roles, auth.allow_from)
    return Requires(Role.RESPONDER, access=access, refused=metrics.webhook)


def _unusable(bearer: TokenFile) -> str | None:
    """Why nobody may send alerts, or None."""
    problem = bearer.problem
    return problem and f"auth.bearer_token_file cannot be used, and every webhook is answered 503: {problem}"


def _rules(settings: RelaySettings) -> Rules:
    return Rules(
        routes=[Rule(route.receiver, route.matchers, route.channels) for route in settings.routes],
        default_channels=settings.default_channels,
        channels=frozenset(settings.channels),
        duplicate_window=settings.delivery.duplicate_window,
        max_body=settings.intake.max_body,
        heartbeats=[Heartbeat(each.name, each.matchers) for each in settings.watchdogs],
    )


def _watched(settings: RelaySettings) -> Watched:
    watchdogs = [
        Watchdog(each.name, each.expect_every, each.channels, each.ping_url_file) for each in settings.watchdogs
    ]
    alertmanager = settings.alertmanager
    return Watched(watchdogs, settings.default_channels, alertmanager.urls, alertmanager.token_file)


def _outbox_state(store: Store) -> OutboxState | None:
    if store.problem is not None:
        return None  # what can still be read would hide that nothing is committed
    try:
        return store.read_blocking(
            lambda connection: OutboxState(
                [(each.channel, each.state, each.deliveries, each.oldest) for each in query.counts(connection)],
                {each.name for each in query.channels(connection) if each.refused},
                last_seen(connection),
            )
        )
    except StoreUnavailableError as error:
        log.warning("the outbox could not be counted for this scrape", problem=str(error))
        return None


def _warn_of_orphans(settings: RelaySettings, store: Store) -> None:
    state = _outbox_state(store)
    for channel, each, deliveries, _ in state.counts if state else ():
        if channel not in settings.channels and each in OPEN:
            log.warning(
                "deliveries wait for a channel that is no longer configured", channel=channel, deliveries=deliveries
            )
