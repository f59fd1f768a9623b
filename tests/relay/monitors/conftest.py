"""The watch is tried over a real outbox, and beside a real Alertmanager, which is started as the tests of ops do."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.sql import database_url
from tests.ops.conftest import running, start
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, open_monitored_outbox
from tests.relay.monitors.reconciling import Answers

__all__ = ["running", "start"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def at(tmp_path: Path, clock: Clock) -> AsyncIterator[MonitoredOutbox]:
    async with open_monitored_outbox(database_url.create_sqlite_url(tmp_path / "relay.db"), clock) as at:
        yield at


@pytest.fixture
def one() -> Answers:
    return Answers()


@pytest.fixture
def two() -> Answers:
    return Answers("http://two.example.org")
