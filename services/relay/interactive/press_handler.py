"""What a press does: it counts only on a message that the relay has sent, and from the workspace of its bot."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from html import escape
from typing import Final, NamedTuple

import msgspec
import structlog

from services.relay.interactive.press import Action, Press, parse_press
from services.relay.interactive.web_api import SlackCallError, SlackWebApi
from services.relay.metrics import Metrics, PressOutcome
from services.relay.outbox.engine.store import Store
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.outbox.operators.acknowledgement import (
    Acknowledgement,
    EpisodeOverError,
    acknowledge,
    unacknowledge,
)
from services.relay.outbox.operators.sent_messages import SentMessage, find_message
from services.relay.outbox.operators.silences import SilenceRefusedError, SilenceRequest, request_silence
from services.relay.outbox.queries.incident_list import UnknownIncidentError
from services.relay.outbox.tables import clean_for_database
from shared.http.untrusted_json import UntrustedJsonError

_MAX_ANSWERS: Final = 32
_UNKNOWN: Final = "The relay knows no such message: nothing was done."
_FOREIGN: Final = "Only members of this workspace can do that."
_SILENCE_OFF: Final = "Silences by button are off."

log = structlog.get_logger(__name__)


class _Reply(NamedTuple):
    """What came of a press."""

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
        acknowledging_channels: those on which an acknowledgement is sent, such as PagerDuty's.
        wake_channels: called with the channels that have something new.
        wake_silences: called when a silence waits; None where silences are off.
    """

    def __init__(
        self,
        store: Store,
        bots: Mapping[str, SlackWebApi],
        metrics: Metrics,
        acknowledging_channels: Iterable[str],
        wake_channels: Callable[[Iterable[str]], None],
        wake_silences: Callable[[], None] | None,
    ) -> None:
        self._store = store
        self._bots = bots
        self._metrics = metrics
        self._acknowledging_channels = tuple(acknowledging_channels)
        self._wake_channels = wake_channels
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
        except (StoreUnavailableError, SlackCallError) as error:
            log.warning("a press was not acknowledged, so that Slack warns the person", error=str(error))
            self._metrics.count_press(press.action, PressOutcome.FAILED)
            return False
        self._metrics.count_press(press.action, reply.outcome)
        if reply.outcome is PressOutcome.REFUSED:
            log.warning(
                "a press was refused", action=press.action.value, who=press.who, peer=press.peer, error=reply.text
            )
        if reply.bot is not None and reply.text:
            self._answer_later(reply.bot, press, reply.text)
        return True

    async def _act(self, press: Press) -> _Reply:
        found = await self._find_message(press)
        if isinstance(found, _Reply):
            return found
        message, bot = found
        episode = press.episode or message.episode
        try:
            if press.action is Action.SILENCE:
                return await self._request_silence(press, message, episode, bot)
            changed = await self._acknowledge(press, episode)
        except (UnknownIncidentError, EpisodeOverError) as error:
            return _Reply(PressOutcome.REFUSED, f"Nothing was done: {error}.", bot)
        self._wake_channels(changed.channels_to_wake)
        if changed.is_changed:
            if press.action is Action.ACKNOWLEDGE:
                self._metrics.count_acknowledgement("slack")
            return _Reply(PressOutcome.DONE)
        unchanged = f"{changed.by} has acknowledged it already." if changed.by else "Nobody has acknowledged it."
        return _Reply(PressOutcome.UNCHANGED, unchanged, bot)

    async def _find_message(self, press: Press) -> tuple[SentMessage, SlackWebApi] | _Reply:
        """The message with the button, and the bot that has sent it; or why the press does not count."""
        incident_id = clean_for_database(press.incident_id)
        find = partial(find_message, incident_id=incident_id, slack_channel=press.channel, ts=press.ts)
        message = await self._store.read(find)
        bot = self._bots.get(message.channel) if message else None
        if message is None or bot is None:
            return _Reply(PressOutcome.REFUSED, _UNKNOWN, await self._find_bot_of_team(press))
        if not press.team or not press.team == press.user_team == await bot.read_team():
            return _Reply(PressOutcome.REFUSED, _FOREIGN, bot)
        return message, bot

    async def _find_bot_of_team(self, press: Press) -> SlackWebApi | None:
        """One that may answer a member of its workspace; None for anybody else."""
        for bot in self._bots.values():
            if press.team and press.team == press.user_team == await bot.read_team():
                return bot
        return None

    async def _acknowledge(self, press: Press, episode: int) -> Acknowledgement:
        if press.action is Action.UNACKNOWLEDGE:
            return await unacknowledge(
                self._store, press.incident_id, episode=episode, who=press.who, via="slack", peer=press.peer
            )
        return await acknowledge(
            self._store,
            press.incident_id,
            episode=episode,
            who=press.who,
            via="slack",
            peer=press.peer,
            acknowledging_channels=self._acknowledging_channels,
        )

    async def _request_silence(self, press: Press, message: SentMessage, episode: int, bot: SlackWebApi) -> _Reply:
        if self._wake_silences is None:
            return _Reply(PressOutcome.REFUSED, _SILENCE_OFF, bot)
        requested = SilenceRequest(
            id=press.id,
            incident_id=press.incident_id,
            episode=episode,
            who=press.who,
            peer=press.peer,
            channel=message.channel,
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
        """Answers no more."""
        for task in self._answers:
            task.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)


async def _answer(bot: SlackWebApi, press: Press, text: str) -> None:
    """Only the person sees it."""
    where = {"channel": press.channel, "user": press.user_id}
    try:
        await bot.call("chat.postEphemeral", **where, text=escape(text, quote=False), parse="none")
    except SlackCallError as error:
        log.warning("a person did not get the answer to a press", error=str(error), who=press.who, peer=press.peer)
