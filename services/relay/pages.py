"""The routes of the console: pages and JSON API."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from services.relay.acknowledgement.pages import AcknowledgePages
from services.relay.apis import ExporterHistory
from services.relay.audit.pages import AuditPages
from services.relay.channel_health.checks import ChannelActions, ChannelChecker
from services.relay.channel_health.pages import ChannelsEndpoint, ChannelsPages, list_configured_channels
from services.relay.config import RelaySettings
from services.relay.console.frame import ChangeStream, PageRenderer
from services.relay.deliveries.pages import DeliveriesEndpoint, DeliveriesPages, DeliveryActions
from services.relay.deliveries.retries import ACTION
from services.relay.incidents.pages import IncidentPages, IncidentsEndpoint
from services.relay.incidents.post_mortem import IncidentReader
from services.relay.login.pages import LoginPages
from services.relay.login.sessions import LoginService
from services.relay.metrics import Metrics
from services.relay.now.lights import PathWatch
from services.relay.now.page import NowPages
from services.relay.outbox.store import Store, StoreUnavailableError
from services.relay.preview.pages import RenderPages
from services.relay.preview.render import WebhookRenderer
from services.relay.quarantine.pages import QuarantineEndpoint, QuarantinePages
from services.relay.quarantine.replay import Replays
from services.relay.report.pages import ReportEndpoint, ReportPages
from services.relay.report.report import ReportReader
from services.relay.routes.alertmanager import AlertmanagerTrees
from services.relay.routes.explanation import RouteExplainer
from services.relay.routes.pages import RoutesEndpoint, RoutesPages
from shared.config.server_settings import Role
from shared.http.access import Endpoint, ProtectedRoute, RouteRequirements
from shared.http.json_api import build_error_response


@dataclass(frozen=True, slots=True)
class ConsoleParts:
    """What the console shows and acts on."""

    store: Store
    settings: RelaySettings
    wake_channels: Callable[[Iterable[str]], None]
    """Called with the channels that have something new to deliver."""
    metrics: Metrics
    changes: ChangeStream
    """Tells pages that the outbox has changed."""
    path: PathWatch
    """The lights of the path of an alert."""
    checker: ChannelChecker
    replays: Replays
    """Accepts quarantined webhooks after all."""
    wake_silences: Callable[[], None] | None
    """Called when a silence waits; None without an Alertmanager."""
    exporter: ExporterHistory
    """Knows the faults behind incidents."""
    login: LoginService


def build_routes(parts: ConsoleParts, renderer: PageRenderer) -> list[ProtectedRoute]:
    """The routes of pages and API."""
    store, settings = parts.store, parts.settings
    channels = list_configured_channels(settings)
    reports = ReportReader(store, frozenset(settings.channels), settings.messages.zone)
    explainer = RouteExplainer(settings, AlertmanagerTrees(settings.alertmanager))
    reader = IncidentReader(store, parts.exporter, settings.link_rules)
    actions = ChannelActions(store, settings, parts.checker, parts.wake_channels)
    delivery_actions = DeliveryActions(store, settings.channels, parts.wake_channels, parts.metrics)
    api = _Api(
        channels=ChannelsEndpoint(store, channels, actions),
        deliveries=DeliveriesEndpoint(store, delivery_actions),
        incidents=IncidentsEndpoint(store, reader, settings.acknowledging_channels, parts.wake_channels, parts.metrics),
        quarantine=QuarantineEndpoint(store, parts.replays),
        report=ReportEndpoint(reports),
    )
    return [
        *_build_api_routes(api),
        *RoutesEndpoint(explainer).build_routes(),
        *renderer.build_routes(),
        *parts.changes.build_routes(),
        *NowPages(store, renderer, settings, parts.path, parts.changes).build_routes(),
        *IncidentPages(
            store, renderer, reader, settings, parts.wake_channels, parts.wake_silences, parts.metrics
        ).build_routes(),
        *DeliveriesPages(store, settings, renderer, delivery_actions, parts.changes).build_routes(),
        *ChannelsPages(store, renderer, channels, actions).build_routes(),
        *RoutesPages(explainer, settings, renderer).build_routes(),
        *ReportPages(reports, renderer, settings.messages.timezone).build_routes(),
        *QuarantinePages(store, renderer, delivery_actions, parts.replays).build_routes(),
        *RenderPages(store, renderer, WebhookRenderer(settings)).build_routes(),
        *LoginPages(parts.login, renderer).build_routes(),
        *AcknowledgePages(
            store, renderer, settings, parts.login.authorizer, parts.wake_channels, parts.metrics
        ).build_routes(),
        *AuditPages(store, parts.login.authorizer.audit_log, renderer).build_routes(),
    ]


class _Api(NamedTuple):
    channels: ChannelsEndpoint
    deliveries: DeliveriesEndpoint
    incidents: IncidentsEndpoint
    quarantine: QuarantineEndpoint
    report: ReportEndpoint


def _build_api_routes(api: _Api) -> list[ProtectedRoute]:
    def route(path: str, endpoint: Endpoint, needs: Role, action: str | None = None) -> ProtectedRoute:
        methods = ["GET"] if action is None else ["POST"]
        return ProtectedRoute(
            path, _respond_503_when_unavailable(endpoint), RouteRequirements(needs, action=action), methods
        )

    return [
        route("/api/channels", api.channels.list, Role.VIEWER),
        route("/api/channels/{name}/check", api.channels.check, Role.RESPONDER, "check channel"),
        route("/api/channels/{name}/test", api.channels.test, Role.RESPONDER, "test channel"),
        route("/api/deliveries", api.deliveries.list, Role.VIEWER),
        route("/api/deliveries/retry", api.deliveries.retry_all, Role.ADMIN, "retry all"),
        route("/api/deliveries/{id}", api.deliveries.get, Role.VIEWER),
        route("/api/deliveries/{id}/retry", api.deliveries.retry, Role.RESPONDER, "retry"),
        route("/api/deliveries/{id}/send", api.deliveries.send, Role.RESPONDER, ACTION),
        route("/api/incidents", api.incidents.list, Role.VIEWER),
        route("/api/incidents/{id}", api.incidents.get, Role.VIEWER),
        route("/api/incidents/{id}/acknowledge", api.incidents.acknowledge, Role.RESPONDER, "acknowledge"),
        route("/api/incidents/{id}/unacknowledge", api.incidents.unacknowledge, Role.RESPONDER, "unacknowledge"),
        route("/api/report", api.report.get, Role.VIEWER),
        route("/api/quarantine", api.quarantine.list, Role.VIEWER),
        route("/api/quarantine/{id}", api.quarantine.get_body, Role.ADMIN),  # it may contain misdirected secrets
        route("/api/quarantine/{id}/replay", api.quarantine.replay, Role.ADMIN, "replay"),
    ]


def _respond_503_when_unavailable(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except StoreUnavailableError as error:
            return build_error_response(503, f"the outbox cannot be used now, try again: {error}")

    return answer
