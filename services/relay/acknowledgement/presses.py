"""Presses of buttons in Slack: each counts only on a message that the relay has sent, and from its bot's workspace.

A message is there, and can be pressed, before all that belongs into its thread is: then its delivery has no receipt
yet, and its progress says where it is.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from html import escape
from typing import Final, NamedTuple

import msgspec
import structlog
from sqlalchemy import Connection, bindparam, or_, select

from services.relay.acknowledgement.socket_mode import SlackWebApi, SocketModeClient, open_bots
from services.relay.acknowledgement.store import Acknowledging, EpisodeOverError
from services.relay.channels.port import SendError
from services.relay.config import RelaySettings
from services.relay.incidents.queries import UnknownIncidentError
from services.relay.metrics import Metrics, PressOutcome
from services.relay.outbox.store import Store, StoreUnavailableError
from services.relay.outbox.tables import clean_for_database, deliveries
from services.relay.silences.store import SilenceRefusedError, SilenceRequest, request_silence
from services.relay.text import clean_line, truncate
from shared.http.untrusted_json import UntrustedJsonError, decode_json
from shared.process.concurrency import run_beside
from shared.sql.rows import RowQuery

_MAX_NAME: Final = 80
"""Characters of a person's name."""


class Action(StrEnum):
    """What a button does: its `action_id`."""

    ACKNOWLEDGE = "acknowledge"
    UNACKNOWLEDGE = "unacknowledge"
    SILENCE = "silence"


@dataclass(frozen=True, slots=True)
class Press:
    """One press of one of the relay's buttons."""

    id: str
    """The same for one press, however often it arrives."""
    action: Action
    incident_id: str
    episode: int
    """The one that the message with the button shows: it may have been edited into the next one's since."""
    user_id: str
    who: str
    """The person's name in Slack."""
    user_team: str
    team: str
    """The workspace's, which a person of a partner does not belong to."""
    channel: str
    """Slack's ID."""
    ts: str

    @property
    def peer(self) -> str:
        """The person by Slack's ID, as `allow_users` has it: for the audit and the log, since names are not unique."""
        return f"slack:{self.user_id}"


class _User(msgspec.Struct, gc=False):
    id: str
    team_id: str = ""
    username: str = ""


class _Team(msgspec.Struct, gc=False):
    id: str


class _Container(msgspec.Struct, gc=False):
    channel_id: str = ""
    message_ts: str = ""


class _Action(msgspec.Struct, gc=False):
    action_id: str
    value: str = ""
    action_ts: str = ""


class _Payload(msgspec.Struct, gc=False):
    type: str
    user: _User | None = None
    team: _Team | None = None
    container: _Container | None = None
    actions: list[_Action] = []


_PAYLOAD: Final = msgspec.json.Decoder(_Payload)


def parse_press(payload: bytes | msgspec.Raw) -> Press | None:
    """The press of one of the relay's buttons; None for all else, such as a button with a link.

    Raises:
        UntrustedJsonError: it is no payload of Slack.
    """
    document = decode_json(_PAYLOAD, payload)
    action = next((each for each in document.actions if each.action_id in set(Action)), None)
    shown = re.fullmatch("(.+)/([1-9][0-9]{0,8})", action.value) if action else None
    user, container = document.user, document.container
    if document.type != "block_actions" or action is None or shown is None or user is None or container is None:
        return None
    parts = (user.id, container.channel_id, container.message_ts, action.action_id, action.value, action.action_ts)
    return Press(
        id=hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:32],
        action=Action(action.action_id),
        incident_id=shown[1],
        episode=int(shown[2]),
        user_id=user.id,
        who=truncate(clean_line(user.username or user.id), _MAX_NAME),
        user_team=user.team_id,
        team=document.team.id if document.team else "",
        channel=container.channel_id,
        ts=container.message_ts,
    )


_delivery = deliveries.c


class _MessageRow(NamedTuple):
    """A delivery that may have sent a message."""

    channel: str
    receipt: str | None
    progress: str | None


_MESSAGES: Final = RowQuery(_MessageRow, select(_delivery.channel, _delivery.receipt, _delivery.progress)).where(
    _delivery.incident_id == bindparam("incident"),
    or_(
        _delivery.receipt.like(bindparam("pattern"), escape="\\"),
        _delivery.progress.like(bindparam("pattern"), escape="\\"),
    ),
)


def find_channel(connection: Connection, incident_id: str, slack_channel: str, ts: str) -> str | None:
    """The relay's channel that sent a message of an incident; None if the relay knows of no such message."""
    if not ts.replace(".", "").isdecimal():
        return None
    for row in _MESSAGES.fetch_all(connection, {"incident": incident_id, "pattern": f"%{ts}%"}):
        locations = [json.loads(each or "{}") for each in (row.receipt, row.progress)]
        if any((location.get("channel"), location.get("ts")) == (slack_channel, ts) for location in locations):
            return row.channel
    return None


_MAX_ANSWERS: Final = 32
_UNKNOWN: Final = "The relay knows no such message: nothing was done."
_FOREIGN: Final = "Only members of this workspace can do that."
_SILENCE_OFF: Final = "Silences by button are off."

log = structlog.get_logger(__name__)


class _Reply(NamedTuple):
    outcome: PressOutcome
    text: str = ""
    """What only the person gets to read; empty for nothing."""
    bot: SlackWebApi | None = None
    """Who says it; None where nobody does."""


