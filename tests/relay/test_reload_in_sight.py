"""What a reload must not lose sight of."""

import asyncio
from pathlib import Path

from tests.relay.scripted import Scripted, settings
from tests.relay.test_reload import started

WATCHDOG = {"matchers": ["alertname=Watchdog"], "expect_every": "1s", "channels": ["one"]}


async def test_a_watchdog_that_stays_away_is_told_however_often_the_configuration_is_reloaded(tmp_path: Path) -> None:
    one = Scripted()
    configuration = settings(tmp_path, {"one": one}, watchdogs=[WATCHDOG])
    async with started(configuration) as relay:
        while not one.sent:
            await relay.reload(configuration)
            await asyncio.sleep(0.3)
    assert one.sent[0].event.common_labels["alertname"] == "WatchdogAbsent"
