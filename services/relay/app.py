"""The relay's composition root: the only module that imports all the others."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from starlette.applications import Starlette

from services.relay.acknowledgement.pages import AcknowledgePages
from services.relay.acknowledgement.presses import run_presses
from services.relay.acknowledgement.store import Acknowledging
from services.relay.apis import ExporterHistory
from services.relay.audit.pages import AuditPages
from services.relay.channel_health.checks import ChannelChecks
from services.relay.channel_health.pages import ChannelsPages
from services.relay.channel_health.store import prune_checks
from services.relay.config import RelayAuthSettings, RelaySettings
from services.relay.console.frame import ChangeStream, Console
from services.relay.deliveries.pages import DeliveriesPages
from services.relay.deliveries.queries import count_deliveries
from services.relay.delivery.acknowledge_link import PATH
from services.relay.delivery.attempt import OpenSender
from services.relay.delivery.sender_process import open_sender_process
from services.relay.delivery.worker import run_delivery
from services.relay.incidents.pages import IncidentPages
from services.relay.incidents.post_mortem import IncidentReader
from services.relay.intake.acceptance import Acceptance
from services.relay.intake.endpoint import ADMISSION_SECONDS, MAX_CONCURRENT_WEBHOOKS, Intake
from services.relay.login.pages import LoginPages
from services.relay.login.sessions import open_login, prune_sessions
from services.relay.metrics import Metrics, OutboxGauges, OutboxState
from services.relay.monitors.self_alerts import AlertPublisher
from services.relay.monitors.supervisor import Monitors, run_forever
from services.relay.monitors.watchdog import IntakeUptime
from services.relay.now.lights import PathWatch
from services.relay.now.overview import count_open_incidents
from services.relay.now.page import NowPages
from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.heartbeats import read_last_seen
from services.relay.outbox.proofs import prune_proofs, read_times
from services.relay.outbox.retention import ByteLimit, run_retention
from services.relay.outbox.store import Store, StoreUnavailableError, StoreUnusableError, open_store
from services.relay.outbox.tables import CHANNELS, UNFINISHED
from services.relay.preview.pages import RenderPages
from services.relay.preview.render import WebhookRenderer
from services.relay.proofs.pages import ProofPages
from services.relay.quarantine.pages import QuarantinePages
from services.relay.quarantine.replay import Replays
from services.relay.report.pages import ReportPages
from services.relay.report.report import ReportReader
from services.relay.routes.alertmanager import AlertmanagerTrees
from services.relay.routes.explanation import RouteExplainer
from services.relay.routes.pages import RoutesPages
from services.relay.silences.store import prune_silences
from services.relay.silences.worker import run_silences
from shared.config.secret_file import TokenFile
from shared.config.server_settings import Role
from shared.credentials import Credentials
from shared.http.access import Authorizer, ProtectedRoute, RouteRequirements
from shared.http.authentication import AccessPolicy, Token, create_access_policy
from shared.http.limits import AdmissionQueue
from shared.http.server import StartError, create_application, create_registry
from shared.process.concurrency import run_beside
from shared.process.server import ReloadableApp, ServerRunner

SELF_AUTHENTICATED_PATHS: Final = ("/alerts", "/login", "/login/", "/logout", "/console/", PATH)
"""Paths that need no user of web.yml: sender and mail have a secret, and who logs in needs a page and its styles."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def run_relay(
    settings: RelaySettings,
    *,
    clock: Callable[[], float] = time.time,
    open_sender: OpenSender = open_sender_process,
    get_server_credentials: Callable[[], Credentials] = dict,
) -> AsyncIterator[Starlette]:
    """A relay that delivers while the body runs, and then finishes what it sends.

    Yields:
        The application. Its `state.stop` answers every further webhook 503, and limits the wait for the outbox; its
        `state.apply` applies other settings, the database excepted.

    Raises:
        StartError: the database cannot be used.
    """
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(open_store(settings.database, clock, settings.unmerged_channels))
        except StoreUnusableError as error:
            raise StartError(str(error)) from None
        registry, uptime = create_registry(), IntakeUptime(time.monotonic)
        authorizer = Authorizer(registry, OutboxAudit(store), clock=clock)
        metrics = Metrics(registry, get_server_credentials=get_server_credentials)
        limit = ByteLimit()
        metrics.set_size_functions(lambda: limit.used_bytes, lambda: limit.max_bytes)
        gauges = OutboxGauges(lambda: read_outbox_state(store))
        registry.register(gauges)

        previous: RelaySettings | None = None

        @asynccontextmanager
        async def start_app(settings: RelaySettings) -> AsyncIterator[Starlette]:
            nonlocal previous
            changed = None if previous is None else find_changed_channels(previous, settings)
            previous = settings
            store.unmerged_channels = settings.unmerged_channels
            metrics.set_channels(settings.channels, settings.proof.every)
            gauges.set_configuration(
                settings.channels, frozenset(each.name for each in settings.watchdogs), settings.proven_channels
            )
            await asyncio.to_thread(warn_of_unserved_deliveries, settings, store)
            limit.max_bytes = settings.retention.max_bytes
            bearer, changes = TokenFile(settings.auth.bearer_token_file), ChangeStream(store, metrics)
            path = PathWatch(
                settings, store, metrics, limit, lambda: describe_unusable_token(bearer), on_answer=changes.touch
            )
            async with AsyncExitStack() as parts:
                login = await parts.enter_async_context(open_login(settings, store, authorizer))
                intake, wake, acknowledging, wake_silences = await parts.enter_async_context(
                    run_intake_and_delivery(settings, store, metrics, limit, uptime, path.watch_sender(open_sender))
                )
                exporter = await parts.enter_async_context(open_exporter_history(settings))
                checks = ChannelChecks(store, settings, wake, changed)
                for part in (path.run(), changes.run(), run_beside(run_forever("channel checks", checks.check_next))):
                    await parts.enter_async_context(part)
                replays = Replays(intake.acceptance)
                console = Console(store.clock, settings.page_links, changes)
                reports = ReportReader(
                    store, frozenset(settings.channels), settings.messages.zone, settings.proof.every
                )
                incidents = IncidentReader(store, exporter, settings.link_rules)
                deliveries = DeliveriesPages(store, settings, wake, metrics)
                webhooks = WebhookRenderer(settings)
                parts.push_async_callback(webhooks.close)
                for pages in (  # in the order of the navigation
                    NowPages(store, settings, path, changes),
                    IncidentPages(store, incidents, settings, acknowledging, wake_silences),
                    deliveries,
                    QuarantinePages(store, deliveries, replays),
                    ChannelsPages(store, settings, checks),
                    ProofPages(store, settings),
                    RoutesPages(RouteExplainer(settings, AlertmanagerTrees(settings.alertmanager)), settings),
                    ReportPages(reports, settings.messages.timezone),
                    AuditPages(store, authorizer.audit_log),
                    RenderPages(store, webhooks),
                    LoginPages(login),
                    AcknowledgePages(store, settings, authorizer, acknowledging),
                ):
                    pages.add_routes(console)
                app = create_application(
                    "keypulse relay",
                    registry,
                    [
                        ProtectedRoute(
                            "/alerts", intake.handle_post, build_sender_access(settings.auth, bearer, metrics), ["POST"]
                        ),
                        *console.routes,
                    ],
                    authorizer=authorizer,
                    access_policy=create_access_policy(settings.auth),
                    get_unready_reason=lambda: (
                        reloadable.error
                        or (store.error and f"the outbox cannot commit: {store.error}")
                        or describe_unusable_token(bearer)
                    ),
                    handle_missing=console.show_missing,
                )

                def stop() -> None:
                    intake.stop()
                    changes.stop()
                    store.stop()

                app.state.stop = stop
                yield app

        reloadable = ReloadableApp(start_app)
        app = await stack.enter_async_context(reloadable.run(settings))
        app.state.apply = reloadable.apply
        yield app


