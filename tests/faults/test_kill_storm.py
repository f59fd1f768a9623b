"""kill -9 at any moment of a storm whose answers are lost: each incident is named, and at the end nothing is stale.

Incidents end while nobody knows whether the digest that names them arrived.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random

import aiohttp
import pytest
from sqlalchemy import create_engine, select

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.outbox.tables import DeliveryState, deliveries, events
from shared.sql.database_url import DatabaseUrl
from tests.faults import stored_deliveries
from tests.faults.incidents import seeded
from tests.faults.relay import Relay, configuration, relay
from tests.iterations import LONG
from tests.relay.served_relay import until
from tests.relay.storms import CHANNEL, build_webhook, count_named, posts

WAVES, KILLS = (6, 12) if LONG else (3, 6)
IN_WAVE = 60


@pytest.mark.played
async def test_kills_in_a_storm(database: DatabaseUrl, tmp_path: Path, providers: StandIns, seed: int) -> None:
    random = seeded(seed, "storm")
    providers.slack.rates.enabled = True
    settings = configuration(tmp_path, database, providers, pacing={"digest_over": 3})
    settings["channels"] = {"slack": {**settings["channels"]["slack"], "channel": CHANNEL}}
    settings["default_channels"] = ["slack"]
    numbers = range(WAVES * IN_WAVE)
    async with relay(tmp_path, settings) as running:
        playing = asyncio.create_task(_play(running, numbers, seeded(seed, "ends")))
        for _ in range(KILLS):
            await asyncio.sleep(random.uniform(0.2, 2.0))
            await _kill(running, providers, random)
        await playing
        await until(lambda: _is_drained(database), 300)
        await running.stop()
    _check(database, providers, numbers)


async def _play(running: Relay, numbers: Iterable[int], random: Random) -> None:
    """Every tenth incident is critical; those of a wave begin at once, and end at once or with all others."""
    left = list(numbers)
    for number in numbers:
        await _post(running, number, "firing")
        if number % IN_WAVE == IN_WAVE - 1:
            await asyncio.sleep(random.uniform(0, 2))
            if random.random() < 0.7:
                wave = range(number - IN_WAVE + 1, number + 1)
                await asyncio.gather(*(_post(running, each, "resolved") for each in wave))
                left = [each for each in left if each not in wave]
    await asyncio.gather(*(_post(running, each, "resolved") for each in left))


async def _post(running: Relay, number: int, status: str) -> None:
    body = build_webhook(number, "warning" if number % 10 else "critical", status)
    while True:
        try:
            async with running.http.post("/alerts", data=body) as response:
                if response.status in (200, 202):
                    return
        except (aiohttp.ClientError, TimeoutError):
            pass
        await asyncio.sleep(0.1)


async def _kill(running: Relay, providers: StandIns, random: Random) -> None:
    if random.random() < 0.7:
        fault = ProviderFault(provider=Provider.SLACK, kind=FaultKind.LOST_ANSWER, count=random.randint(1, 6))
        providers.faults.add(fault)
        await asyncio.sleep(random.uniform(0, 1.5))
    await running.kill()
    await running.start()
    await running.up()


async def _is_drained(database: DatabaseUrl) -> bool:
    return not await asyncio.to_thread(stored_deliveries.count_unfinished, database)


def _check(database: DatabaseUrl, providers: StandIns, numbers: Iterable[int]) -> None:
    messages = {message.ts: message for message in posts(providers)}
    named = count_named(messages.values(), numbers)
    assert not [number for number, count in named.items() if count == 0], "some are not named"
    keys = Counter((each.metadata or {})["event_payload"]["delivery_id"] for each in messages.values())
    assert max(keys.values()) == 1, "a message was posted twice"
    engine = create_engine(database)
    with engine.connect() as connection:
        rows = connection.execute(
            select(deliveries.c.receipt, deliveries.c.digest_id, events.c.event)
            .join(events, events.c.seq == deliveries.c.event_seq)
            .where(deliveries.c.state == DeliveryState.DELIVERED)
        ).all()
    engine.dispose()
    for row in rows:
        receipt, number = json.loads(row.receipt), int(json.loads(row.event)["group_labels"]["instance"])
        message = messages[receipt["ts"]]
        assert message.thread_ts or count_named([message], [number]) == {number: 1}, "a receipt of another message"
        assert receipt.get("digest") == row.digest_id
    assert sum(row.digest_id is not None for row in rows) > IN_WAVE, "there was no storm"
    stale = [each.text for each in messages.values() if not each.thread_ts and not each.text.startswith("🟢")]
    assert stale == [], "a message still says that incidents fire which are over"
