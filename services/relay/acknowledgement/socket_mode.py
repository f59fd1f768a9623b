"""Slack's Socket Mode: a WebSocket to Slack that brings presses, replaced before and whenever it ends.

Rules: https://docs.slack.dev/apis/events-api/using-socket-mode. Slack sends each press to any one of at most 10
connections, once, and waits 3 s for its acknowledgement. So a press is acknowledged only after it is committed; else
Slack tells the person that the app did not respond. A connection that does not answer a ping in time is half-open, and
would swallow presses: it is replaced. Before Slack ends a connection it says so; the next one opens first.

Slack's own client is not used: it ignores NO_PROXY, tries a refused address for ever, and closes a connection before
the next one is open.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import structlog

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.channels.requests import call_provider, read_secret
from services.relay.channels.slack.web_api import SlackApi, SlackError
from services.relay.config import RelaySettings
from services.relay.http import HttpSession, translate_connection_errors
from services.relay.metrics import Metrics
from shared.config.secret_file import SecretFile
from shared.http.untrusted_json import UntrustedJsonError, decode_json
from shared.net.egress import EgressSettings
from shared.process.logs import describe_exception

CALL_TIMEOUT: Final = 10.0
_USUAL_WAIT: Final = 30.0
_MAX_WAIT: Final = 3600.0
"""Seconds after a rate limit."""


class SlackWebApi:
    def __init__(self, api_url: str, token_file: Path, egress: EgressSettings) -> None:
        self.api_url = api_url.rstrip("/") + "/"
        self.session = HttpSession("Slack", egress=egress)
        self.granted_scopes: frozenset[str] | None = None
        """The token's, by the last answer."""
        self._token = SecretFile(token_file)
        self._team_id: str | None = None

    async def call(self, method: str, **arguments: str) -> Mapping[str, Any]:
        """The answer to a call. Raises SendError."""
        async with call_provider(None, "Slack", CALL_TIMEOUT) as call:
            api = SlackApi(self.session, self.api_url, read_secret(self._token), call, time.time())
            try:
                return await api.submit(method, arguments)
            finally:
                self.granted_scopes = api.granted_scopes or self.granted_scopes

    async def read_team(self) -> str:
        """The ID of the token's workspace; read once. Raises SendError."""
        if self._team_id is None:
            self._team_id = str((await self.call("auth.test")).get("team_id") or "") or None
        return self._team_id or ""

    async def close(self) -> None:
        await self.session.close()


def open_bots(settings: RelaySettings, stack: AsyncExitStack) -> Mapping[str, SlackWebApi]:
    """The bot of each of the relay's channels of Slack, until the stack closes."""
    bots = {
        name: SlackWebApi(channel.api_url, channel.token_file, channel)
        for name, channel in settings.slack_bots.items()
        if channel.token_file is not None
    }
    for bot in bots.values():
        stack.push_async_callback(bot.close)
    return bots


_MAX_MESSAGE_BYTES: Final = 1024 * 1024
_MAX_PRESSES: Final = 32
"""Presses that are handled at once; of more than that Slack tells the person that the app did not respond."""
_MAX_CONNECTIONS: Final = 10
"""Of an app, by Slack's documents."""
_HINTS: Final = {
    "invalid_auth": "write the app-level token (xapp-…) into `interactive.app_token_file`",
    "not_allowed_token_type": "write the app-level token (xapp-…) into `interactive.app_token_file`",
    "missing_scope": "give the app-level token the scope connections:write",
    "link_disabled": "turn on Socket Mode in the app's settings",
    "too_many_websockets": "stop other programs that use this app",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SocketTimes:
    """Time limits, in seconds."""

    hello: float = 10.0
    """Until a connection is open, and Slack has said hello."""
    ping: float = 10.0
    """Of silence until a ping; half of it later a connection that did not answer is half-open."""
    handle: float = 2.5
    """For a press. Slack waits 3 s."""
    overlap: float = 30.0
    """In which a connection is read after the next one is open."""
    close: float = 2.0
    retry_initial: float = 1.0
    retry_max: float = 60.0
    stable: float = 30.0
    """A connection that ended sooner counts as a failure."""


class _Envelope(msgspec.Struct, gc=False):
    type: str
    envelope_id: str = ""
    reason: str = ""
    num_connections: int = 0
    payload: msgspec.Raw = msgspec.Raw(b"")


@dataclass(frozen=True, slots=True)
class _Connection:
    socket: aiohttp.ClientWebSocketResponse
    needs_successor: asyncio.Event
    """Set when it has ended, or is about to."""


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)


