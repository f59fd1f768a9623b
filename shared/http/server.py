"""What every HTTP server has: `/metrics`, `/-/healthy`, `/-/ready`, `/api/audit`, a start page, a graceful stop.

A stop first ends the accepting of connections, then waits up to `DRAIN_SECONDS` for requests in progress.
"""

import asyncio
import base64
import hashlib
import platform
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from html import escape
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shared import VERSION
from shared.check import HintedError
from shared.config.server_settings import Role
from shared.config.settings import Address
from shared.credentials import Credentials
from shared.http.access import SAFE_METHODS, Authorizer, ProtectedRoute, RouteRequirements, handle_audit_request
from shared.http.authentication import AccessPolicy
from shared.http.json_api import hide_paths
from shared.http.limits import READ_BYTES, AdmissionProtocol, AdmissionQueue, HttpProtocol, PieceReader, UnfinishedHeads

_LANDING_STYLE = """:root{color-scheme:light dark}
body{font:1rem/1.6 system-ui;margin:2rem auto;max-width:40rem;padding:0 1rem}"""
_LANDING_STYLE_HASH = base64.b64encode(hashlib.sha256(_LANDING_STYLE.encode()).digest()).decode()
_LANDING_POLICY = f"default-src 'none'; style-src 'sha256-{_LANDING_STYLE_HASH}'; frame-ancestors 'none'"
_LANDING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>
<meta name="viewport" content="width=device-width"><style>{style}</style>
<h1>{name}</h1><p>Version {version}.</p><ul>{items}</ul></html>
"""
DRAIN_SECONDS = 5.0
_DRAIN_POLL_SECONDS = 0.01


class StartError(HintedError):
    """The server cannot start."""


def create_registry() -> CollectorRegistry:
    """A registry of its own for a server: process metrics and `keypulse_build_info`, nothing else."""
    # A `_created` gauge beside each counter would double the series, and nothing reads them.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it without types
    metrics = CollectorRegistry()
    ProcessCollector(registry=metrics)
    build = Gauge("keypulse_build_info", "Version of keypulse; always 1.", ["version", "python"], registry=metrics)
    build.labels(VERSION, platform.python_version()).set(1)
    return metrics


class CredentialCollector(Collector):
    """Two gauges whose names begin with `prefix`; `read` gives all credentials at each scrape, and may block."""

    def __init__(self, prefix: str, registry: CollectorRegistry, read: Callable[[], Credentials]) -> None:
        self._prefix = f"{prefix}_credential"
        self._read = read
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        expiry = "Unix time at which a credential ends unless it is renewed; absent where that is not known."
        ends = GaugeMetricFamily(f"{self._prefix}_expiry_timestamp_seconds", expiry, labels=["credential"])
        lifetime = "From the beginning of a credential to its end."
        lifetimes = GaugeMetricFamily(f"{self._prefix}_lifetime_seconds", lifetime, labels=["credential"])
        for credential, validity in self._read().items():
            if validity:
                ends.add_metric([credential], validity.ends_at)
                lifetimes.add_metric([credential], validity.ends_at - validity.begins_at)
        yield from (ends, lifetimes)


def select_encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Return the encoder for the header `Accept`, and its content type; Prometheus's text for an invalid header."""
    try:
        return choose_encoder(accept)
    except TypeError:  # prometheus_client's answer to a version that is no number
        return generate_latest, CONTENT_TYPE_PLAIN_0_0_4