async def serve(runner: ServerRunner[RelaySettings], clock: Callable[[], float] = time.time) -> None:
    """Runs the relay until SIGTERM. Raises StartError."""
    # Objects that exist by now stay until the end; collecting them repeatedly took a seventh of the time of a storm.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    async with run_relay(runner.settings, clock=clock, get_server_credentials=runner.get_credentials) as app:
        await runner.serve(
            app,
            app.state.apply,
            restart_keys=("listen", "database"),
            self_authenticated_paths=SELF_AUTHENTICATED_PATHS,
            on_stop=lambda: app.state.stop(),  # noqa: PLW0108 - the one of the settings that apply by then
            admission_queue=AdmissionQueue(b"POST /alerts", MAX_CONCURRENT_WEBHOOKS, ADMISSION_SECONDS),
        )


@asynccontextmanager
async def run_intake_and_delivery(
    settings: RelaySettings,
    store: Store,
    metrics: Metrics,
    byte_limit: ByteLimit,
    uptime: IntakeUptime,
    open_sender: OpenSender,
) -> AsyncIterator[tuple[Intake, Callable[[Iterable[str]], None], Acknowledging, Callable[[], None] | None]]:
    """Runs delivery, monitors and retention while the body runs.

    Yields:
        The intake; what wakes channels; what acknowledges; what wakes silences, None without an Alertmanager.
    """
    async with run_delivery(settings, store, metrics, open_sender) as wake:
        monitors = Monitors(AlertPublisher(store, metrics, settings, wake), uptime)
        acknowledging = Acknowledging(store, settings.acknowledging_channels, metrics, wake)
        retention = run_retention(
            store,
            settings.retention.max_age,
            settings.retention.max_deliveries,
            byte_limit,
            pruners=(prune_sessions, prune_silences, prune_checks, prune_proofs),
            min_age=settings.delivery.duplicate_window,
        )
        async with (
            run_beside(monitors.run(), retention),
            run_silences(settings, store) as wake_silences,
            run_presses(settings, store, metrics, acknowledging, wake_silences),
        ):
            acceptance = Acceptance(store, settings, metrics, wake, byte_limit)
            intake = Intake(acceptance, metrics, monitors.record_heartbeats)
            yield intake, wake, acknowledging, wake_silences


