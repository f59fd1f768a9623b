"""The page of the stand-ins: what arrived, drawn by the relay's own preview; documents; where links of alerts lead.

Debian's Prometheus has a graph at `/classic/graph` only, its Alertmanager no page at all. So the demo's Prometheus and
Alertmanager have this server as their `--web.external-url`: it redirects to that graph, and shows the alerts.
"""

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import aiohttp
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from ops.demo.stand_ins.control_api import KMS_ERRORS, Providers
from ops.demo.stand_ins.pagerduty import PagerDutyIncident
from ops.demo.stand_ins.slack.workspace import PEOPLE, SlackChannelState, SlackMessage
from services.relay.preview.render import MAIL_POLICY, MAIL_SANDBOX, render_message
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements
from shared.web.pages import SECURITY_HEADERS, SHARED_ASSETS, StaticFiles, create_templates

_FOLDER: Final = Path(__file__).parent / "page"
PAGE_HEADERS: Final = {
    **SECURITY_HEADERS,
    "Cache-Control": "no-cache",
    "Content-Security-Policy": f"{SECURITY_HEADERS['Content-Security-Policy']}; frame-src 'self'",
}
_MAIL_HEADERS: Final = {**SECURITY_HEADERS, "Content-Security-Policy": MAIL_POLICY}
_MOST: Final = 40
"""Messages of a channel, mails and incidents that the page shows, the newest; the API has all."""
_DISCS: Final = {"🔴": "red", "🟠": "orange", "🟡": "yellow", "🟢": "green", "🔵": "blue"}
"""Drawn, because a machine without a font of emojis shows boxes."""
_DOCUMENT: Final = re.compile(r"[\w.-]+(/[\w.-]+)*\.md")
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_GRAPHS: Final = ("/classic/graph", "/graph")
"""Debian's answers the second with an explanation; upstream's since version 3 has only the second."""


class StandInPages:
    """The routes of the page.

    Args:
        docs: the folder of the documents, or None.
        links: to the pages of keypulse, by their text.
        prometheus: its URL, or None.
        alertmanager: its URL, or None.
    """

    def __init__(
        self,
        providers: Providers,
        docs: Path | None,
        links: Mapping[str, str],
        prometheus: str | None,
        alertmanager: str | None,
    ) -> None:
        self._providers = providers
        self._docs = docs.resolve() if docs else None
        self._prometheus = prometheus
        self._alertmanager = alertmanager
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        self._templates = create_templates(
            [_FOLDER], {}, {"links": links, "people": PEOPLE, "names": providers.kms.labels, "sandbox": MAIL_SANDBOX}
        )
        self._files = StaticFiles(_FOLDER, SHARED_ASSETS)

    def build_routes(self) -> list[ProtectedRoute]:
        """The page at `/`, its files, mails, documents, and the addresses that alerts and webhooks name."""
        page = RouteRequirements(Role.VIEWER, allows_cross_site_link=True)
        return [
            ProtectedRoute("/", self._show_page, page),
            ProtectedRoute("/page/{name}", self._files.serve, RouteRequirements(Role.VIEWER)),
            ProtectedRoute("/mail/{number:int}", self._show_mail, page),
            ProtectedRoute("/docs/{path:path}", self._show_document, page),
            *([ProtectedRoute("/graph", self._redirect_to_graph, page)] if self._prometheus else []),
            *([ProtectedRoute("/alertmanager/", self._show_alerts, page)] if self._alertmanager else []),
        ]

    async def _show_page(self, request: Request) -> Response:
        """What arrived; 304 while nothing has changed, because an open page asks every second."""
        providers = self._providers
        try:
            broken = (await providers.kms.list_active())["broken"] or ""
            problem = ""
        except KMS_ERRORS as error:
            broken, problem = "unknown", str(error)
        etag = f'"{providers.changes.version}-{broken}"'
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={**PAGE_HEADERS, "ETag": etag})
        page = self._templates.get_template("page.html.j2").render(
            channels=[_arrange_channel(channel) for channel in providers.slack.channels.values()],
            mails=list(providers.mailbox.mails)[: -_MOST - 1 : -1],
            incidents=[_arrange_incident(each) for each in list(providers.pagerduty.incidents)[: -_MOST - 1 : -1]],
            changes=list(providers.pagerduty.change_events)[: -_MOST - 1 : -1],
            open_count=sum(each.status != "resolved" for each in providers.pagerduty.incidents),
            faults=providers.faults.get_state(),
            broken=broken,
            problem=problem,
        )
        return HTMLResponse(page, headers={**PAGE_HEADERS, "ETag": etag})

    async def _show_mail(self, request: Request) -> Response:
        """The HTML of one mail in a sandbox; its links open a page of their own."""
        mail = self._providers.mailbox.find(request.path_params["number"])
        if mail is None or not mail.html:
            return PlainTextResponse("there is no such mail\n", status_code=404, headers=_MAIL_HEADERS)
        return HTMLResponse(mail.html.replace("<head>", '<head><base target="_blank">', 1), headers=_MAIL_HEADERS)

    def _show_document(self, request: Request) -> Response:  # not async: Starlette reads the file off the event loop
        path = request.path_params["path"]
        file = (self._docs / path).resolve() if self._docs and _DOCUMENT.fullmatch(path) else None
        if file is None or self._docs not in file.parents or not file.is_file():
            return PlainTextResponse("there is no such document\n", status_code=404)
        title, body = render_markdown(file.read_text(encoding="utf-8"), self._markdown)
        return self._respond("document.html.j2", title=title, body=body)

    async def _redirect_to_graph(self, request: Request) -> Response:
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
            for path in _GRAPHS:
                try:
                    async with http.get(f"{self._prometheus}{path}", allow_redirects=False) as answer:
                        if answer.status != 404:
                            return RedirectResponse(f"{self._prometheus}{path}?{request.url.query}", status_code=302)
                except (aiohttp.ClientError, TimeoutError) as error:
                    return _build_error("Prometheus", error)
        return _build_error("Prometheus", "it has no graph")

    async def _show_alerts(self, _request: Request) -> Response:
        """Alertmanager's alerts: notified ones before silenced and inhibited ones, then by name."""
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT) as http,
                http.get(f"{self._alertmanager}/api/v2/alerts") as answer,
            ):
                found: list[dict[str, Any]] = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return _build_error("Alertmanager", error)
        names = {alert["fingerprint"]: alert["labels"]["alertname"] for alert in found}
        alerts = [{**alert, "mute": _describe_mute(alert, names)} for alert in found]
        alerts.sort(key=lambda alert: (bool(alert["mute"]), alert["labels"]["alertname"]))
        return self._respond("alerts.html.j2", alerts=alerts)

    def _respond(self, template: str, **values: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(values), headers=PAGE_HEADERS)