def create_application(  # noqa: PLR0913  (one keyword for each thing that a server may have of its own)
    name: str,
    metrics: CollectorRegistry,
    routes: Iterable[Route],
    *,
    authorizer: Authorizer | None = None,
    access_policy: AccessPolicy | None = None,
    get_unready_reason: Callable[[], str | None] = lambda: None,
    handle_metrics: Callable[[Request], Response] | None = None,
    handle_missing: Callable[[Request], Awaitable[Response]] | None = None,
) -> Starlette:
    """Build the application: the server's routes and those of every server.

    Args:
        name: the title of the page at `/`, unless `routes` has one.
        metrics: exposed at `/metrics`.
        routes: the server's own; a ProtectedRoute has its requirements, any other is for admins.
        authorizer: is the application's `state.authorizer`; None creates one.
        access_policy: None allows everybody on this machine.
        get_unready_reason: why the server cannot serve now, or None; the text of a 503 of `/-/ready`.
        handle_metrics: answers `/metrics` instead, if `metrics` takes long to encode; called off the event loop.
        handle_missing: answers a viewer's browser that asks for a path without a route; None gives it a line of text.
    """
    all_routes, authorizer, default_policy = (
        list(routes),
        authorizer or Authorizer(metrics),
        access_policy or AccessPolicy(),
    )

    def metrics_endpoint(request: Request) -> Response:  # not async: Starlette encodes it off the event loop
        encode, content_type = select_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics), headers={"content-type": content_type})

    async def healthy(_request: Request) -> Response:
        return PlainTextResponse("healthy\n")

    async def ready(_request: Request) -> Response:
        reason = get_unready_reason()
        return PlainTextResponse(f"{hide_paths(reason)}\n", status_code=503) if reason else PlainTextResponse("ready\n")

    async def landing(_request: Request) -> Response:
        routes = [route for route in [*common, *all_routes] if isinstance(route, Route) and "{" not in route.path]
        paths = sorted(route.path for route in routes if "GET" in (route.methods or ()))
        items = "".join(f'<li><a href="{escape(path)}">{escape(path)}</a>' for path in paths)
        html = _LANDING.format(name=escape(name), style=_LANDING_STYLE, version=escape(VERSION), items=items)
        return HTMLResponse(html, headers={"Content-Security-Policy": _LANDING_POLICY})

    async def actions(request: Request) -> Response:
        return await handle_audit_request(authorizer.audit_log, request)

    common = [
        ProtectedRoute("/metrics", handle_metrics or metrics_endpoint, RouteRequirements(None)),
        ProtectedRoute("/-/healthy", healthy, RouteRequirements(None, is_public=True)),
        ProtectedRoute("/-/ready", ready, RouteRequirements(None, is_public=True)),
        ProtectedRoute("/api/audit", actions, RouteRequirements(Role.VIEWER)),
    ]
    page = ProtectedRoute(
        "/", landing, RouteRequirements(Role.VIEWER, challenges_browser=True, allows_cross_site_link=True)
    )
    app = Starlette(
        routes=[authorizer.protect(route, lambda: default_policy) for route in (*all_routes, *common, page)]
    )
    app.router.redirect_slashes = False  # a redirect would repeat a forged `Host`
    if handle_missing is not None:
        missing = ProtectedRoute("/{path:path}", handle_missing, page.requirements)
        missing_app = authorizer.protect(missing, lambda: default_policy).app
        app.router.default = _choose_by_accept(missing_app, app.router.default)
    app.state.authorizer = authorizer
    return app


def _choose_by_accept(page: ASGIApp, other: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_navigation = (
            scope["type"] == "http"
            and scope["method"] in SAFE_METHODS
            and b"text/html" in dict(scope["headers"]).get(b"accept", b"")
        )
        await (page if is_navigation else other)(scope, receive, send)

    return answer


def bind_socket(address: Address) -> socket.socket:
    """Return a listening socket. Raises StartError if the address is taken or not of this machine."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # With an explicit protocol: only then does asyncio set TCP_NODELAY on accepted sockets, and without it the body
    # of an answer waits for the acknowledgement of its head, which a client may put off by 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((address.host, address.port))
        bound.listen()  # with SO_REUSEADDR, two may bind the same port; only one may listen
    except OSError as error:
        bound.close()
        raise StartError(
            f"cannot listen on {address}: {error.strerror}", "stop what listens there, or set another address"
        ) from None
    return bound


@asynccontextmanager
async def serve(
    app: ASGIApp, address: Address, tls: ssl.SSLContext | None = None, admission_queue: AdmissionQueue | None = None
) -> AsyncIterator[Address]:
    """Serve while the body runs, over TLS if there is a context; yield the real address (port 0 picks a free one)."""
    bases = (HttpProtocol,) if admission_queue is None else (AdmissionProtocol, HttpProtocol)
    protocol = type("Protocol", bases, {"queue": admission_queue, "unfinished_heads": UnfinishedHeads()})
    buffer = memoryview(bytearray(READ_BYTES))

    def create_protocol(**options: Any) -> PieceReader:
        return PieceReader(protocol(**options), buffer)

    with bind_socket(address) as bound:
        server = _Server(
            uvicorn.Config(
                app,
                http=create_protocol,  # type: ignore[arg-type]  # uvicorn calls what it takes for a class
                lifespan="off",
                ws="none",
                ssl_context_factory=(lambda _config, _default: tls) if tls else None,
                log_config=None,
                access_log=False,  # unread, and formatting a line for each request costs time
                server_header=False,
                proxy_headers=False,  # the caller is the peer: a header must not bypass `allow_from`
            )
        )
        task = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            await server.is_listening.wait()
            yield Address(*bound.getsockname()[:2])
        finally:
            server.stop()
            await task


class _Server(uvicorn.Server):
    """uvicorn's server with an event for its start, a stop without pauses, and without its signal handlers.

    uvicorn looks ten times a second whether to stop, and whether all is answered. Its signal handlers would raise the
    signal again after the stop, and kill the process.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()
        self._stop_requested = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stop_requested.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.is_listening.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # sets the header `Date`
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop_requested.wait(), 1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await asyncio.sleep(_DRAIN_POLL_SECONDS)  # connections that were just accepted
                while state.connections or state.tasks:  # noqa: ASYNC110  # uvicorn has no event for it
                    await asyncio.sleep(_DRAIN_POLL_SECONDS)
        for task in state.tasks:
            task.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
