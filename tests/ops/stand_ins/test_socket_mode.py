"""Socket Mode of the stand-in Slack, as a client meets it."""

import asyncio
from typing import Any

import aiohttp
import pytest
from slack_sdk.web.async_client import AsyncWebClient

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.slack.socket_mode import MAX_CONNECTIONS
from tests.ops.stand_ins.test_slack import CRITICAL

BUTTON = {"type": "button", "action_id": "a", "value": "v", "text": {"type": "plain_text", "text": "A"}}


@pytest.fixture
def app(stand_ins: StandIns) -> AsyncWebClient:
    return AsyncWebClient(base_url=stand_ins.slack_api_url, retry_handlers=[])


async def open_url(app: AsyncWebClient) -> str:
    return str((await app.apps_connections_open(app_token="xapp-test"))["url"])


async def test_an_address_serves_for_one_connection_of_at_most_ten(
    app: AsyncWebClient, stand_ins: StandIns, http: aiohttp.ClientSession
) -> None:
    url = await open_url(app)
    sockets = [await http.ws_connect(url)]
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await http.ws_connect(url)
    sockets += [await http.ws_connect(await open_url(app)) for _ in range(MAX_CONNECTIONS - 1)]
    hellos = [await socket.receive_json() for socket in sockets]
    assert [(hello["type"], hello["num_connections"]) for hello in hellos] == [("hello", n + 1) for n in range(10)]
    eleventh = await http.ws_connect(await open_url(app))
    assert (await eleventh.receive_json())["reason"] == "too_many_websockets"
    assert (await eleventh.receive()).type is aiohttp.WSMsgType.CLOSE
    await asyncio.gather(*(socket.close() for socket in sockets))
    assert stand_ins.socket_mode.connections == []


async def test_a_press_goes_to_one_connection_once_and_awaits_its_acknowledgement(
    app: AsyncWebClient, slack: AsyncWebClient, stand_ins: StandIns, http: aiohttp.ClientSession
) -> None:
    posted = await slack.chat_postMessage(
        channel=CRITICAL, text="x", blocks=[{"type": "actions", "elements": [BUTTON]}]
    )
    press = {"action": "press", "channel": posted["channel"], "ts": posted["ts"], "action_id": "a"}

    async def act() -> Any:
        async with http.post("/api/slack", json=press) as answer:
            return await answer.json()

    assert await act() == {"acknowledged": False}  # nobody is connected
    async with http.ws_connect(await open_url(app)) as one, http.ws_connect(await open_url(app)) as two:
        for socket in (one, two):
            await socket.receive_json()
        for socket, seconds in ((one, 60.0), (two, 0.2)):  # in turns
            stand_ins.socket_mode.acknowledge_seconds = seconds
            pressing = asyncio.create_task(act())
            envelope = await socket.receive_json(timeout=20)
            assert envelope["type"] == "interactive"
            assert envelope["payload"]["container"]["message_ts"] == posted["ts"]
            assert envelope["payload"]["actions"][0]["value"] == "v"
            if socket is one:
                await socket.send_json({"envelope_id": "another"})
                await socket.send_json({"envelope_id": envelope["envelope_id"]})
            assert await pressing == {"acknowledged": socket is one}
        await stand_ins.socket_mode.disconnect("refresh_requested")
        assert (await one.receive_json(timeout=20))["reason"] == "refresh_requested"
    press["action_id"] = "b"
    assert "error" in await act()
