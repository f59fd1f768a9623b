"""The checks of the relay's configuration, for the command `doctor`. Nothing is sent, and nothing changes.

An Alertmanager's receivers are compared with the relay's routes by name, since it masks the URLs of webhooks.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml
from sqlalchemy import Connection

from services.relay.acknowledgement.socket_mode import SlackWebApi
from services.relay.apis import (
    AlertmanagerClient,
    ApiError,
    ExporterHistory,
    PrometheusClient,
)
from services.relay.channels.port import ProofLevel, SendError
from services.relay.channels.slack.web_api import SLACK_CODES, SlackError
from services.relay.config import OidcSettings, RelaySettings
from services.relay.delivery.attempt import close_channel
from services.relay.delivery.charts import can_draw
from services.relay.delivery.enrichment import EnrichmentSettings, Runbook, RunbookError
from services.relay.delivery.message import build_links
from services.relay.intake.routing import PROOF_ALERT, WatchdogSettings
from services.relay.model import Alert, Status
from services.relay.outbox import database as dialect
from services.relay.outbox.database import UnknownDatabaseError, describe_lost_outbox, describe_tables
from services.relay.routes.alertmanager import (
    RoutingTree,
    TreeError,
    check_leading_here,
    check_receiver,
    find_unserved,
    list_chosen,
    parse_tree,
    route_alert,
)
from shared.check import Check, CheckAdvice, CheckError, CheckNotApplicable
from shared.config.secret_file import SecretFile
from shared.config.settings import is_placeholder_url
from shared.net.page import check_connection, check_page
from shared.process.doctor import create_doctor_command
from shared.sql.database_url import DatabaseUrl
from shared.sql.read_only import check_database


def list_enrichment_checks(settings: EnrichmentSettings, *, shows_own_runbooks: bool) -> Iterator[Check]:
    """The runbook's sections, and the rules of Prometheus.

    Args:
        settings: of the enrichment.
        shows_own_runbooks: whether messages link to the `runbook_url` of a rule, and a placeholder there is an error.
    """
    if settings.runbook is not None:
        file = "messages.runbook" if isinstance(settings.runbook, Path) else None
        yield Check("messages.runbook sections", partial(_check_runbook, settings), file)
    if settings.prometheus_url is not None:
        token = "messages.prometheus_token_file" if settings.prometheus_token_file else None
        api = "messages.prometheus_url API"
        yield Check(api, partial(_check_prometheus, settings), token)
        if shows_own_runbooks:
            yield Check("messages.prometheus_url runbooks", partial(_check_rule_runbooks, settings), api)


async def _check_runbook(settings: EnrichmentSettings) -> str:
    runbook = Runbook(settings.runbook or "", settings.egress)
    try:
        number = await runbook.read()
    except RunbookError as error:
        raise CheckError(str(error), "correct the path, the URL or the proxy") from None
    finally:
        await runbook.close()
    if not number:
        raise CheckError("it has no section with text", "give each alert a heading of its name")
    return f"{number} sections"


async def _check_prometheus(settings: EnrichmentSettings) -> str:
    async with _open_prometheus(settings) as prometheus:
        number = await prometheus.count_rules()
    if not number:
        raise CheckError("it has no alerting rules", "name the Prometheus that evaluates them")
    if not can_draw():
        raise CheckError("matplotlib is not installed", "install the extra `charts`: without it there are values alone")
    return f"{number} alerting rules"


async def _check_rule_runbooks(settings: EnrichmentSettings) -> str:
    async with _open_prometheus(settings) as prometheus:
        runbooks = await prometheus.list_runbooks()
    if placeholders := [name for name, url in runbooks.items() if is_placeholder_url(url)]:
        raise CheckError(
            f"the runbook_url of {len(placeholders)} of {len(runbooks)} rules leads to a placeholder, such as that of "
            f"{placeholders[0][:100]}",
            "set links.runbook, or replace the address in the rules and reload Prometheus",
        )
    return f"{len(runbooks)} links"


@asynccontextmanager
async def _open_prometheus(settings: EnrichmentSettings) -> AsyncIterator[PrometheusClient]:
    prometheus = PrometheusClient(settings.prometheus_url or "", settings.prometheus_token_file, settings.egress)
    try:
        yield prometheus
    except ApiError as error:
        raise CheckError(str(error), "correct the URL, the token and the path of --web.external-url") from None
    finally:
        await prometheus.close()


_HINTS: Final = {
    "invalid_auth": "copy the app-level token (xapp-…) into `app_token_file`",
    "not_allowed_token_type": "copy the app-level token (xapp-…) into `app_token_file`",
    "missing_scope": "give the app-level token the scope connections:write",
}


async def check_app_token(api: SlackWebApi) -> str:
    """Check that the token may open connections, and that Socket Mode is on. Raises CheckError."""
    try:
        await api.call("apps.connections.open")
    except SlackError as error:
        hint = _HINTS.get(error.code, "see whether Socket Mode is on in the app's settings")
        raise CheckError(_explain(error), hint) from None
    except SendError as error:
        raise CheckError(str(error), "allow https and wss to slack.com, or set `proxy`") from None
    return "the app-level token opens connections"


async def check_silence_scopes(api: SlackWebApi, scopes: Sequence[str]) -> str:
    """Check that a bot has the scopes to see who may silence. Raises CheckError."""
    try:
        await api.call("auth.test")
    except SendError as error:
        raise CheckError(_explain(error), "correct the channel's `token_file`") from None
    missing = " and ".join(scope for scope in scopes if scope not in (api.granted_scopes or ()))
    if api.granted_scopes is not None and missing:
        raise CheckError(
            f"the bot lacks {missing}", f"add {missing} to the app's bot scopes, and install the app again"
        )
    return f"the bot has {' and '.join(scopes)}"


def _explain(error: SendError) -> str:
    code = SLACK_CODES.get(error.code) if isinstance(error, SlackError) else None
    return f"{error}: {code.meaning}" if code else str(error)


async def check_outbox(database: DatabaseUrl) -> str:
    """Say what the next start would find; nothing is changed. Raises CheckError if it would refuse the database."""
    await asyncio.to_thread(_refuse_lost_file, database)
    return await check_database(database, _describe)


def _refuse_lost_file(database: DatabaseUrl) -> None:
    is_missing = dialect.is_sqlite(database) and not Path(str(database.database)).exists()
    if is_missing and (problem := describe_lost_outbox(database)):
        raise CheckError(*problem)


def _describe(connection: Connection) -> str:
    try:
        return describe_tables(connection)
    except UnknownDatabaseError as error:
        raise CheckError(error.error, error.hint) from None


_RECEIVER: Final = "relay"
"""What a receiver of Alertmanager is called here that does not exist yet."""
_WATCHDOG: Final = {"alertname": "Watchdog", "severity": "none"}
"""The labels of the heartbeat in keypulse's rules, and in those of others."""


