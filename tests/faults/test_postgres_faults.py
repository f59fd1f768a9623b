"""A PostgreSQL that stops and starts, does not answer, and loses the connection in the middle of a commit."""

import asyncio

import pytest

from shared.sql.database_url import DatabaseUrl
from tests.faults import proxy
from tests.faults.alertmanager import Alertmanager
from tests.faults.conftest import Scenarios
from tests.faults.proxy import Cut
from tests.faults.scenario import meanwhile
from tests.postgres import Postgres
from tests.relay.served_relay import until

pytestmark = pytest.mark.played


async def test_postgresql_stopped_and_started(own_postgres: Postgres, scenario: Scenarios) -> None:
    trial = scenario(own_postgres.database("relay"))
    async with trial.relay() as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"))
        async with meanwhile(alertmanager.play(trial.histories(groups=6, length=12))) as playing:
            await until(lambda: len(alertmanager.accepted) > 6)
            await asyncio.to_thread(own_postgres.stop)
            await relay.answers(503, "/-/ready")
            await until(lambda: alertmanager.refusals["503"] > 6)
            await asyncio.to_thread(own_postgres.start)
            await relay.answers(200, "/-/ready")
            await playing
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert verdict.late == []


async def test_postgresql_that_does_not_answer(postgres_database: DatabaseUrl, scenario: Scenarios) -> None:
    trial = scenario(postgres_database)
    async with proxy.before(postgres_database) as (door, address), trial.relay(database=address) as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"))
        async with meanwhile(alertmanager.play(trial.histories(groups=3, length=6))) as playing:
            await until(lambda: len(alertmanager.accepted) > 3)
            door.open.clear()
            await until(lambda: alertmanager.refusals["503"] > 2)
            door.open.set()
            await playing
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert verdict.late == []


async def test_connection_reset_in_a_commit(postgres_database: DatabaseUrl, scenario: Scenarios, long: bool) -> None:
    trial = scenario(postgres_database)
    random = trial.random("cuts")
    async with proxy.before(postgres_database) as (door, address), trial.relay(database=address) as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"), pause=0.1)
        async with meanwhile(alertmanager.play(trial.histories(groups=6, length=60 if long else 20))) as playing:
            while not playing.done():
                door.cut(random.choice(list(Cut)))
                await asyncio.sleep(random.uniform(0, 0.6))
        trial.done["cuts"] = door.cut_off
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert door.cut_off > 5
    assert alertmanager.refusals["503"] > 0
    assert verdict.late == []
    assert verdict.duplicates["pagerduty by key"] == verdict.duplicates["email by key"] == 0
