"""Pages for links to Prometheus and Alertmanager, whose Debian packages have no web UI.

Debian's Prometheus has a graph at `/classic/graph` only, its Alertmanager no page at all. So the demo's Prometheus and
Alertmanager have this server as their `--web.external-url`; it redirects to that graph, and shows the alerts of
Alertmanager's API.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

import aiohttp
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from ops.demo.stand_ins.pages import build_page
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements

_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_GRAPHS: Final = ("/classic/graph", "/graph")
"""Debian's answers the second with an explanation; upstream's since version 3 has only the second."""


class MonitoringLinks:
    """The routes.

    Args:
        prometheus: its URL, or None.
        alertmanager: likewise.
        headers: of every page.
    """

    def __init__(self, prometheus: str | None, alertmanager: str | None, headers: Mapping[str, str]) -> None:
        self._prometheus = prometheus
        self._alertmanager = alertmanager
        self._headers = headers

    def build_routes(self) -> list[ProtectedRoute]:
        """As Prometheus and Alertmanager write them into alerts and webhooks."""
        page = RouteRequirements(Role.VIEWER, allows_cross_site_link=True)
        return [
            *([ProtectedRoute("/graph", self.redirect_to_graph, page)] if self._prometheus else []),
            *([ProtectedRoute("/alertmanager/", self.show_alerts, page)] if self._alertmanager else []),
        ]

    async def redirect_to_graph(self, request: Request) -> Response:
        """Redirect to Prometheus's graph of the query."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
            for path in _GRAPHS:
                try:
                    async with http.get(f"{self._prometheus}{path}", allow_redirects=False) as answer:
                        if answer.status != 404:
                            return RedirectResponse(f"{self._prometheus}{path}?{request.url.query}", status_code=302)
                except (aiohttp.ClientError, TimeoutError) as error:
                    return self._build_error("Prometheus", error)
        return self._build_error("Prometheus", "it has no graph")

    async def show_alerts(self, _request: Request) -> Response:
        """Show Alertmanager's alerts."""
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT) as http,
                http.get(f"{self._alertmanager}/api/v2/alerts") as answer,
            ):
                found = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return self._build_error("Alertmanager", error)
        return HTMLResponse(build_page("Alerts in Alertmanager", "".join(_build_table(found))), headers=self._headers)

    def _build_error(self, server: str, error: object) -> Response:
        return PlainTextResponse(f"{server} gives no answer: {error!r}\n", status_code=502, headers=self._headers)


def _build_table(alerts: list[dict[str, Any]]) -> Iterator[str]:
    """Sort notified alerts before silenced and inhibited ones, then by name."""
    names = {alert["fingerprint"]: alert["labels"]["alertname"] for alert in alerts}
    yield "<h1>Alerts in Alertmanager</h1>\n"
    if not alerts:
        yield "<p>None: nothing fires.</p>\n"
        return
    yield "<table><thead><tr><th>alert</th><th>goes to</th><th>state</th><th>since</th><th>labels</th></tr></thead>\n"
    for alert in sorted(alerts, key=lambda one: (bool(_describe_mute(one, names)), one["labels"]["alertname"])):
        labels = ", ".join(f"{name}={value}" for name, value in sorted(alert["labels"].items()) if name != "alertname")
        cells = (
            alert["labels"]["alertname"],
            ", ".join(receiver["name"] for receiver in alert["receivers"]),
            _describe_mute(alert, names) or "fires",
            alert["startsAt"],
            labels,
        )
        yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>\n"
    yield "</table>\n"


def _describe_mute(alert: dict[str, Any], names: Mapping[str, str]) -> str:
    """Return why an alert is not notified; empty if it is."""
    status = alert["status"]
    by = sorted(names.get(cause, cause) for cause in status["inhibitedBy"])
    return "silenced" if status["silencedBy"] else f"inhibited by {', '.join(by)}" if by else ""