def _check_heartbeats(watchdogs: Iterable[WatchdogSettings], tree: RoutingTree) -> str:
    """Check that each heartbeat which Alertmanager sends here is a watchdog's, and the reverse. Raises CheckError."""
    try:
        for watchdog in watchdogs:
            if not _reaches_webhook(tree, {m.label: m.value for m in watchdog.matchers if m.operator == "="}):
                raise CheckError(
                    f"no route leads the alert of {watchdog.name} to a receiver with a webhook that sends a token, "
                    "so it will be absent",
                    f"add the route {_describe_route(watchdog, tree)}, or those that "
                    "`keypulse-relay alertmanager --merge FILE` prints",
                )
        if _reaches_webhook(tree, _WATCHDOG) and not any(_may_match(watchdog) for watchdog in watchdogs):
            raise CheckError(
                "the alert Watchdog leads here, and is no heartbeat of `watchdogs`: it is a message again and again",
                "add an entry with the matcher 'alertname=\"Watchdog\"'",
            )
    except TreeError as error:
        raise CheckError(str(error), "compare by hand: its routes, and `watchdogs` of the relay") from None
    return "each leads here"


def _describe_route(watchdog: WatchdogSettings, tree: RoutingTree) -> str:
    """The route of a heartbeat, as a line of Alertmanager's file."""
    receiver = tree.token_senders[0] if tree.token_senders else _RECEIVER
    matchers = [str(matcher) for matcher in watchdog.matchers]
    return _format_line({"matchers": matchers, "receiver": receiver, "group_interval": "1m", "repeat_interval": "1m"})


