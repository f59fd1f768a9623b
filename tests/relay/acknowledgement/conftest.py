"""A stand-in Slack, and a relay whose buttons people press in it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from tests.ops.conftest import running, start
from tests.relay.acknowledgement.pressed_relay import PressedRelay, build_settings, open_relay

__all__ = ["running", "start"]


@pytest.fixture
async def stand_ins() -> AsyncIterator[StandIns]:
    async with run_stand_ins() as running:
        yield running


@pytest.fixture
async def relay(tmp_path: Path, stand_ins: StandIns) -> AsyncIterator[PressedRelay]:
    async with open_relay(build_settings(tmp_path, stand_ins), stand_ins) as relay:
        yield relay
