"""`doctor` on broken configurations: each is named in one line, that of its key, with what to do. Nothing is sent."""

import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from ops.kms_emulator.emulator import Emulator, run_emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend import doctor as backend_doctor
from services.backend.config import BackendSettings
from services.exporter import doctor as exporter_doctor
from services.exporter.config import ExporterSettings
from services.relay import doctor as relay_doctor
from services.relay.config import RelaySettings
from services.relay.outbox.store import open_store
from services.rotator import doctor as rotator_doctor
from services.rotator.config import RotatorSettings
from shared.check import CheckOutcome, CheckResult, format_line
from shared.config.settings import load_settings
from shared.process.doctor import run_doctor
from shared.sql.database_url import create_sqlite_url
from tests.sites import serve_site

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
TOKEN, ROUTING_KEY = "xoxb-0123456789", "0123456789abcdef" * 2
RECEIVERS = """
route: {receiver: kms-security, routes: [{receiver: kms-critical, matchers: [severity="critical"]}]}
receivers:
  - {name: kms-critical, webhook_configs: [{url: <secret>, http_config: {authorization: {type: Bearer}}}]}
  - {name: kms-security, webhook_configs: [{url: <secret>, http_config: {authorization: {type: Bearer}}}]}
"""
WATCHDOG_GOES_ELSEWHERE = """
route:
  receiver: kms-security
  routes: [{receiver: mail, matchers: ['alertname="Watchdog"']}, {receiver: kms-critical}]
receivers:
  - {name: kms-critical, webhook_configs: [{url: <secret>, http_config: {authorization: {type: Bearer}}}]}
  - {name: kms-security, webhook_configs: [{url: <secret>, http_config: {authorization: {type: Bearer}}}]}
  - {name: mail, email_configs: [{to: ops@example.org}]}
"""
SWITCH = "webhook_configs: [{url: <secret>, http_config: {follow_redirects: true}}]"
"""A dead man's switch of somebody else."""
HEALTH = '{"crypto_mode": "kms", "crypto_ready": true}'
METRICS = "crypto_init_timestamp_seconds 1\ncrypto_decryption_errors_total 0\n"


SIGNING_KEY = '{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}'


def describe_provider(url: str, **changes: Any) -> str:
    """A provider's discovery document."""
    endpoints = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
    return json.dumps({"issuer": url, **{key: f"{url}{path}" for key, path in endpoints.items()}, **changes})