class PressHandler:
    """Handles presses.

    Args:
        store: the outbox.
        bots: the bot of each of the relay's channels of Slack.
        metrics: counts presses.
        acknowledging: acknowledges and withdraws.
        wake_silences: called when a silence waits; None where silences are off.
    """

    def __init__(
        self,
        store: Store,
        bots: Mapping[str, SlackWebApi],
        metrics: Metrics,
        acknowledging: Acknowledging,
        wake_silences: Callable[[], None] | None,
    ) -> None:
        self._store = store
        self._bots = bots
        self._metrics = metrics
        self._acknowledging = acknowledging
        self._wake_silences = wake_silences
        self._answers: set[asyncio.Task[None]] = set()

    async def handle(self, payload: msgspec.Raw) -> bool:
        """Handle what Slack sent; whether to acknowledge it: not before it is committed."""
        try:
            press = parse_press(payload)
        except UntrustedJsonError as error:
            log.warning("Slack sent something that is no press", error=str(error))
            return True
        if press is None:
            return True
        try:
            reply = await self._act(press)
        except (StoreUnavailableError, SendError) as error:
            log.warning("a press was not acknowledged, so that Slack warns the person", error=str(error))
            self._metrics.presses.labels(press.action, PressOutcome.FAILED).inc()
            return False
        self._metrics.presses.labels(press.action, reply.outcome).inc()
        if reply.outcome is PressOutcome.REFUSED:
            log.warning(
                "a press was refused", action=press.action.value, who=press.who, peer=press.peer, error=reply.text
            )
        if reply.bot is not None and reply.text:
            self._answer_later(reply.bot, press, reply.text)
        return True

    async def _act(self, press: Press) -> _Reply:
        found = await self._find_sender(press)
        if isinstance(found, _Reply):
            return found
        channel, bot = found
        try:
            if press.action is Action.SILENCE:
                return await self._request_silence(press, channel, bot)
            changed = await self._acknowledging.change(
                press.incident_id,
                withdraws=press.action is Action.UNACKNOWLEDGE,
                episode=press.episode,
                who=press.who,
                via="slack",
                peer=press.peer,
            )
        except (UnknownIncidentError, EpisodeOverError) as error:
            return _Reply(PressOutcome.REFUSED, f"Nothing was done: {error}.", bot)
        if changed.is_changed:
            return _Reply(PressOutcome.DONE)
        unchanged = f"{changed.by} has acknowledged it already." if changed.by else "Nobody has acknowledged it."
        return _Reply(PressOutcome.UNCHANGED, unchanged, bot)

    async def _find_sender(self, press: Press) -> tuple[str, SlackWebApi] | _Reply:
        """The channel that has sent the message with the button, and its bot; or why the press does not count."""
        incident_id = clean_for_database(press.incident_id)
        find = partial(find_channel, incident_id=incident_id, slack_channel=press.channel, ts=press.ts)
        channel = await self._store.read(find)
        bot = self._bots.get(channel) if channel else None
        if channel is None or bot is None:
            return _Reply(PressOutcome.REFUSED, _UNKNOWN, await self._find_bot_of_team(press))
        if not press.team or not press.team == press.user_team == await bot.read_team():
            return _Reply(PressOutcome.REFUSED, _FOREIGN, bot)
        return channel, bot

    async def _find_bot_of_team(self, press: Press) -> SlackWebApi | None:
        """One that may answer a member of its workspace; None for anybody else."""
        for bot in self._bots.values():
            if press.team and press.team == press.user_team == await bot.read_team():
                return bot
        return None

    async def _request_silence(self, press: Press, channel: str, bot: SlackWebApi) -> _Reply:
        if self._wake_silences is None:
            return _Reply(PressOutcome.REFUSED, _SILENCE_OFF, bot)
        requested = SilenceRequest(
            id=press.id,
            incident_id=press.incident_id,
            episode=press.episode,
            who=press.who,
            peer=press.peer,
            channel=channel,
            slack_channel=press.channel,
            thread=press.ts,
            user_id=press.user_id,
        )
        try:
            is_new = await request_silence(self._store, requested)
        except SilenceRefusedError as error:
            return _Reply(PressOutcome.REFUSED, str(error), bot)
        self._wake_silences()
        return _Reply(PressOutcome.DONE if is_new else PressOutcome.UNCHANGED)

    def _answer_later(self, bot: SlackWebApi, press: Press, text: str) -> None:
        """After the acknowledgement, which has 3 s."""
        if len(self._answers) < _MAX_ANSWERS:
            task = asyncio.create_task(_answer(bot, press, text))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def close(self) -> None:
        for task in self._answers:
            task.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)


async def _answer(bot: SlackWebApi, press: Press, text: str) -> None:
    where = {"channel": press.channel, "user": press.user_id}
    try:
        await bot.call("chat.postEphemeral", **where, text=escape(text, quote=False), parse="none")
    except SendError as error:
        log.warning("a person did not get the answer to a press", error=str(error), who=press.who, peer=press.peer)


@asynccontextmanager
async def run_presses(
    settings: RelaySettings,
    store: Store,
    metrics: Metrics,
    acknowledging: Acknowledging,
    wake_silences: Callable[[], None] | None,
) -> AsyncIterator[None]:
    """Handles presses while the body runs; without an app-level token there are none."""
    interactive = settings.interactive
    if interactive.app_token_file is None:
        yield
        return
    async with AsyncExitStack() as stack:
        bots = open_bots(settings, stack)
        app = SlackWebApi(interactive.api_url, interactive.app_token_file, interactive)
        stack.push_async_callback(app.close)
        wake_silences = wake_silences if interactive.silence.is_enabled else None
        handler = PressHandler(store, bots, metrics, acknowledging, wake_silences)
        stack.push_async_callback(handler.close)
        await stack.enter_async_context(run_beside(SocketModeClient(app, handler.handle, metrics).run()))
        yield