def _reaches_webhook(tree: RoutingTree, labels: Mapping[str, str]) -> bool:
    """Whether an alert reaches a receiver that may be the relay: a switch elsewhere gets no token."""
    chosen = list_chosen(route_alert(tree, labels))
    return any(route.receiver in tree.token_senders for route in chosen)


def _may_match(watchdog: WatchdogSettings) -> bool:
    """Whether its alert may be called Watchdog; it may have further labels."""
    return all(m.matches(_WATCHDOG) for m in watchdog.matchers if m.label in _WATCHDOG)


@asynccontextmanager
async def open_checks(settings: RelaySettings) -> AsyncIterator[Sequence[Check]]:
    """The database, each channel, each Alertmanager with its receivers, the provider of logins, and the links."""
    async with AsyncExitStack() as stack:
        checks = [Check("database tables", partial(check_outbox, settings.database), "database")]
        for name, channel_settings in settings.channels.items():
            channel = channel_settings.connect(settings.delivery.timeout)
            stack.push_async_callback(close_channel, name, channel)
            checks += channel.list_checks(f"channels.{name}")
        for n, url in enumerate(settings.alertmanager.urls):
            client = AlertmanagerClient(url, settings.alertmanager.token_file, settings.alertmanager)
            stack.push_async_callback(client.close)
            checks += _list_alertmanager_checks(client, f"alertmanager.urls.{n}", settings)
        checks += await _open_interactive_checks(settings, stack)
        if settings.auth.oidc:
            checks += _open_oidc_checks(settings.auth.oidc, stack)
        yield [
            *checks,
            *_list_watchdog_checks(settings),
            *_list_link_checks(settings),
            *_list_board_checks(settings, stack),
            *_list_proof_limits(settings),
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
    for name, channel in settings.slack_bots.items() if interactive.silence.is_enabled else ():
        if channel.token_file is not None:
            bot = SlackWebApi(channel.api_url, channel.token_file, channel)
            stack.push_async_callback(bot.close)
            check = partial(check_silence_scopes, bot, scopes)
            checks.append(Check(f"interactive silence by channels.{name}", check, f"channels.{name} bot token"))
    return checks


def _open_oidc_checks(oidc: OidcSettings, stack: AsyncExitStack) -> Sequence[Check]:
    from services.relay.login.oidc import OidcClient, list_oidc_checks  # noqa: PLC0415  # authlib takes 200 ms, which few need

    client = OidcClient(oidc)
    stack.push_async_callback(client.close)
    certificate = Check("auth.oidc certificate", partial(check_connection, oidc.issuer, oidc))
    return [certificate, *list_oidc_checks(client)]


def _list_alertmanager_checks(client: AlertmanagerClient, key: str, settings: RelaySettings) -> Iterator[Check]:
    """The first reads its routing tree, which the others need."""
    trees: list[RoutingTree] = []

    async def read_tree() -> str:
        try:
            trees.append(parse_tree(await client.read_configuration()))
        except ApiError as error:
            raise CheckError(str(error), "correct the URL, the token and the path of --web.external-url") from None
        except TreeError as error:
            raise CheckError(str(error), "compare by hand: the receivers, and `routes` of the relay") from None
        count = len(trees[0].receivers)
        return "1 receiver" if count == 1 else f"{count} receivers"

    def check(name: str, work: Callable[[RoutingTree], str]) -> Check:
        async def run() -> str:
            return work(trees[0])

        return Check(name, run, f"{key} API")

    yield Check(f"{key} API", read_tree, "alertmanager.token_file" if settings.alertmanager.token_file else None)
    for n, route in enumerate(settings.routes):
        if route.receiver is not None:
            yield check(f"routes.{n}.receiver at {key}", partial(_check_receiver, route.receiver, settings))
    yield check(f"{key} receivers", partial(_check_unserved, settings))
    if settings.watchdogs:
        yield check(f"watchdogs at {key}", partial(_check_heartbeats, settings.watchdogs))


def _check_receiver(name: str, settings: RelaySettings, tree: RoutingTree) -> str:
    with nullcontext() if name in tree.token_senders else _showing_receiver(name, settings):
        return check_receiver(name, tree)


def _check_unserved(settings: RelaySettings, tree: RoutingTree) -> str:
    with _showing_receiver(_RECEIVER, settings):
        names = check_leading_here(tree)
    if settings.proof.every:
        _refuse_disturbing_proofs(tree)
    if unserved := find_unserved(settings.routes, tree):
        rest = "what leads here, except heartbeats and proofs, goes to `default_channels`"
        return f"no route of the relay serves {', '.join(unserved)}: {rest}"
    return f"each of {', '.join(names)} has a route of the relay"


_PROOF: Final = {"alertname": PROOF_ALERT, "severity": "none"}
"""The labels of a proof of the path that are the same everywhere."""


def _refuse_disturbing_proofs(tree: RoutingTree) -> None:
    """A proof of the path is for relays alone. Raises CheckError where it goes to people, too.

    Routes that ask for other labels are left out, and receivers with nothing but webhooks: nobody may read them.
    """
    try:
        chosen = list_chosen(route_alert(tree, _PROOF))
    except TreeError:  # how it routes is not known
        return
    chosen = [each for each in chosen if all(one.matcher and one.matcher.label in _PROOF for one in each.conditions)]
    if others := sorted({each.receiver for each in chosen if {*tree.receivers.get(each.receiver, ())} - {"webhook"}}):
        raise CheckError(
            f"{PROOF_ALERT} goes to people by the receiver {', '.join(others)} at each proof",
            "put the route of kms-proof before it, or run `keypulse-relay alertmanager --merge FILE`",
        )


@contextmanager
def _showing_receiver(name: str, settings: RelaySettings) -> Iterator[None]:
    """A hint ends on the receiver as a line of Alertmanager's file."""
    try:
        yield
    except CheckError as error:
        authorization = {"credentials_file": str(settings.auth.bearer_token_file)}
        webhook = {"url": f"http://{settings.listen}/alerts", "http_config": {"authorization": authorization}}
        line = _format_line({"name": name, "webhook_configs": [webhook]})
        raise CheckError(error.error, f"{error.hint}: {line}") from None


def _format_line(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(document, default_flow_style=True, sort_keys=False, width=math.inf).strip()


def _list_board_checks(settings: RelaySettings, stack: AsyncExitStack) -> Iterator[Check]:
    """Whether the exporter tells the relay of failures of keys."""
    messages = settings.messages
    if messages.board_url is not None:
        exporter = ExporterHistory(messages.board_url, messages.board_token_file, messages.egress)
        stack.push_async_callback(exporter.close)
        token = "messages.board_token_file" if messages.board_token_file else None
        yield Check("messages.board_url history", exporter.check, token)


def _list_proof_limits(settings: RelaySettings) -> Iterator[Check]:
    """A line for each channel that proves no more than that it is reachable."""
    for name, channel in settings.channels.items() if settings.proof.every else ():
        if limit := channel.describe_proof_limit(settings.proof):
            yield Check(f"channels.{name} proof", partial(_describe_proof_limit, limit))


async def _describe_proof_limit(limit: str) -> str:
    raise CheckNotApplicable(f"no more than `{ProofLevel.REACHABLE}`: {limit}")


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
        raise CheckAdvice(
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


command = create_doctor_command(RelaySettings, open_checks, "keypulse-relay")