def _build_error(server: str, error: object) -> Response:
    return PlainTextResponse(f"{server} gives no answer: {error!r}\n", status_code=502, headers=PAGE_HEADERS)


def _describe_mute(alert: dict[str, Any], names: Mapping[str, str]) -> str:
    """Return why an alert is not notified; empty if it is."""
    status = alert["status"]
    by = sorted(names.get(cause, cause) for cause in status["inhibitedBy"])
    return "silenced" if status["silencedBy"] else f"inhibited by {', '.join(by)}" if by else ""


def _arrange_channel(channel: SlackChannelState) -> dict[str, Any]:
    """A channel with its newest threads; a broadcast reply, and one whose root is no longer stored, stand there."""
    messages = sorted([*channel.messages, *channel.ephemeral], key=lambda message: message.ts)
    roots = {message.ts for message in messages if not message.thread_ts}
    shown = [each for each in messages if each.thread_ts not in roots or each.reply_broadcast][-_MOST:]
    threads = [
        (_arrange_message(root), [_arrange_message(each) for each in messages if each.thread_ts == root.ts])
        for root in shown
    ]
    return {"id": channel.id, "name": channel.name, "is_archived": channel.is_archived, "threads": threads}


def _arrange_message(message: SlackMessage) -> dict[str, Any]:
    html = render_message("slack", json.dumps(message.to_json(with_metadata=False)))
    for emoji, colour in _DISCS.items():
        html = html.replace(emoji, Markup('<span class="disc {}" title="{}"></span>').format(colour, emoji))
    readers = [person.real_name for person in PEOPLE if person.id == message.visible_to]
    return {**vars(message), "html": html, "readers": readers}


def _arrange_incident(incident: PagerDutyIncident) -> dict[str, Any]:
    payload = {name: getattr(incident, name) for name in ("summary", "severity", "source", "custom_details")}
    event = {
        "event_action": incident.status,
        "payload": payload,
        "links": [{"text": link.get("text") or link["href"], "href": link["href"]} for link in incident.links],
        "client_url": incident.client_url or "",
    }
    return {**vars(incident), "html": render_message("pagerduty", json.dumps(event))}


def render_markdown(markdown: str, parser: MarkdownIt) -> tuple[str, Markup]:
    """The title of a document and its HTML, with GitHub's anchors.

    Args:
        markdown: the document.
        parser: of Markdown; without its `html` option, which would pass raw HTML.
    """
    tokens = parser.parse(markdown)
    anchors: dict[str, int] = {}
    title = "Document"
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open":
            text = _extract_text(content)
            opening.attrSet("id", _build_anchor(text, anchors))
            if opening.tag == "h1":
                title = text
    return title, Markup(parser.renderer.render(tokens, parser.options, {}))  # noqa: S704  # the parser passes no HTML


def _extract_text(inline: Token) -> str:
    return "".join(part.content for part in inline.children or () if part.type in ("text", "code_inline"))


def _build_anchor(text: str, used_anchors: dict[str, int]) -> str:
    """Lower case, no punctuation, a hyphen for each space; a repeated one gets -1, -2, … (github-slugger's rule)."""
    slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
    count = used_anchors.get(slug, 0)
    used_anchors[slug] = count + 1
    return f"{slug}-{count}" if count else slug
