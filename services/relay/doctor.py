"""The checks of the relay's configuration, for the command `doctor`."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from services.relay.alertmanager_api import AlertmanagerClient, AlertmanagerError
from services.relay.alertmanager_file.receivers import check_receiver, check_unserved, check_watchdogs, list_receivers
from services.relay.alertmanager_file.routing_tree import RoutingTree, TreeError, parse_tree
from services.relay.config import RelaySettings, WatchdogSettings
from services.relay.delivery.attempt import close_channel
from services.relay.delivery.enrichment.diagnosis import list_enrichment_checks
from services.relay.delivery.links import build_links
from services.relay.exporter_api import ExporterHistory
from services.relay.intake.heartbeats import HeartbeatMatcher
from services.relay.interactive.diagnosis import check_app_token, check_silence_scopes
from services.relay.interactive.web_api import SlackWebApi
from services.relay.login.settings import OidcSettings
from services.relay.model import Alert, Status
from services.relay.outbox.engine.database_check import check_outbox
from shared.check import Check, CheckError
from shared.config.secret_file import SecretFile
from shared.net.page import check_connection, check_page


@asynccontextmanager
async def open_checks(settings: RelaySettings) -> AsyncIterator[Sequence[Check]]:
    """The database, each channel, each Alertmanager with its receivers, the provider of logins, and the links."""
    async with AsyncExitStack() as stack:
        checks = [Check("database tables", partial(check_outbox, settings.database))]
        for name, channel_settings in settings.channels.items():
            channel = channel_settings.connect(settings.delivery.timeout)
            stack.push_async_callback(close_channel, name, channel)
            checks += channel.list_checks(f"channels.{name}")
        token = SecretFile(settings.alertmanager.token_file) if settings.alertmanager.token_file else None
        for n, url in enumerate(settings.alertmanager.urls):
            alertmanager = _Alertmanager(AlertmanagerClient(url, token, settings.alertmanager))
            stack.push_async_callback(alertmanager.client.close)
            checks += alertmanager.list_checks(f"alertmanager.urls.{n}", settings)
        checks += await _open_interactive_checks(settings, stack)
        if settings.auth.oidc:
            checks += _open_oidc_checks(settings.auth.oidc, stack)
        yield [
            *checks,
            *_list_watchdog_checks(settings),
            *_list_link_checks(settings),
            *_list_board_checks(settings, stack),
            *list_enrichment_checks(settings.messages.enrichment, shows_own_runbooks=_shows_own_runbooks(settings)),
        ]


def _shows_own_runbooks(settings: RelaySettings) -> bool:
    """Whether a message in production links to the runbook that its rule names."""
    wins = settings.links.runbook is None or settings.links.prefer == "annotation"
    return wins and settings.environment == "production"


async def _open_interactive_checks(settings: RelaySettings, stack: AsyncExitStack) -> list[Check]:
    """The app-level token, and the scopes of the bots where people may silence."""
    interactive = settings.interactive
    if interactive.app_token_file is None:
        return []
    app = SlackWebApi(interactive.api_url, interactive.app_token_file, interactive)
    stack.push_async_callback(app.close)
    checks = [Check("interactive app token", partial(check_app_token, app), "interactive.app_token_file")]
    scopes = ["users:read", *(["usergroups:read"] if interactive.silence.allow_groups else [])]
    for name, channel in settings.slack_bots.items() if interactive.silence_rules.is_enabled else ():
        if channel.token_file is not None:
            bot = SlackWebApi(channel.api_url, channel.token_file, channel)
            stack.push_async_callback(bot.close)
            check = partial(check_silence_scopes, bot, scopes)
            checks.append(Check(f"interactive silence by channels.{name}", check, f"channels.{name} bot token"))
    return checks


def _open_oidc_checks(oidc: OidcSettings, stack: AsyncExitStack) -> Sequence[Check]:
    from services.relay.login.diagnosis import list_oidc_checks  # noqa: PLC0415  # authlib takes 200 ms, which few need
    from services.relay.login.oidc import OidcClient  # noqa: PLC0415  # likewise

    client = OidcClient(oidc)
    stack.push_async_callback(client.close)
    return list_oidc_checks(client)


class _Alertmanager:
    """One Alertmanager; its routing tree is read by the first check, which the others need."""

    def __init__(self, client: AlertmanagerClient) -> None:
        self.client = client
        self._read: RoutingTree | None = None

    def list_checks(self, key: str, settings: RelaySettings) -> Iterator[Check]:
        api = f"{key} API"
        yield Check(api, self._read_tree, "alertmanager.token_file" if settings.alertmanager.token_file else None)
        for n, route in enumerate(settings.routes):
            if route.receiver is not None:
                yield Check(f"routes.{n}.receiver at {key}", partial(self._check_receiver, route.receiver), api)
        # A route of no receiver serves each of them, unless its matchers leave alerts to `default_channels`.
        served = [route.receiver for route in settings.routes if route.receiver is not None or not route.matchers]
        yield Check(f"{key} receivers", partial(self._check_unserved, served), api)
        if settings.watchdogs:
            yield Check(f"watchdogs at {key}", partial(self._check_watchdogs, settings.heartbeat_matchers), api)

    async def _read_tree(self) -> str:
        try:
            self._read = parse_tree(await self.client.read_configuration())
        except AlertmanagerError as error:
            raise CheckError(str(error), "correct the URL, the token and the path of --web.external-url") from None
        except TreeError as error:
            raise CheckError(str(error), "compare by hand: the receivers, and `routes` of the relay") from None
        return f"{len(self._tree.receivers)} receivers"

    @property
    def _tree(self) -> RoutingTree:
        assert self._read  # noqa: S101  # the check that the others need has passed
        return self._read

    async def _check_receiver(self, name: str) -> str:
        return check_receiver(name, list_receivers(self._tree))

    async def _check_unserved(self, served: Sequence[str | None]) -> str:
        return check_unserved(list_receivers(self._tree), served)

    async def _check_watchdogs(self, watchdogs: Sequence[HeartbeatMatcher]) -> str:
        return check_watchdogs(self._tree, watchdogs)


def _list_board_checks(settings: RelaySettings, stack: AsyncExitStack) -> Iterator[Check]:
    """Whether the exporter tells the relay of failures of keys."""
    messages = settings.messages
    if messages.board_url is not None:
        exporter = ExporterHistory(messages.board_url, messages.board_token_file, messages.egress)
        stack.push_async_callback(exporter.close)
        token = "messages.board_token_file" if messages.board_token_file else None
        yield Check("messages.board_url history", exporter.check, token)


def _list_watchdog_checks(settings: RelaySettings) -> Iterator[Check]:
    """Whether there is one; and the dead man's switch of each, without a request, which would be a heartbeat."""
    yield Check("watchdogs", partial(_check_watchdogs, settings))
    for n, watchdog in enumerate(settings.watchdogs):
        if watchdog.ping_url_file:
            key = f"watchdogs.{n}"
            yield Check(f"{key} ping", partial(_check_ping, watchdog.ping_url_file, watchdog), f"{key}.ping_url_file")


