"""The routes of the console: pages and JSON API."""

from collections.abc import Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response

from services.relay.config import RelaySettings
from services.relay.console.api.deliveries import DeliveriesEndpoint
from services.relay.console.api.incidents import IncidentsEndpoint
from services.relay.console.api.quarantine import QuarantineEndpoint
from services.relay.console.delivery_actions import DeliveryActions
from services.relay.console.events import ChangeStream
from services.relay.console.pages.deliveries import DeliveriesPages
from services.relay.console.pages.layout import PageRenderer
from services.relay.console.pages.now import NowPages
from services.relay.metrics import Metrics
from services.relay.outbox.engine.store import Store
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.outbox.sending_elsewhere import ACTION
from shared.config.server_settings import Role
from shared.http.authentication import Endpoint
from shared.http.authorization import ProtectedRoute, RouteRequirements
from shared.http.json_api import build_error_response


def build_routes(
    store: Store,
    settings: RelaySettings,
    wake_channels: Callable[[Iterable[str]], None],
    metrics: Metrics,
    changes: ChangeStream,
) -> list[ProtectedRoute]:
    """The routes of pages and API.

    Args:
        store: the outbox.
        settings: the configuration.
        wake_channels: called with the channels that have something new to deliver.
        metrics: counts acknowledgements.
        changes: tells pages that the outbox has changed.
    """
    renderer = PageRenderer(store.clock)
    actions = DeliveryActions(store, settings.channels, wake_channels, metrics)
    return [
        *_build_api_routes(store, settings, wake_channels, metrics, actions),
        *renderer.build_routes(),
        *changes.build_routes(),
        *NowPages(store, renderer).build_routes(),
        *DeliveriesPages(store, settings, renderer, actions).build_routes(),
    ]


def _build_api_routes(
    store: Store,
    settings: RelaySettings,
    wake_channels: Callable[[Iterable[str]], None],
    metrics: Metrics,
    actions: DeliveryActions,
) -> list[ProtectedRoute]:
    deliveries, quarantine = DeliveriesEndpoint(store, wake_channels, actions), QuarantineEndpoint(store)
    incidents = IncidentsEndpoint(store, settings.acknowledging_channels, wake_channels, metrics)

    def route(path: str, endpoint: Endpoint, needs: Role, action: str | None = None) -> ProtectedRoute:
        methods = ["GET"] if action is None else ["POST"]
        return ProtectedRoute(
            path, _respond_503_when_unavailable(endpoint), RouteRequirements(needs, action=action), methods
        )

    return [
        route("/api/deliveries", deliveries.list, Role.VIEWER),
        route("/api/deliveries/retry", deliveries.retry_all, Role.ADMIN, "retry all"),
        route("/api/deliveries/{id}", deliveries.get, Role.VIEWER),
        route("/api/deliveries/{id}/retry", deliveries.retry, Role.RESPONDER, "retry"),
        route("/api/deliveries/{id}/send", deliveries.send, Role.RESPONDER, ACTION),
        route("/api/incidents", incidents.list, Role.VIEWER),
        route("/api/incidents/{id}", incidents.get, Role.VIEWER),
        route("/api/incidents/{id}/acknowledge", incidents.acknowledge, Role.RESPONDER, "acknowledge"),
        route("/api/incidents/{id}/unacknowledge", incidents.unacknowledge, Role.RESPONDER, "unacknowledge"),
        route("/api/quarantine", quarantine.list, Role.VIEWER),
        route("/api/quarantine/{id}", quarantine.get_body, Role.ADMIN),  # it may contain misdirected secrets
    ]


def _respond_503_when_unavailable(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except StoreUnavailableError as error:
            return build_error_response(503, f"the outbox cannot be used now, try again: {error}")

    return answer