@asynccontextmanager
async def open_exporter_history(settings: RelaySettings) -> AsyncIterator[ExporterHistory]:
    """What reads the exporter's history of failures, where `messages.board_url` names one."""
    messages = settings.messages
    exporter = ExporterHistory(messages.board_url, messages.board_token_file, messages.egress)
    try:
        yield exporter
    finally:
        await exporter.close()


def build_sender_access(auth: RelayAuthSettings, bearer_token: TokenFile, metrics: Metrics) -> RouteRequirements:
    """Who may send alerts: the holder of the bearer token, or a user of web.yml who is a responder at least."""
    sender = Token("sender", Role.RESPONDER, bearer_token)
    access = AccessPolicy([sender], auth.roles, auth.allow_from, tokens_setting="auth.bearer_token_file")
    return RouteRequirements(Role.RESPONDER, access_policy=access, on_refusal=metrics.count_webhook)


def describe_unusable_token(bearer_token: TokenFile) -> str | None:
    """Why nobody may send alerts, or None."""
    problem = bearer_token.error
    return problem and f"auth.bearer_token_file cannot be used, and every webhook is answered 503: {problem}"


def find_changed_channels(before: RelaySettings, after: RelaySettings) -> list[str]:
    """The channels that are new, or have other settings than before."""
    return [name for name, channel in after.channels.items() if channel != before.channels.get(name)]


def read_outbox_state(store: Store) -> OutboxState | None:
    """What the gauges show; None if the outbox cannot be read or cannot commit."""
    if store.error is not None:
        return None  # values that can still be read would hide that nothing is committed
    try:
        return store.read_blocking(
            lambda connection: OutboxState(
                count_deliveries(connection),
                {each.name for each in CHANNELS.fetch_all(connection) if each.is_down},
                read_last_seen(connection),
                count_open_incidents(connection),
                read_times(connection),
            )
        )
    except StoreUnavailableError as error:
        log.warning("outbox metrics are missing from this scrape", error=str(error))
        return None


def warn_of_unserved_deliveries(settings: RelaySettings, store: Store) -> None:
    """Logs a warning for each channel that has unfinished deliveries and is not configured."""
    state = read_outbox_state(store)
    for channel, each, deliveries, _ in state.counts if state else ():
        if channel not in settings.channels and each in UNFINISHED:
            log.warning("deliveries wait for a channel that is not configured", channel=channel, deliveries=deliveries)
