"""A press counts for the episode whose button it is, whatever becomes of the incident until it is committed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.slack.workspace import TEAM, SlackMessage, create_message
from services.relay.acknowledgement.presses import PressHandler
from services.relay.acknowledgement.socket_mode import SlackWebApi
from services.relay.acknowledgement.store import Acknowledging
from services.relay.metrics import Metrics
from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.store import Store, open_store
from services.relay.silences.store import claim_silence
from shared.net.egress import EgressSettings
from shared.sql.database_url import DatabaseUrl
from tests.relay.acknowledgement.pressed_relay import ANNA, CRITICAL
from tests.relay.outbox.actions import accept, claim_one, end_attempt
from tests.relay.served_relay import event_of, until
from tests.stores import each_store

FIRES_NOW = "Nothing was done: episode 1 is over; the incident fires again as episode 2."


class Bot(SlackWebApi):
    """A bot whose workspace may answer late."""

    def __init__(self, api_url: str, token_file: Path) -> None:
        super().__init__(api_url, token_file, EgressSettings())
        self.is_waiting, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_answer.set()

    async def read_team(self) -> str:
        self.is_waiting.set()
        await self.may_answer.wait()
        return await super().read_team()


@dataclass
class Presses:
    """An incident `x` on a channel of Slack, and people who press its buttons."""

    store: Store
    stand_ins: StandIns
    bot: Bot
    handler: PressHandler

    async def send(self, episode: int, message: SlackMessage | None = None) -> SlackMessage:
        """The episode begins; its message, a new one unless another is edited into it."""
        channel = self.stand_ins.slack.channels[CRITICAL]
        message = message or self.stand_ins.slack.add_message(channel, create_message("x", []))
        await accept(self.store, "x", episode=episode)
        receipt = {"channel": channel.id, "ts": message.ts}
        await end_attempt(self.store, await claim_one(self.store), receipt=receipt)
        return message

    async def resolve(self) -> None:
        await accept(self.store, "x", is_open=False, event=event_of("resolved"))
        await end_attempt(self.store, await claim_one(self.store))

    async def press(self, message: SlackMessage, value: str, action: str = "acknowledge") -> bool:
        payload = {
            "type": "block_actions",
            "user": {"id": ANNA, "username": "anna", "team_id": TEAM},
            "team": {"id": TEAM},
            "container": {"channel_id": self.stand_ins.slack.channels[CRITICAL].id, "message_ts": message.ts},
            "actions": [{"action_id": action, "value": value, "action_ts": f"{time.monotonic()}"}],
        }
        return await self.handler.handle(msgspec.Raw(json.dumps(payload).encode()))

    async def list_actions(self) -> list[str]:
        return [entry.action for entry in (await OutboxAudit(self.store).list_entries(9, None))[0]]

    async def is_answered(self, *texts: str) -> None:
        """Returns once the person has these answers, and no others."""
        await until(lambda: len(self.stand_ins.slack.channels[CRITICAL].ephemeral) >= len(texts))
        assert [each.text for each in self.stand_ins.slack.channels[CRITICAL].ephemeral] == list(texts)


@pytest.fixture
async def presses(database: DatabaseUrl, stand_ins: StandIns, tmp_path: Path) -> AsyncIterator[Presses]:
    (tmp_path / "bot").write_text("xoxb-test")
    bot = Bot(stand_ins.slack_api_url, tmp_path / "bot")
    metrics = Metrics(CollectorRegistry())
    async with open_store(database, time.time) as store:
        acknowledging = Acknowledging(store, (), metrics, lambda _channels: None)
        handler = PressHandler(store, {"a": bot}, metrics, acknowledging, lambda: None)
        yield Presses(store, stand_ins, bot, handler)
        await handler.close()
        await bot.close()


@each_store
async def test_a_press_that_is_handled_while_the_next_episode_begins_acknowledges_nothing(presses: Presses) -> None:
    old = await presses.send(1)
    presses.bot.may_answer.clear()
    pressing = asyncio.create_task(presses.press(old, "x/1"))
    await presses.bot.is_waiting.wait()  # the relay has found the message by then
    await presses.resolve()
    new = await presses.send(2)
    presses.bot.may_answer.set()
    assert await pressing
    assert await presses.list_actions() == []
    await presses.is_answered(FIRES_NOW)

    assert await presses.press(new, "x/2")
    assert await presses.press(old, "x/1", "unacknowledge")
    await presses.is_answered(FIRES_NOW, FIRES_NOW)
    assert await presses.list_actions() == ["acknowledge"]


async def test_a_message_that_was_edited_into_the_next_episode_is_pressed_for_what_its_button_says(
    presses: Presses,
) -> None:
    message = await presses.send(1)
    await presses.resolve()
    await presses.send(2, message)
    assert await presses.press(message, "x/1")  # on a screen that has not got the edit yet
    await presses.is_answered(FIRES_NOW)
    assert await presses.press(message, "x/2")
    assert await presses.list_actions() == ["acknowledge"]


async def test_a_silence_is_of_the_episode_whose_button_was_pressed(presses: Presses) -> None:
    old = await presses.send(1)
    await presses.resolve()
    assert await presses.press(old, "x/1", "silence")
    over = "Nothing was done: episode 1 is over; the incident is resolved."
    await presses.is_answered(over)
    new = await presses.send(2)
    assert await presses.press(old, "x/1", "silence")
    await presses.is_answered(over, FIRES_NOW)
    assert await presses.press(new, "x/2", "silence")
    claimed = await claim_silence(presses.store, 60.0)
    assert claimed is not None
    assert claimed.episode == 2
