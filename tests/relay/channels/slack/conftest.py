"""Channels of Slack that reach the stand-in."""

from pathlib import Path
from typing import Any

import pytest

from ops.demo.stand_ins.app import StandIns
from services.relay.channels.port import Channel
from tests.relay.channels.conftest import OpenChannel
from tests.relay.channels.examples import example
from tests.relay.channels.slack.slack_posts import Connect


@pytest.fixture
def connect(open_channel: OpenChannel, secret_file: Path, stand_ins: StandIns) -> Connect:
    """Connects channels, with other settings; each has no memory of another."""

    def connect(**changes: Any) -> Channel:
        return open_channel({**example("slack", secret_file, stand_ins.http), **changes})

    return connect
