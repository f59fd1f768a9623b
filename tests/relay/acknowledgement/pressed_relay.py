"""Relays whose messages in the stand-in Slack have buttons that people press."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.slack.workspace import SlackMessage
from services.relay.config import RelaySettings
from services.relay.model import build_incident_id
from shared.sql.database_url import DatabaseUrl
from tests.relay.served_relay import TOKEN, event_of, post, served, until, webhook_of

CRITICAL = "#security-critical"
ANNA, BEN, GUEST, PARTNER = (f"U00000000{number}" for number in (11, 12, 13, 14))
ACTIONS = ("acknowledge", "unacknowledge", "silence")


def build_settings(
    folder: Path, stand_ins: StandIns, database: DatabaseUrl | None = None, **keys: Any
) -> RelaySettings:
    for name, value in {"token": TOKEN, "bot": "xoxb-test", "app": "xapp-test"}.items():
        (folder / name).write_text(value)
    slack = {"kind": "slack", "channel": CRITICAL, "token_file": folder / "bot", "api_url": stand_ins.slack_api_url}
    interactive = {"app_token_file": folder / "app", "api_url": stand_ins.slack_api_url, **keys.pop("interactive", {})}
    return RelaySettings(
        database=database.render_as_string(hide_password=False) if database else f"sqlite:///{folder}/relay.db",
        environment="staging",
        auth={"bearer_token_file": folder / "token"},
        channels={"slack": slack, **keys.pop("channels", {})},
        default_channels=["slack"],
        interactive=interactive,
        **keys,
    )


@dataclass
class PressedRelay:
    """A running relay, and what a person sees of it."""

    client: aiohttp.ClientSession
    stand_ins: StandIns

    async def fire(self, group: str = "one", episode: int = 1, **changes: Any) -> SlackMessage:
        """An incident fires; its message has arrived, with buttons."""
        messages = self.stand_ins.slack.channels[CRITICAL].messages
        before = len(messages)
        assert (await post(self.client, webhook_of(group=group, **changes)))[0] == 202
        await until(lambda: len(messages) > before)
        await self._settle()
        return add_buttons(messages[-1], group, episode)

    async def resolve(self, group: str = "one", **changes: Any) -> None:
        assert (await post(self.client, webhook_of("resolved", group=group, **changes)))[0] == 202
        await self._settle()

    async def _settle(self) -> None:
        """Until every receipt is committed."""

        async def is_settled() -> bool:
            rows = (await self.get("/api/deliveries"))["deliveries"]
            return all(row["state"] in {"delivered", "superseded"} for row in rows)

        await until(is_settled)

    async def press(self, message: SlackMessage, action: str, user: str = ANNA) -> bool:
        """Whether the press was acknowledged; Slack has at least one connection by then."""
        slack, mode = self.stand_ins.slack, self.stand_ins.socket_mode
        await until(lambda: bool(mode.connections))
        channel = next(each for each in slack.channels.values() if each.find(message.ts))
        return await mode.press(channel, message, action, slack.people[user])

    async def get(self, path: str) -> Any:
        async with self.client.get(path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def list_actions(self) -> list[tuple[str, str]]:
        """Who did what, the oldest first."""
        return [(row["who"], row["action"]) for row in reversed((await self.get("/api/audit"))["audit"])]

    @property
    def replies(self) -> list[str]:
        """What only one person sees in the channel, the oldest first."""
        return [message.text for message in self.stand_ins.slack.channels[CRITICAL].ephemeral]


def add_buttons(message: SlackMessage, group: str, episode: int = 1) -> SlackMessage:
    """The message as somebody sees it who has not reloaded it: with every button, whatever became of it since."""
    incident_id = build_incident_id(event_of(group=group))
    buttons = [
        {
            "type": "button",
            "action_id": each,
            "value": f"{incident_id}/{episode}",
            "text": {"type": "plain_text", "text": each},
        }
        for each in ACTIONS
    ]
    link = {
        "type": "button",
        "action_id": "runbook",
        "text": {"type": "plain_text", "text": "x"},
        "url": "https://a.org",
    }
    return replace(message, blocks=[{"type": "actions", "block_id": "test", "elements": [*buttons, link]}])


@asynccontextmanager
async def open_relay(settings: RelaySettings, stand_ins: StandIns) -> AsyncIterator[PressedRelay]:
    async with served(settings) as client:
        yield PressedRelay(client, stand_ins)