async def _check_watchdogs(settings: RelaySettings) -> str:
    if not settings.watchdogs:
        channels = ", ".join(settings.default_channels)
        raise CheckError(
            "there are none: nobody learns that Prometheus or Alertmanager is gone, and each heartbeat is a message",
            f"add: watchdogs: [{{matchers: ['alertname=\"Watchdog\"'], expect_every: 5m, channels: [{channels}]}}]",
        )
    return ", ".join(watchdog.name for watchdog in settings.watchdogs)


async def _check_ping(file: Path, watchdog: WatchdogSettings) -> str:
    return await check_connection(SecretFile(file).read_value(), watchdog)


def _list_link_checks(settings: RelaySettings) -> Iterator[Check]:
    """The pages that the links of an example lead to."""
    now = datetime.now(UTC)
    labels = {"alertname": "KMSCryptoNotReady", "env": "production", "service": "backend", "severity": "critical"}
    example = Alert(
        status=Status.FIRING,
        labels=labels,
        annotations={},
        starts_at=now,
        ends_at=None,
        generator_url="",
        fingerprint="",
    )
    links = build_links(example, now, settings.link_rules)
    for name, url in (
        ("links.runbook", links.runbook),
        ("links.dashboard", links.dashboard),
        ("messages.board_url", settings.messages.board_url),
    ):
        if url:
            yield Check(name, partial(check_page, url))
