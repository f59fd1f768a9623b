"""Socket Mode: `apps.connections.open`, its WebSockets, and the presses that go through one of them.

Rules: https://docs.slack.dev/apis/events-api/using-socket-mode. At most 10 connections; each press goes to any one of
them, once, and is to be acknowledged by its `envelope_id` within 3 s. Nobody repeats it, not even where the connection
is half-open: Slack believes in it, and nobody reads it.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from aiohttp import WSMsgType, web

from ops.demo.stand_ins.slack.content import Json
from ops.demo.stand_ins.slack.workspace import TEAM, SlackChannelState, SlackMessage, SlackPerson, Workspace
from shared.config.settings import Address
from shared.http.server import bind_socket

MAX_CONNECTIONS = 10
MAX_TICKETS = 100
APP = "A0000000001"
_CONNECTION_SECONDS = 18_060
_CLOSE_SECONDS = 1.0


@dataclass
class SocketConnection:
    socket: web.WebSocketResponse
    number: int
    is_half_open: bool = False
    """Slack sends into it, and nothing of it arrives or comes back."""
    acknowledgements: dict[str, asyncio.Future[Json]] = field(default_factory=dict)


class SocketMode:
    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._tickets: set[str] = set()
        self._numbers = count(1)
        self._presses = count()
        self.connections: list[SocketConnection] = []
        self.acknowledge_seconds = 3.0
        self.presses: list[Json] = []
        """The payloads of all presses, the oldest first."""

    def open_connection(self, host: str, port: int) -> Json:
        """`apps.connections.open`: a URL that serves for one connection."""
        ticket = secrets.token_hex(8)
        if len(self._tickets) >= MAX_TICKETS:
            self._tickets.pop()
        self._tickets.add(ticket)
        return {"url": f"ws://{Address(host, port)}/link/?ticket={ticket}&app_id={APP}"}

    async def press(
        self, channel: SlackChannelState, message: SlackMessage, action_id: str, person: SlackPerson
    ) -> bool:
        """Press a button of a message; False where the app did not acknowledge it, of which Slack warns.

        Raises:
            KeyError: the message has no such button.
        """
        block, button = _find_button(message, action_id)
        payload = _build_payload(channel, message, block, button, person, self._workspace.clock())
        self.presses.append(payload)
        if not self.connections:
            return False
        connection = self.connections[next(self._presses) % len(self.connections)]
        return await self.send(connection, payload) is not None

    async def send(self, connection: SocketConnection, payload: Json) -> Json | None:
        """Send a payload into one connection; gives the acknowledgement, or None."""
        envelope_id = secrets.token_hex(16)
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        connection.acknowledgements[envelope_id] = answer
        envelope = {
            "envelope_id": envelope_id,
            "type": "interactive",
            "accepts_response_payload": False,
            "payload": payload,
        }
        try:
            async with asyncio.timeout(self.acknowledge_seconds):
                if not connection.is_half_open:
                    await connection.socket.send_json(envelope)
                return await answer
        except (TimeoutError, ConnectionError):
            return None
        finally:
            del connection.acknowledgements[envelope_id]

    async def disconnect(self, reason: str) -> None:
        """Send `disconnect` into every connection; after all but a `warning` they are closed."""
        for connection in list(self.connections):
            with suppress(ConnectionError):
                await connection.socket.send_json(_build_disconnect(reason))
            if reason != "warning":
                await connection.socket.close()

    def break_connection(self, number: int | None = None) -> None:
        """Make a connection half-open, by its number; None is the oldest one."""
        connection = next(each for each in self.connections if number in {None, each.number})
        connection.is_half_open = True

    def heal(self) -> None:
        """Slack notices which connections are half-open, and forgets them."""
        self.connections = [each for each in self.connections if not each.is_half_open]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        ticket = request.query.get("ticket", "")
        if ticket not in self._tickets:
            return web.Response(status=404)
        self._tickets.discard(ticket)
        socket = web.WebSocketResponse(autoping=False, timeout=_CLOSE_SECONDS)
        await socket.prepare(request)
        if len(self.connections) >= MAX_CONNECTIONS:
            await socket.send_json(_build_disconnect("too_many_websockets"))
            await socket.close()
            return socket
        connection = SocketConnection(socket, next(self._numbers))
        self.connections.append(connection)
        self._workspace.publish()
        try:
            await socket.send_json(self._build_hello())
            await self._read(connection)
        finally:
            # Of one that is half-open Slack does not see the end.
            if connection in self.connections and not connection.is_half_open:
                self.connections.remove(connection)
        return socket

    async def _read(self, connection: SocketConnection) -> None:
        async for message in connection.socket:
            if connection.is_half_open:
                continue
            if message.type is WSMsgType.PING:
                await connection.socket.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                with suppress(ValueError, AttributeError):
                    document = json.loads(message.data)
                    answer = connection.acknowledgements.get(document.get("envelope_id"))
                    if answer is not None and not answer.done():
                        answer.set_result(document)

    def _build_hello(self) -> Json:
        return {
            "type": "hello",
            "num_connections": len(self.connections),
            "connection_info": {"app_id": APP},
            "debug_info": {"host": "applink-stand-in", "approximate_connection_time": _CONNECTION_SECONDS},
        }


def _build_disconnect(reason: str) -> Json:
    return {"type": "disconnect", "reason": reason, "debug_info": {"host": "applink-stand-in"}}


def _find_button(message: SlackMessage, action_id: str) -> tuple[Json, Json]:
    attached = [block for attachment in message.attachments for block in attachment.get("blocks") or []]
    for block in [*message.blocks, *attached]:
        for element in [*block.get("elements", ()), block.get("accessory")]:
            if isinstance(element, dict) and element.get("action_id") == action_id and element["type"] == "button":
                return block, element
    raise KeyError(action_id)


def _build_payload(
    channel: SlackChannelState, message: SlackMessage, block: Json, button: Json, person: SlackPerson, now: float
) -> Json:
    container: dict[str, Any] = {"type": "message", "message_ts": message.ts, "channel_id": channel.id}
    if block not in message.blocks:
        container["type"] = "message_attachment"
    return {
        "type": "block_actions",
        "user": {"id": person.id, "username": person.name, "name": person.name, "team_id": person.team_id},
        "api_app_id": APP,
        "container": {**container, "is_ephemeral": False},
        "trigger_id": secrets.token_hex(8),
        "team": {"id": TEAM, "domain": "acme"},
        "channel": {"id": channel.id, "name": channel.name[1:]},
        "message": message.to_json(with_metadata=False),
        "actions": [
            {
                "type": "button",
                "action_id": button["action_id"],
                "block_id": block.get("block_id", "b0"),
                "text": button["text"],
                "value": button.get("value", ""),
                "action_ts": f"{now:.6f}",
            }
        ],
    }


@asynccontextmanager
async def serve_sockets(mode: SocketMode, address: Address) -> AsyncIterator[Address]:
    """Serve the WebSockets while the body runs; yield the real address (port 0 picks a free one)."""
    app = web.Application()
    app.router.add_get("/link/", mode.handle)
    with bind_socket(address) as bound:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_SECONDS)
        await runner.setup()
        try:
            await web.SockSite(runner, bound).start()
            yield Address(*bound.getsockname()[:2])
        finally:
            for connection in list(mode.connections):
                await connection.socket.close()
            await runner.cleanup()
