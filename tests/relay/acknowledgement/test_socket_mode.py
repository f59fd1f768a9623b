"""The connection to Slack: one that swallows presses is replaced, and one that ends has a successor; none is left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from ops.demo.stand_ins.slack.socket_mode import MAX_CONNECTIONS
from ops.demo.stand_ins.slack.workspace import PEOPLE, create_message
from services.relay.acknowledgement.socket_mode import SlackWebApi, SocketModeClient, SocketTimes
from services.relay.channels.port import SendError
from services.relay.metrics import Metrics
from shared.net.egress import EgressSettings
from tests.relay.acknowledgement.pressed_relay import CRITICAL, add_buttons
from tests.relay.served_relay import until

QUICK = SocketTimes(close=0.2, retry_initial=0.01, retry_max=0.05, stable=0.0, overlap=2.0)
Handle = Callable[[msgspec.Raw], Awaitable[bool]]
Open = Callable[..., AbstractAsyncContextManager[CollectorRegistry]]


@pytest.fixture
def open_client(tmp_path: Path, stand_ins: StandIns) -> Open:
    (tmp_path / "app").write_text("xapp-test")

    @asynccontextmanager
    async def open_client(handle: Handle, times: SocketTimes = QUICK) -> AsyncIterator[CollectorRegistry]:
        registry = CollectorRegistry()
        api = SlackWebApi(stand_ins.slack_api_url, tmp_path / "app", EgressSettings())
        client = SocketModeClient(api, handle, Metrics(registry), times)
        running = asyncio.create_task(client.run())
        try:
            yield registry
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await api.close()
        await until(lambda: stand_ins.socket_mode.connections == [])

    return open_client


async def press(stand_ins: StandIns, seconds: float = 30.0) -> bool:
    """Whether it is acknowledged within so many seconds."""
    stand_ins.socket_mode.acknowledge_seconds = seconds
    channel = stand_ins.slack.channels[CRITICAL]
    message = add_buttons(stand_ins.slack.add_message(channel, create_message("x", [])), "one")
    return await stand_ins.socket_mode.press(channel, message, "acknowledge", PEOPLE[0])


async def accept(_payload: msgspec.Raw) -> bool:
    return True


async def test_a_half_open_connection_is_noticed_and_replaced(open_client: Open, stand_ins: StandIns) -> None:
    mode = stand_ins.socket_mode
    async with open_client(accept, replace(QUICK, ping=1.0)) as registry:
        await until(lambda: len(mode.connections) == 1)
        assert await press(stand_ins)
        mode.break_connection()
        assert not await press(stand_ins, 0.1)  # swallowed: nothing of it arrives
        await until(lambda: len(mode.connections) == 2)
        # Slack goes on to count the old one, and says so, until it notices by itself.
        await until(lambda: registry.get_sample_value("relay_slack_connections") == 2)
        mode.heal()
        assert [connection.number for connection in mode.connections] == [2]
        assert await press(stand_ins)
        assert registry.get_sample_value("relay_slack_connected") == 1


async def test_the_next_connection_opens_before_the_old_one_ends(open_client: Open, stand_ins: StandIns) -> None:
    mode = stand_ins.socket_mode
    async with open_client(accept):
        await until(lambda: len(mode.connections) == 1)
        first = mode.connections[0]
        await mode.disconnect("warning")
        await until(lambda: len(mode.connections) == 2)
        for connection in mode.connections:  # both are read
            assert await mode.send(connection, {"type": "block_actions"}) is not None
        await until(lambda: first not in mode.connections)  # closed by the client, although Slack did not
        await mode.disconnect("refresh_requested")
        await until(lambda: [each.number for each in mode.connections] == [3])
        assert await press(stand_ins)


async def test_only_what_is_committed_is_acknowledged_and_one_press_hinders_no_other(
    open_client: Open, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [asyncio.sleep(0, False), asyncio.sleep(3600, True), _fail(), asyncio.sleep(0, True)]  # noqa: FBT003  # their results

    async def handle(_payload: msgspec.Raw) -> bool:
        return await steps.pop(0)

    async with open_client(handle, replace(QUICK, handle=0.1)):
        await until(lambda: bool(stand_ins.socket_mode.connections))
        answers = [await press(stand_ins, seconds) for seconds in (0.3, 0.3, 0.3, 30.0)]
    assert answers == [False, False, False, True]
    assert "a press was not acknowledged: the outbox or Slack did not answer in time" in capsys.readouterr().out


async def _fail() -> bool:
    raise RuntimeError("a defect")


async def test_it_goes_on_until_slack_accepts_it(
    open_client: Open, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    mode, slack = stand_ins.socket_mode, stand_ins.slack
    slack.app_scopes.clear()
    refused = {"kind": FaultKind.STATUS, "method": "apps.connections.open", "count": 1}
    stand_ins.faults.add(ProviderFault(provider=Provider.SLACK, **refused))
    async with open_client(accept) as registry:
        await until(lambda: "scope connections:write" in capsys.readouterr().out)
        assert registry.get_sample_value("relay_slack_connected") == 0
        slack.app_scopes.add("connections:write")
        await until(lambda: len(mode.connections) == 1)
        assert await press(stand_ins)


async def test_a_connection_beyond_the_tenth_is_refused_and_retried(
    open_client: Open, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    mode = stand_ins.socket_mode
    async with open_client(accept):
        await until(lambda: len(mode.connections) == 1)
        (connection,) = mode.connections
        mode.connections = [replace(connection, is_half_open=True)] * MAX_CONNECTIONS
        await connection.socket.close()
        await until(lambda: "stop other programs that use this app" in capsys.readouterr().out)
        assert len(mode.connections) == MAX_CONNECTIONS
        mode.heal()
        await until(lambda: len(mode.connections) == 1)


@pytest.mark.parametrize(("no_proxy", "requested"), [("", [b"CONNECT wss.slack.invalid:443"]), ("slack.invalid", [])])
async def test_the_websocket_goes_through_the_proxy_of_the_environment_like_every_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_proxy: str, requested: list[bytes]
) -> None:
    connects: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connects.append((await reader.readline()).rpartition(b" ")[0])
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()

    class Opened(SlackWebApi):
        async def call(self, method: str, **_arguments: str) -> dict[str, str]:
            return {"url": "wss://wss.slack.invalid/link/?ticket=1"} if method == "apps.connections.open" else {}

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", no_proxy)
        (tmp_path / "app").write_text("xapp-test")
        api = Opened("https://slack.com/api/", tmp_path / "app", EgressSettings())
        client = SocketModeClient(api, accept, Metrics(CollectorRegistry()), QUICK)
        with pytest.raises(SendError, match="proxy" if requested else "no connection"):
            await client._connect()
        await api.close()
    assert connects == requested


@pytest.mark.parametrize("url", ["ws://wss.slack.com/link", "https://wss.slack.com/link", "file:///etc/passwd", "None"])
async def test_only_a_websocket_with_tls_is_opened_where_slack_is_reached_by_tls(tmp_path: Path, url: str) -> None:
    class Opened(SlackWebApi):
        async def call(self, method: str, **_arguments: str) -> dict[str, str]:
            return {"url": url} if method == "apps.connections.open" else {}

    api = Opened("https://slack.com/api/", tmp_path / "app", EgressSettings())
    client = SocketModeClient(api, accept, Metrics(CollectorRegistry()), QUICK)
    with pytest.raises(SendError, match="no address of a WebSocket with TLS"):
        await client._connect()