class SocketModeClient:
    """Receives presses while `run` runs."""

    def __init__(
        self,
        api: SlackWebApi,
        handle: Callable[[msgspec.Raw], Awaitable[bool]],
        metrics: Metrics,
        times: SocketTimes | None = None,
    ) -> None:
        self._api = api
        self._handle = handle
        self._metrics = metrics
        self._times = times or SocketTimes()
        self._open_count = 0
        self._presses = asyncio.Semaphore(_MAX_PRESSES)

    async def run(self) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        async with asyncio.TaskGroup() as tasks:
            while True:
                started_at, retry_after = loop.time(), 0.0
                try:
                    connection = await self._connect()
                except SendError as error:
                    if error.reason is SendReason.RATE_LIMITED:
                        retry_after = min(error.retry_after or _USUAL_WAIT, _MAX_WAIT)
                    hint = _HINTS.get(error.code) if isinstance(error, SlackError) else None
                    log.warning("no connection to Slack; it is tried again", error=str(error), hint=hint)
                else:
                    tasks.create_task(self._serve(connection, tasks))
                    await connection.needs_successor.wait()
                failures = 0 if loop.time() - started_at > self._times.stable else failures + 1
                await asyncio.sleep(max(retry_after, self._compute_delay(failures)))

    def _compute_delay(self, failures: int) -> float:
        """None after a connection that lasted; else longer each time, and not the same for all replicas."""
        if failures == 0:
            return 0.0
        delay = min(self._times.retry_initial * 2.0 ** min(failures - 1, 16), self._times.retry_max)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311  # no secret

    async def _connect(self) -> _Connection:
        """A connection on which Slack has said hello; each has another address. Raises SendError."""
        try:
            async with asyncio.timeout(self._times.hello):
                url = self._check_address(str((await self._api.call("apps.connections.open")).get("url")))
                with translate_connection_errors("Slack"):
                    socket = await self._api.session.open().ws_connect(
                        url,
                        heartbeat=self._times.ping,
                        max_msg_size=_MAX_MESSAGE_BYTES,
                        timeout=aiohttp.ClientWSTimeout(ws_close=self._times.close),
                    )
                return await self._receive_hello(socket)
        except TimeoutError:
            detail = f"Slack: no hello within {self._times.hello:g} s"
            raise SendError(SendReason.TIMEOUT, SendScope.ATTEMPT, detail) from None

    def _check_address(self, url: str) -> str:
        """As http(s), by which proxies are found. Plaintext only where the Web API is reached in plaintext, too.

        Raises:
            SendError: it is not the address of a WebSocket, or one in plaintext.
        """
        is_allowed = url.startswith("wss://" if self._api.api_url.startswith("https://") else ("ws://", "wss://"))
        if not is_allowed:
            detail = "Slack gave no address of a WebSocket with TLS"
            raise SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail)
        return f"http{url.removeprefix('ws')}"

    async def _receive_hello(self, socket: aiohttp.ClientWebSocketResponse) -> _Connection:
        try:
            envelope = _parse(await socket.receive())
        except BaseException:
            await socket.close()
            raise
        if envelope is None or envelope.type != "hello":
            await socket.close()
            code = envelope.reason if envelope is not None else ""
            detail = f"Slack ended the connection: {code or 'no hello'}"
            raise SlackError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, code=code)
        self._metrics.slack_connections.set(envelope.num_connections)
        log.info("connected to Slack", connections=envelope.num_connections)
        if envelope.num_connections >= _MAX_CONNECTIONS:
            log.warning(
                "Slack counts as many connections as it allows; some may be half-open, and swallow presses",
                connections=envelope.num_connections,
                hint=_HINTS["too_many_websockets"],
            )
        return _Connection(socket, asyncio.Event())

    async def _serve(self, connection: _Connection, tasks: asyncio.TaskGroup) -> None:
        """Reads a connection to its end; after Slack has announced the end, only for a while."""
        self._count_open(1)
        loop, socket = asyncio.get_running_loop(), connection.socket
        try:
            async with asyncio.timeout(None) as limit:
                while (envelope := _parse(await socket.receive())) is not None:
                    if envelope.type == "disconnect":
                        hint = _HINTS.get(envelope.reason)
                        log.info("Slack is about to end a connection", announced=envelope.reason, hint=hint)
                        connection.needs_successor.set()
                        limit.reschedule(loop.time() + self._times.overlap)
                    elif envelope.envelope_id:
                        tasks.create_task(self._answer(connection, envelope))
            if not connection.needs_successor.is_set():
                log.warning("the connection to Slack ended; the next one opens", close_code=socket.close_code)
        except TimeoutError:
            log.info("an old connection to Slack is closed; the next one is open")
        finally:
            self._count_open(-1)
            connection.needs_successor.set()
            await socket.close()

    async def _answer(self, connection: _Connection, envelope: _Envelope) -> None:
        """Handles a press, and acknowledges it if it is committed; all else is acknowledged at once."""
        try:
            if envelope.type == "interactive" and not await self._handle_in_time(envelope.payload):
                return
            await connection.socket.send_json({"envelope_id": envelope.envelope_id})
        except (ConnectionError, aiohttp.ClientError):
            log.warning("a press was committed, and could not be acknowledged: the connection to Slack has ended")
        except Exception as error:  # noqa: BLE001  # of one press must not end the others
            log.error("unexpected error while a press was handled", **describe_exception(error))  # noqa: TRY400  # its text may hold a secret

    async def _handle_in_time(self, payload: msgspec.Raw) -> bool:
        if self._presses.locked():
            log.warning("a press was not handled: too many came at once")
            return False
        async with self._presses:
            try:
                async with asyncio.timeout(self._times.handle):
                    return await self._handle(payload)
            except TimeoutError:
                log.warning("a press was not acknowledged: the outbox or Slack did not answer in time")
                return False

    def _count_open(self, change: int) -> None:
        self._open_count += change
        self._metrics.slack_connected.set(self._open_count > 0)


def _parse(message: aiohttp.WSMessage) -> _Envelope | None:
    """What Slack sent; None where the connection has ended, or where it is nothing of Slack's."""
    if message.type is not aiohttp.WSMsgType.TEXT:
        return None
    try:
        return decode_json(_ENVELOPE, message.data.encode())
    except UntrustedJsonError:
        return None
