"""The relay's monitors go by the proxy of their settings, and trust their authorities."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from services.relay.apis import AlertmanagerClient
from services.relay.config import RelaySettings
from services.relay.monitors.watchdog import DeadMansSwitch
from shared.config.settings import Address, load_settings
from tests.relay.monitors.monitored_outbox import MonitoredOutbox
from tests.shared.certificates import LOCALHOST, Authority
from tests.tinyproxy import TinyProxy, tinyproxy

STATUS = {"uptime": "2026-11-24T22:46:12Z"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def server(authority: Authority) -> AsyncIterator[Address]:
    """Answers as Alertmanager without alerts, and as a dead man's switch."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.json_response([] if request.path == "/api/v2/alerts" else STATUS)

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*authority.sign("server", *LOCALHOST))
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    yield Address("127.0.0.1", runner.addresses[0][1])
    await runner.cleanup()


def configured(folder: Path, server: Address, proxy: TinyProxy, authority: Authority) -> RelaySettings:
    network = {"proxy": proxy.url, "ca_file": str(authority.ca)}
    (folder / "ping").write_text(f"https://{server}/ping")
    heartbeat = {"matchers": ['alertname="Watchdog"'], "expect_every": "5m", "channels": ["log"]}
    document = {
        "auth": {"bearer_token_file": "token"},
        "alertmanager": {"urls": [f"https://{server}"], **network},
        "watchdogs": [{**heartbeat, "ping_url_file": "ping", **network}],
        "channels": {"log": {"kind": "log"}},
        "default_channels": ["log"],
    }
    (folder / "relay.yml").write_text(yaml.safe_dump(document))
    return load_settings(RelaySettings, folder / "relay.yml")


async def test_alertmanager_and_the_dead_mans_switch_are_reached_through_their_proxy(
    server: Address, authority: Authority, at: MonitoredOutbox, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(tinyproxy(tmp_path))
        settings = configured(tmp_path, server, proxy, authority)
        peer = AlertmanagerClient(settings.alertmanager.urls[0], None, settings.alertmanager)
        stack.push_async_callback(peer.close)
        assert (await peer.read_state()).labels_by_fingerprint == {}
        assert proxy.requests == [f"CONNECT {server}"]
        (watchdog,) = settings.watchdogs
        assert watchdog.ping_url_file
        switch = DeadMansSwitch("Watchdog", watchdog.ping_url_file, at.store, ["log"], watchdog)
        stack.push_async_callback(switch.close)
        switch.record_heartbeat()
        await switch.ping_after_heartbeat()
        assert proxy.requests == [f"CONNECT {server}"] * 2
