"""The composition root of the stand-ins: tokens and addresses come in, running providers and their page go out."""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from starlette.applications import Starlette

from ops.demo.openbao import OpenBao
from ops.demo.stand_ins import mail_server
from ops.demo.stand_ins.control_api import ControlApi, KmsFaults, Providers
from ops.demo.stand_ins.mail_server import MailServer
from ops.demo.stand_ins.page import StandInPages
from ops.demo.stand_ins.pagerduty import PagerDuty
from ops.demo.stand_ins.provider_faults import ChangeFeed, ProviderFaults
from ops.demo.stand_ins.slack.actions import SlackActions
from ops.demo.stand_ins.slack.socket_mode import SocketMode, serve_sockets
from ops.demo.stand_ins.slack.web_api import WEBHOOK_APP, WEBHOOK_SECRET, WebApi
from ops.demo.stand_ins.slack.workspace import Workspace
from ops.demo.stand_ins.transit_faults import TransitFaults
from shared.config.server_settings import Role
from shared.config.settings import Address
from shared.http.access import ProtectedRoute, RouteRequirements
from shared.http.server import create_application, create_registry, serve

FREE_PORT = Address("127.0.0.1", 0)


@dataclass(frozen=True)
class StandIns:
    """The running stand-ins: their addresses, messages and faults."""

    app: Starlette
    http: Address
    smtp: Address
    slack: Workspace
    socket_mode: SocketMode
    pagerduty: PagerDuty
    mailbox: MailServer
    faults: ProviderFaults
    changes: ChangeFeed

    @property
    def slack_api_url(self) -> str:
        """The base URL for a Slack client."""
        return f"http://{self.http}/slack/api/"

    def build_slack_webhook_url(self, secret: str = WEBHOOK_SECRET) -> str:
        """The URL of an incoming webhook, which posts into the first channel."""
        return f"http://{self.http}/slack/services/{'/'.join(WEBHOOK_APP)}/{secret}"

    @property
    def pagerduty_url(self) -> str:
        return f"http://{self.http}/pagerduty/v2/enqueue"


@asynccontextmanager
async def run_stand_ins(  # noqa: PLR0913  (one keyword for each thing that a test may choose)
    *,
    http: Address = FREE_PORT,
    smtp: Address = FREE_PORT,
    sockets: Address = FREE_PORT,
    slack_tokens: Iterable[str] = ("xoxb-test",),
    slack_app_tokens: Iterable[str] = ("xapp-test",),
    pagerduty_keys: Iterable[str] = ("0" * 32,),
    slack_webhook_secrets: Iterable[str] = (WEBHOOK_SECRET,),
    slack_channels: Iterable[str] = ("#security-critical", "#security-ops"),
    slack_rates: bool = False,
    emulator_faults: str | None = None,
    openbao: OpenBao | None = None,
    docs: Path | None = None,
    prometheus: str | None = None,
    alertmanager: str | None = None,
    page_links: Mapping[str, str] = MappingProxyType({}),
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[StandIns]:
    """Run a stand-in Slack, PagerDuty and mail server while the body runs.

    Args:
        http: the address of Slack, PagerDuty, the page and its API; port 0 picks a free one.
        smtp: the address of the mail server.
        sockets: the address of Slack's Socket Mode.
        slack_tokens: Slack's valid bot tokens.
        slack_app_tokens: Slack's valid app-level tokens, for Socket Mode.
        slack_webhook_secrets: the last parts of the URLs of Slack's incoming webhooks.
        pagerduty_keys: PagerDuty's valid routing keys, 32 characters each.
        slack_channels: the channels of the bot.
        slack_rates: whether Slack enforces its documented rate limits; `slack.rates.enabled` changes it.
        emulator_faults: the URL of the KMS emulator's faults API, for the page's buttons.
        openbao: the server that the page's buttons break instead.
        docs: the folder of the documents under `/docs/`.
        prometheus: its URL, for the graph at `/graph`.
        alertmanager: its URL, for the alerts at `/alertmanager/`.
        page_links: to the pages of keypulse, by their text.
        clock: Unix seconds, the timestamps of messages.

    Raises:
        StartError: an address is taken.
    """
    changes = ChangeFeed()
    faults = ProviderFaults(changes)
    slack = Workspace(slack_channels, changes, clock)
    slack.rates.enabled = slack_rates
    socket_mode = SocketMode(slack)
    web_api = WebApi(slack, socket_mode, slack_tokens, slack_app_tokens, slack_webhook_secrets, faults)
    pagerduty = PagerDuty(pagerduty_keys, faults, changes, clock)
    mailbox = MailServer(faults, changes, clock)
    kms = TransitFaults(openbao) if openbao else KmsFaults(emulator_faults)
    providers = Providers(slack, pagerduty, mailbox, faults, kms, changes)
    pages = StandInPages(providers, docs, page_links, prometheus, alertmanager)
    actions = SlackActions(slack, socket_mode)
    anybody = RouteRequirements(None)  # by any name: they want tokens of their own, or have the secret in their path
    routes = [
        ProtectedRoute("/slack/api/{method}", web_api.handle_call, anybody, ["GET", "POST"]),
        ProtectedRoute("/slack/services/{team}/{app}/{secret}", web_api.handle_webhook, anybody, ["POST"]),
        ProtectedRoute("/slack/upload/{file}", web_api.methods.handle_upload, anybody, ["POST"]),
        ProtectedRoute("/slack/files/{file}", web_api.methods.show_file, RouteRequirements(Role.VIEWER)),
        ProtectedRoute("/api/slack", actions.handle, RouteRequirements(Role.ADMIN, action="act in Slack"), ["POST"]),
        ProtectedRoute("/pagerduty/v2/enqueue", pagerduty.enqueue, anybody, ["POST"]),
        ProtectedRoute("/pagerduty/v2/change/enqueue", pagerduty.enqueue_change, anybody, ["POST"]),
        *ControlApi(providers).build_routes(),
        *pages.build_routes(),
    ]
    app = create_application("keypulse stand-ins", create_registry(), routes)
    async with (
        mail_server.serve_smtp(mailbox, smtp) as smtp_address,
        serve_sockets(socket_mode, sockets) as socket_address,
        serve(app, http) as http_address,
    ):
        web_api.socket_port = socket_address.port
        try:
            yield StandIns(app, http_address, smtp_address, slack, socket_mode, pagerduty, mailbox, faults, changes)
        finally:
            faults.clear()
