"""kill -9 at any moment, on both stores, with providers that fail, hang, answer late and lose answers.

Half of the relays are killed while their sending process is stopped, which is told to go on once the next relay runs.
"""

import asyncio
import os
import signal
from random import Random

import pytest

from shared.sql.database_url import DatabaseUrl
from tests.faults.alertmanager import Alertmanager
from tests.faults.conftest import Scenarios
from tests.faults.people import People, find_violations
from tests.faults.provider_disturbances import disturb
from tests.faults.relay import Relay, go_on
from tests.faults.scenario import Scenario, meanwhile
from tests.iterations import LONG
from tests.relay.delivery.sender_tasks import sending_processes

ROUNDS = 4 if LONG else 1


@pytest.mark.played
@pytest.mark.parametrize("_round", range(ROUNDS))
async def test_kills_at_random_moments(database: DatabaseUrl, scenario: Scenarios, long: bool, _round: int) -> None:
    trial = scenario(database)
    random = trial.random("kills")
    async with trial.relay() as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"))
        people = People([relay.url], trial.random("people"))
        playing = alertmanager.play(trial.histories(groups=6, length=70 if long else 8))
        async with (
            meanwhile(disturb(trial.providers.faults, trial.random("faults"))),
            meanwhile(people.press()),
            meanwhile(playing) as played,
        ):
            while not played.done():
                await asyncio.sleep(random.uniform(0, 1.2))
                stopped = await _stop_and_kill(trial, relay, random)
                await relay.start()
                if random.random() < 0.8:  # else it may be killed before it listens
                    await relay.up()
                for sender in stopped:
                    go_on(sender)
        await relay.up()
        trial.done["presses"] += people.presses
        verdict = await trial.concluded(alertmanager)
        assert await find_violations(relay.url, trial.providers) == []
        await relay.stop()
    assert verdict.late == []
    assert verdict.duplicates["pagerduty by key"] == verdict.duplicates["email by key"] == 0
    assert "Traceback" not in relay.log


async def _stop_and_kill(trial: Scenario, relay: Relay, random: Random) -> list[int]:
    """Kills the relay; the sending processes that were stopped before."""
    assert relay.process is not None
    stopped = sending_processes(relay.process.pid) if random.random() < 0.5 else []
    for sender in stopped:
        os.kill(sender, signal.SIGSTOP)
        trial.done["senders stopped"] += 1
        await asyncio.sleep(random.uniform(0, 0.3))
    await relay.kill()
    trial.done["kills"] += 1
    return stopped