class Pages:
    """The HTTP servers of others: Alertmanager, a backend, runbook and dashboard, a webhook; by path."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {
            "/runbook": (200, "read me"),
            "/steps": (200, "# KMSTest\n\nLook at it."),
            "/api/v1/rules": (200, '{"data": {"groups": [{"rules": [{"name": "KMSTest"}]}]}}'),
            "/dashboard": (302, "log in"),
            "/hook": (405, "POST alone"),
            "/healthz": (200, HEALTH),
            "/metrics": (200, METRICS),
        }
        self.alertmanager = RECEIVERS
        self.posted: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        if (body := await request.text()) not in {"", "{}"}:
            self.posted.append(f"{request.path}: {body}")
        if request.path.startswith("/ping"):
            self.posted.append(request.path)
        if request.path == "/api/v2/status":
            return web.json_response({"config": {"original": self.alertmanager}})
        status, text = self.answers.get(request.path, (404, "no such page"))
        return web.Response(status=status, text=text)


@dataclass
class World:
    """Everything that the configurations name, in order; a test breaks one part of it."""

    folder: Path
    stand_ins: StandIns
    emulator: Emulator
    pages: Pages
    relay: dict[str, Any]
    exporter: dict[str, Any]
    backend: dict[str, Any]
    rotator: dict[str, Any]
    service: str = ""
    """Whose configuration `edit` changes."""

    async def examine(self, service: str) -> list[CheckResult]:
        """The results of `doctor` for one service."""
        file = self.folder / f"{service}.yml"
        file.write_text(yaml.safe_dump(getattr(self, service)))
        match service:
            case "relay":
                return await run_doctor(load_settings(RelaySettings, file), relay_doctor.open_checks)
            case "exporter":
                return await run_doctor(load_settings(ExporterSettings, file), exporter_doctor.open_checks)
            case "backend":
                return await run_doctor(load_settings(BackendSettings, file), backend_doctor.open_checks)
        return await run_doctor(load_settings(RotatorSettings, file), rotator_doctor.open_checks)

    @property
    def sent(self) -> list[object]:
        """All that anybody received."""
        slack = [message for channel in self.stand_ins.slack.channels.values() for message in channel.messages]
        return [*slack, *self.stand_ins.pagerduty.events, *self.stand_ins.mailbox.mails, *self.pages.posted]

    def write(self, name: str, text: str, mode: int = 0o600) -> None:
        """Writes a file beside the configurations."""
        file = self.folder / name
        file.touch(mode=0o600)
        file.write_text(text)
        file.chmod(mode)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        stand_ins = await stack.enter_async_context(run_stand_ins(slack_tokens=(TOKEN,), pagerduty_keys=(ROUTING_KEY,)))
        emulator = await stack.enter_async_context(run_emulator(keys=[KEY]))
        pages = Pages()
        pages.url = await stack.enter_async_context(serve_site(web.route("*", "/{path:.*}", pages.answer)))
        kms = {"key": KEY, "endpoint": str(emulator.address), "insecure": True}
        smtp = {"host": stand_ins.smtp.host, "port": stand_ins.smtp.port, "tls": "none"}
        channels = {
            "slack": {
                "kind": "slack",
                "channel": "#security-ops",
                "token_file": "slack_token",
                "api_url": stand_ins.slack_api_url,
            },
            "pager": {"kind": "pagerduty", "routing_key_file": "pagerduty_key", "url": stand_ins.pagerduty_url},
            "mail": {"kind": "email", **smtp, "from": "a@example.org", "to": ["b@example.org", "c@example.org"]},
            "hook": {"kind": "webhook", "url": f"{pages.url}/hook"},
        }
        relay = {
            "environment": "demo",
            "database": "sqlite:///relay.db",
            "auth": {
                "bearer_token_file": "relay_token",
                "public_url": "https://relay.keypulse.test",
                "oidc": {
                    "issuer": f"{pages.url}/issuer/",
                    "client_id": "keypulse",
                    "client_secret_file": "oidc_secret",
                    "roles": {"sre": "responder"},
                },
            },
            "alertmanager": {"urls": [pages.url]},
            "messages": {"runbook": f"{pages.url}/steps", "prometheus_url": pages.url},
            "links": {"runbook": f"{pages.url}/runbook#{{alertname}}", "dashboard": f"{pages.url}/dashboard"},
            "routes": [{"receiver": "kms-critical", "channels": ["slack"]}],
            "watchdogs": [
                {
                    "matchers": ['alertname="Watchdog"'],
                    "expect_every": "5m",
                    "channels": ["slack"],
                    "ping_url_file": "ping_url",
                }
            ],
            "channels": channels,
            "default_channels": ["slack"],
        }
        documents = {"health_url": f"{pages.url}/healthz", "metrics_url": f"{pages.url}/metrics"}
        exporter = {
            "service": "backend",
            "probe": {"timeout": "20s"},
            "targets": [{"name": "ledger", "canary_dir": "canaries", **kms}],
            "backends": [documents],
            "runbook_url": f"{pages.url}/runbook",
        }
        backend = {"database": "sqlite:///backend.db", "kms": kms, "local_key_file": "local.key"}
        rotator = {
            "driver": {"kind": "sql", "database": "sqlite:///keyring.db"},
            "kms": kms,
            "state_dir": "rotator",
        }
        (tmp_path / "canaries").mkdir()
        found = World(tmp_path, stand_ins, emulator, pages, relay, exporter, backend, rotator)
        found.write("relay_token", "a-token-of-alertmanager")
        found.write("oidc_secret", "secret-of-oidc")
        pages.answers["/issuer/.well-known/openid-configuration"] = 200, describe_provider(f"{pages.url}/issuer/")
        pages.answers["/issuer/keys"] = 200, f'{{"keys": [{SIGNING_KEY}]}}'
        found.write("slack_token", TOKEN)
        found.write("pagerduty_key", ROUTING_KEY)
        found.write("ping_url", f"{pages.url}/ping/secret-of-ping")
        yield found


@pytest.mark.parametrize("service", ["relay", "exporter", "backend"])
async def test_a_configuration_that_works_passes_every_check_and_nothing_is_sent(service: str, world: World) -> None:
    results = await world.examine(service)
    assert [format_line(result) for result in results if not result.is_ok] == []
    assert len(results) >= 4
    assert world.sent == []
    created = {file.name for file in world.folder.iterdir()}
    assert created == {
        f"{service}.yml",
        "canaries",
        "relay_token",
        "oidc_secret",
        "slack_token",
        "pagerduty_key",
        "ping_url",
    }


async def test_each_channel_that_proves_no_more_than_that_it_is_reachable_has_a_line(world: World) -> None:
    world.relay["proof"] = {"slack_channel": "#proofs"}
    lines = [format_line(result) for result in await world.examine("relay") if result.name.endswith(" proof")]
    assert lines == [
        "- channels.hook proof: no more than `reachable`: whatever it sends is a message",
        "- channels.mail proof: no more than `reachable`: set `proof.mail_to`, who get a mail with each proof",
        "- channels.pager proof: no more than `reachable`: set `proof.pagerduty_changes`, which sends change events",
    ]


async def test_a_database_that_exists_is_read_and_left_as_it_is(world: World) -> None:
    database = create_sqlite_url(world.folder / "relay.db")
    async with open_store(database, time.time):
        pass
    file = world.folder / "relay.db"
    before = file.read_bytes(), file.stat().st_mtime_ns, sorted(world.folder.iterdir())
    (tables,) = [result for result in await world.examine("relay") if result.name == "database tables"]
    (world.folder / "relay.yml").unlink()
    assert (tables.is_ok, tables.detail) == (True, "its tables are up to date")
    assert (file.read_bytes(), file.stat().st_mtime_ns, sorted(world.folder.iterdir())) == before


async def test_a_database_that_is_in_use_is_read_and_left_as_it_is(world: World) -> None:
    async with open_store(create_sqlite_url(world.folder / "relay.db"), time.time):
        before = sorted(world.folder.glob("relay.db*"))
        (tables,) = [result for result in await world.examine("relay") if result.name == "database tables"]
        assert (tables.is_ok, tables.detail) == (True, "its tables are up to date")
        assert sorted(world.folder.glob("relay.db*")) == before


async def test_a_receiver_that_no_route_of_the_relay_serves_is_named(world: World) -> None:
    async def examine() -> CheckResult:
        (line,) = [each for each in await world.examine("relay") if each.name == "alertmanager.urls.0 receivers"]
        return line

    line = await examine()
    assert line.detail == (
        "no route of the relay serves kms-security: "
        "what leads here, except heartbeats and proofs, goes to `default_channels`"
    )
    world.relay["routes"].append({"matchers": ['severity="info"'], "channels": ["slack"]})
    line = await examine()
    assert line.detail.startswith("no route of the relay serves kms-security")
    world.relay["routes"][1]["matchers"] = []
    line = await examine()
    assert line.detail == "each of kms-critical, kms-security has a route of the relay"
    world.relay["routes"] = []
    world.pages.alertmanager = "route: {receiver: x}\nreceivers: [{name: x}]"
    line = await examine()
    assert (line.is_ok, line.detail) == (
        False,
        "no route leads to a receiver with a webhook that sends a token, so the relay gets nothing",
    )


async def test_a_proof_of_the_path_that_goes_to_people_is_named(world: World) -> None:
    world.pages.alertmanager = """
        route: {receiver: people, routes: [{matchers: ['severity="critical"'], receiver: relay}]}
        receivers:
          - {name: people, slack_configs: [{channel: '#alerts'}]}
          - {name: relay, webhook_configs: [{url: http://x, http_config: {authorization: {credentials: x}}}]}
    """
    for every, is_ok in ("15m", False), ("0", True):
        world.relay["proof"] = {"every": every}
        (line,) = [each for each in await world.examine("relay") if each.name == "alertmanager.urls.0 receivers"]
        assert (line.is_ok, "KMSPathProof goes to people" in line.detail) == (is_ok, not is_ok), line
    world.relay["proof"] = {"every": "15m"}
    world.pages.alertmanager = """
        route:
          receiver: relay
          routes:
            - {matchers: ['env!="production"'], receiver: people, continue: true}
            - {receiver: archive, continue: true}
            - {matchers: ['severity="none"'], receiver: relay}
        receivers:
          - {name: people, slack_configs: [{channel: '#alerts'}]}
          - {name: archive, webhook_configs: [{url: http://archive}]}
          - {name: relay, webhook_configs: [{url: http://x, http_config: {authorization: {credentials: x}}}]}
    """
    (line,) = [each for each in await world.examine("relay") if each.name == "alertmanager.urls.0 receivers"]
    assert line.is_ok, line
    both = "webhook_configs: [{url: http://x, http_config: {authorization: {credentials: x}}}]"
    world.pages.alertmanager = f"""
        route: {{receiver: relay}}
        receivers: [{{name: relay, {both}, slack_configs: [{{channel: '#alerts'}}]}}]
    """
    (line,) = [each for each in await world.examine("relay") if each.name == "alertmanager.urls.0 receivers"]
    assert "KMSPathProof goes to people by the receiver relay" in line.detail


async def test_each_line_that_a_wrong_endpoint_breaks_names_it(world: World) -> None:
    world.exporter["targets"][0]["endpoint"] = world.pages.url.removeprefix("http://")
    failed = [format_line(each) for each in await world.examine("exporter") if each.outcome is CheckOutcome.FAILED]
    assert len(failed) > 1
    assert [line for line in failed if "correct `endpoint` (127.0.0.1:" not in line] == []


async def test_a_watchdog_with_further_labels_takes_the_alert_watchdog(world: World) -> None:
    world.relay["watchdogs"][0]["matchers"] = ['alertname="Watchdog"', 'cluster="eu"', 'env=~"prod.*"']
    (line,) = [each for each in await world.examine("relay") if each.name == "watchdogs at alertmanager.urls.0"]
    assert line.is_ok, line


async def test_what_is_read_of_a_service_is_shown(world: World) -> None:
    world.exporter["backends"][0] |= {"health": {"mode": None, "ready": "/status", "values": {"ready": ["UP"]}}}
    for status, ready in (("UP", "ready"), ("DOWN", "not ready")):
        world.pages.answers["/healthz"] = 503, json.dumps({"status": status})
        (line,) = [each for each in await world.examine("exporter") if each.name == DOCUMENTS]
        assert line.detail == f'/status = "{status}": mode unknown, {ready}, with metrics'


Break = Callable[[World], object]


def edit(path: str, value: object) -> Break:
    """Sets a key of the configuration that is examined."""

    def change(world: World) -> None:
        *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
        node = getattr(world, world.service)
        for parent in parents:
            node = node[parent]
        node[last] = value

    return change


def write(name: str, text: str, mode: int = 0o600) -> Break:
    return lambda world: world.write(name, text, mode)


def remove(name: str) -> Break:
    return lambda world: (world.folder / name).unlink()


def answer(path: str, status: int, text: str = "") -> Break:
    return lambda world: world.pages.answers.update({path: (status, text)})


def scopes(*granted: str) -> Break:
    def change(world: World) -> None:
        world.stand_ins.slack.scopes = set(granted)

    return change


def slack_channel(**state: bool) -> Break:
    def change(world: World) -> None:
        channel = world.stand_ins.slack.channels["#security-ops"]
        for name, value in state.items():
            setattr(channel, name, value)

    return change


def receivers(text: str) -> Break:
    def change(world: World) -> None:
        world.pages.alertmanager = text

    return change


def provider(**changes: Any) -> Break:
    """Its discovery document says something else."""

    def change(world: World) -> None:
        issuer = f"{world.pages.url}/issuer/"
        document = describe_provider(issuer, **changes)
        world.pages.answers["/issuer/.well-known/openid-configuration"] = 200, document

    return change


def refuse_token(code: str) -> Break:
    fault = {"provider": Provider.SLACK, "kind": FaultKind.ERROR, "error": code, "count": 1}
    return lambda world: world.stand_ins.faults.add(ProviderFault.model_validate(fault))


def refuse_recipient(world: World) -> None:
    kind = {"provider": Provider.SMTP, "kind": FaultKind.REFUSE_RECIPIENT, "recipient": "c@example.org"}
    world.stand_ins.faults.add(ProviderFault.model_validate(kind))


def need_a_login(world: World) -> None:
    world.write("password", "secret-of-mail")
    world.relay["channels"]["mail"] |= {"username": "keypulse", "password_file": "password"}


def deny(world: World) -> None:
    world.emulator.faults.add(EmulatorFault(kind="denied", permission="cloudkms.cryptoKeys.get"))


def fill_database(name: str, *statements: str) -> Break:
    def change(world: World) -> None:
        with closing(sqlite3.connect(world.folder / name)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()
        (world.folder / name).chmod(0o600)

    return change


NOWHERE = "http://127.0.0.1:1"
TARGET, DOCUMENTS = "targets.0 (ledger)", "backends.0 (backend) documents"
# What is broken, the check that fails, what is wrong, what to do.
BROKEN: dict[str, list[tuple[Break, str, str, str]]] = {
    "relay": [
        (
            answer("/issuer/.well-known/openid-configuration", 404),
            "auth.oidc discovery",
            "HTTP 404",
            "auth.oidc.issuer",
        ),
        (
            provider(issuer="https://login.example.org"),
            "auth.oidc discovery",
            "names another issuer",
            "auth.oidc.issuer",
        ),
        (
            provider(code_challenge_methods_supported=["plain"]),
            "auth.oidc discovery",
            "does not support PKCE with S256",
            "allow it",
        ),
        (answer("/issuer/keys", 503), "auth.oidc keys", "HTTP 503", "jwks_uri"),
        (answer("/issuer/keys", 200, '{"keys": []}'), "auth.oidc keys", "no key of kind RSA, EC or OKP", "jwks_uri"),
        (remove("relay_token"), "auth.bearer_token_file", "No such file", "openssl rand -hex 32 >/"),
        (write("relay_token", "short"), "auth.bearer_token_file", "less than 16 characters", "expected a file"),
        (write("slack_token", TOKEN, 0o644), "channels.slack.token_file", "others may read it", "chmod o-rwx"),
        (
            write("slack_token", "https://hooks.slack.com/services/T0/B0/x"),
            "channels.slack.token_file",
            "holds a URL, such as that of an incoming webhook",
            "expected a bot token",
        ),
        (
            write("slack_token", "xoxb-revoked"),
            "channels.slack bot token",
            "Slack answered invalid_auth: Slack does not know the token",
            "bot token (xoxb-…)",
        ),
        (
            refuse_token("account_inactive"),
            "channels.slack bot token",
            "Slack answered account_inactive: the app was removed from the workspace",
            "install the app again, and copy its new token",
        ),
        (
            scopes("channels:read", "channels:history"),
            "channels.slack bot token",
            "lacks the scope chat:write",
            "install the app again",
        ),
        (
            edit("channels.slack.api_url", f"{NOWHERE}/api/"),
            "channels.slack bot token",
            "no connection",
            "check its address",
        ),
        (
            edit("channels.slack.proxy", NOWHERE),
            "channels.slack bot token",
            "the proxy 127.0.0.1:1 (proxy) cannot be reached",
            "DNS, firewall and proxy",
        ),
        (
            edit("channels.slack.channel", "#securty-ops"),
            "channels.slack channel",
            "no channel #securty-ops that the bot sees",
            "correct `channel`",
        ),
        (
            edit("channels.slack.channel", "C0123456789"),
            "channels.slack channel",
            "no channel C0123456789",
            "correct `channel`",
        ),
        (slack_channel(is_member=False), "channels.slack channel", "not a member of #security-ops", "/invite @"),
        (slack_channel(is_archived=True), "channels.slack channel", "#security-ops is archived", "unarchive it"),
        (
            scopes("chat:write"),
            "channels.slack channel",
            "cannot be read without channels:read and groups:read",
            "/invite @NAME-OF-THE-BOT, and run send-test",
        ),
        (
            write("pagerduty_key", "PABCDEF"),
            "channels.pager.routing_key_file",
            "32 letters and digits, and it has 7",
            "copy the integration key",
        ),
        (
            lambda world: edit("channels.pager.url", f"{world.pages.url}/runbook")(world),
            "channels.pager Events API",
            "is not PagerDuty's Events API",
            "correct `url`",
        ),
        (edit("channels.mail.port", 1), "channels.mail connection", "no connection", "check its address"),
        (edit("channels.mail.tls", "starttls"), "channels.mail connection", "STARTTLS", "correct the settings"),
        (need_a_login, "channels.mail login", "AUTH", "leave out `username`"),
        (refuse_recipient, "channels.mail recipients", "refuses c@example.org (550", "correct `to`"),
        (
            edit("channels.hook.url", "https://hook.invalid/x"),
            "channels.hook connection",
            "no connection",
            "check its address, then DNS",
        ),
        (answer("/hook", 502), "channels.hook connection", "HTTP 502", "see the log"),
        (edit("database", "sqlite:///away/relay.db"), "database", "does not exist", "mkdir -p"),
        (
            fill_database("relay.db", "CREATE TABLE customers (id INTEGER)"),
            "database tables",
            "another program's tables",
            "set another `database`",
        ),
        (write("relay.db-last-used", "1.0"), "database tables", "there was an outbox", "put relay.db back"),
        (
            edit("database", "postgresql://keypulse@127.0.0.1:1/relay"),
            "database tables",
            "refused",
            "correct `database`",
        ),
        (edit("alertmanager.urls", [NOWHERE]), "alertmanager.urls.0 API", "no connection", "correct the URL"),
        (edit("messages.runbook", "gone.md"), "messages.runbook", "gone.md: No such file", "expected a file"),
        (answer("/steps", 200, "read me"), "messages.runbook sections", "no section", "give each alert a heading"),
        (answer("/steps", 302, ""), "messages.runbook sections", "a redirect", "correct the path, the URL"),
        (answer("/api/v1/rules", 401, ""), "messages.prometheus_url API", "HTTP 401", "correct the URL, the token"),
        (
            edit("routes.0.receiver", "kms-critcal"),
            "routes.0.receiver at alertmanager.urls.0",
            "no receiver kms-critcal; it has kms-critical, kms-security",
            "correct the name",
        ),
        (
            receivers(RECEIVERS.replace('{receiver: kms-critical, matchers: [severity="critical"]}', "")),
            "routes.0.receiver at alertmanager.urls.0",
            "no route of Alertmanager leads to its receiver kms-critical",
            "add a route there",
        ),
        (
            receivers(RECEIVERS.replace("kms-critical, webhook_configs", "kms-critical, slack_configs")),
            "routes.0.receiver at alertmanager.urls.0",
            "receiver kms-critical has no webhook",
            "/relay_token}}}]}",
        ),
        (
            edit("watchdogs.0.matchers", ['alertname="DeadMansSwitch"']),
            "watchdogs at alertmanager.urls.0",
            "the alert Watchdog leads here, and is no heartbeat",
            "'alertname=\"Watchdog\"'",
        ),
        (
            receivers(WATCHDOG_GOES_ELSEWHERE),
            "watchdogs at alertmanager.urls.0",
            "no route leads the alert of Watchdog to a receiver with a webhook",
            "receiver: kms-critical, group_interval: 1m, repeat_interval: 1m}",
        ),
        (
            receivers(WATCHDOG_GOES_ELSEWHERE.replace("email_configs: [{to: ops@example.org}]", SWITCH)),
            "watchdogs at alertmanager.urls.0",
            "no route leads the alert of Watchdog to a receiver with a webhook that sends a token",
            "--merge FILE",
        ),
        (write("ping_url", "ping"), "watchdogs.0.ping_url_file", "expected an http:// or https:// URL", "correct"),
        (write("ping_url", f"{NOWHERE}/secret-of-ping"), "watchdogs.0 ping", "no connection to 127.0.0.1:1", "DNS"),
        (
            lambda world: world.write("ping_url", f"{world.pages.url.replace('http', 'https')}/secret-of-ping"),
            "watchdogs.0 ping",
            "no connection",
            "check its address",
        ),
        (answer("/runbook", 404), "links.runbook", "no such page (HTTP 404)", "correct the address"),
        (edit("links.dashboard", f"{NOWHERE}/d/x"), "links.dashboard", "does not answer", "correct the address"),
        (
            edit("links.dashboard", "https://grafana..ledger.test/d/x"),
            "links.dashboard",
            "grafana..ledger.test does not answer",
            "correct the address",
        ),
    ],
    "exporter": [
        (
            edit("targets.0.proxy", NOWHERE),
            f"{TARGET} connection",
            "no connection to the proxy 127.0.0.1:1 (proxy)",
            "check proxy and network to it",
        ),
        (edit("targets.0.key", f"{KEY}r"), f"{TARGET} round trip", "key_not_found", "gcloud kms keys list"),
        (
            deny,
            f"{TARGET} permission cloudkms.cryptoKeys.get",
            "the account does not have it",
            "grant the service account",
        ),
        (
            edit("targets.0.endpoint", "127.0.0.1:1"),
            f"{TARGET} connection",
            "refused",
            "correct `endpoint` (127.0.0.1:1), start what listens there",
        ),
        (
            lambda world: edit("targets.0.endpoint", world.pages.url.removeprefix("http://"))(world),
            f"{TARGET} round trip",
            "unavailable",
            "correct `endpoint` (127.0.0.1:",
        ),
        (
            edit("targets.0.canary_dir", "nowhere"),
            "targets.0.canary_dir",
            "no folder that this user may read and write",
            "mkdir -p",
        ),
        (
            answer("/healthz", 200, '{"status": "UP"}'),
            DOCUMENTS,
            "crypto_mode: missing; expected 'env' or 'kms'; it has /status = \"UP\"",
            "set `health: {mode: null, ready: /status, values: {ready: [UP]}}`",
        ),
        (answer("/healthz", 200, "Healthy"), DOCUMENTS, "invalid JSON", "set `health: status`"),
        (
            answer("/healthz", 200, '{"crypto_mode": "hsm", "crypto_ready": true}'),
            DOCUMENTS,
            "expected 'env' or 'kms'; it has /crypto_mode = \"hsm\"",
            "set `health: {values: {kms: [hsm]}}`",
        ),
        (
            edit("backends.0.health", {"values": {"kms": ["cloud"]}}),
            DOCUMENTS,
            "expected 'cloud' or 'env'; it has /crypto_mode = \"kms\"",
            "add the word to `health.values.kms`",
        ),
        (answer("/healthz", 401), DOCUMENTS, "HTTP 401", "`authorization`, `basic_auth`"),
        (answer("/healthz", 302), DOCUMENTS, "a redirect is not followed", "curl -sI URL"),
        (answer("/healthz", 404), DOCUMENTS, "HTTP 404", "correct the URL"),
        (
            edit("backends.0.health_url", f"{NOWHERE}/healthz"),
            DOCUMENTS,
            "cannot connect to 127.0.0.1:1",
            "start the service, or correct the URL",
        ),
        (answer("/metrics", 500), DOCUMENTS, "HTTP 500", "see the service's log"),
        (answer("/metrics", 200, 'crypto_init_timestamp_seconds "1"'), DOCUMENTS, "not in", "`metrics_url`"),
        (
            answer("/metrics", 200, "process_start_time_seconds 1\n"),
            DOCUMENTS,
            "none of the names that are read",
            "set `metrics` to the service's own names",
        ),
    ],
    "backend": [
        (write("local.key", "k" * 32, 0o644), "local_key_file", "others may read it", "chmod 600"),
        (edit("kms.key", f"{KEY}r"), "kms round trip", "key_not_found", "gcloud kms keys list"),
        (
            fill_database(
                "backend.db",
                "CREATE TABLE data_keys (id TEXT)",
                "CREATE TABLE keyring_schema (singleton INTEGER, version INTEGER)",
                "INSERT INTO keyring_schema VALUES (1, 9999)",
            ),
            "database tables",
            "another version of keypulse made its keyring: it is of version 9999",
            "run that version",
        ),
    ],
    "rotator": [
        (
            lambda _world: None,
            "driver keyring",
            "keyring.db: there is no such file",
            "expected the database of the service",
        ),
    ],
}


@pytest.mark.parametrize(
    ("service", "break_", "check", "error", "hint"),
    [
        pytest.param(service, *case, id=f"{service}-{number}-{case[1]}")
        for service, cases in BROKEN.items()
        for number, case in enumerate(cases, start=1)
    ],
)
async def test_what_is_broken_is_named_in_the_line_of_its_key_with_what_to_do(
    service: str, break_: Break, check: str, error: str, hint: str, world: World
) -> None:
    world.service = service
    break_(world)
    results = await world.examine(service)
    failed = {result.name: result for result in results if result.outcome is CheckOutcome.FAILED}
    assert check in failed, [format_line(result) for result in results]
    assert [format_line(result) for name, result in failed.items() if name not in _list_consequences(check)] == []
    line = format_line(failed[check])
    assert error in failed[check].detail, line
    assert hint in failed[check].hint, line
    assert failed[check].hint
    assert "\n" not in line
    for secret in (TOKEN, ROUTING_KEY, "secret-of-mail", "secret-of-ping", "xoxb-revoked"):
        assert not any(secret in format_line(result, verbose=True) for result in results)
    assert world.sent == []


def _list_consequences(check: str) -> set[str]:
    """The lines that may fail with it, for the same reason: a key that does not exist grants nothing."""
    if check == f"{TARGET} round trip":
        return {check, *(f"{TARGET} permission cloudkms.{each}" for each in PERMISSIONS)}
    return {check}


PERMISSIONS = (
    "cryptoKeyVersions.useToEncrypt",
    "cryptoKeyVersions.useToDecrypt",
    "cryptoKeys.get",
    "cryptoKeyVersions.list",
)
