"""kill -9 at any moment, on both stores, with providers that fail, hang, answer late and lose answers."""

import asyncio

import pytest

from shared.sql.location import Database
from tests.faults.alertmanager import Alertmanager
from tests.faults.conftest import Scenarios
from tests.faults.providers import disturb
from tests.faults.scenario import meanwhile


@pytest.mark.played
async def test_kills_at_random_moments(database: Database, scenario: Scenarios, long: bool) -> None:
    trial = scenario(database)
    random = trial.random("kills")
    async with trial.relay() as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"))
        playing = alertmanager.play(trial.histories(groups=6, length=70 if long else 8))
        async with (
            meanwhile(disturb(trial.providers.faults, trial.random("faults"))),
            meanwhile(playing) as played,
        ):
            while not played.done():
                await asyncio.sleep(random.uniform(0, 1.2))
                await relay.kill()
                trial.done["kills"] += 1
                await relay.launch()
                if random.random() < 0.8:  # else it may be killed before it listens
                    await relay.up()
        await relay.up()
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert verdict.late == []
    assert verdict.duplicates["pagerduty by key"] == verdict.duplicates["email by key"] == 0
    assert "Traceback" not in relay.log
