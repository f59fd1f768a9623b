"""The monitors are tried over a real outbox, whose clock a test moves."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.sql import database_url
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, open_monitored_outbox
from tests.relay.monitors.reconciling import Comparison


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def at(tmp_path: Path, clock: Clock) -> AsyncIterator[MonitoredOutbox]:
    async with open_monitored_outbox(database_url.create_sqlite_url(tmp_path / "relay.db"), clock) as at:
        yield at


@pytest.fixture
def it(at: MonitoredOutbox, clock: Clock) -> Comparison:
    return Comparison(at, clock)
