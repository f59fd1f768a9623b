"""Channels of Slack that reach the stand-in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ops.demo.stand_ins.app import StandIns
from services.relay.channels.port import Channel
from tests.relay.channels.examples import example, settings
from tests.relay.channels.slack.slack_posts import CRITICAL, Connect


@pytest.fixture
async def connect(secret_file: Path, stand_ins: StandIns) -> AsyncIterator[Connect]:
    """Connects channels; each has no memory of another."""
    opened: list[Channel] = []

    def connect(channel: str = CRITICAL) -> Channel:
        values = {**example("slack", secret_file, stand_ins.http), "channel": channel}
        opened.append(settings(values).connect(5))
        return opened[-1]

    yield connect
    for channel in opened:
        await channel.close()
