"""Replicas on one PostgreSQL, on machines whose clocks disagree; one of them is killed, one stopped and continued."""

import asyncio
from contextlib import AsyncExitStack
from itertools import islice

import pytest

from shared.sql.database_url import DatabaseUrl
from tests.faults import proxy
from tests.faults.alertmanager import Alertmanager
from tests.faults.conftest import Scenarios
from tests.faults.people import People, find_violations
from tests.faults.provider_disturbances import disturb
from tests.faults.proxy import BlockedStep
from tests.faults.relay import Relay
from tests.faults.scenario import Scenario, meanwhile
from tests.relay.served_relay import until

pytestmark = pytest.mark.played
CLOCK_STEP = 30.0
FROZEN_SECONDS = 3.5
"""The lease lasts 2 s."""
CLAIMS = b"deliveries.attempts +"
"""What only a claim says to PostgreSQL."""


@pytest.mark.parametrize("replicas", [2, 4])
async def test_replicas_killed_and_stopped(
    postgres_database: DatabaseUrl, scenario: Scenarios, long: bool, replicas: int
) -> None:
    trial = scenario(postgres_database)
    async with AsyncExitStack() as stack:
        started = [_replica(stack, trial, number) for number in range(replicas)]
        relays = await asyncio.gather(*started)
        # A replica that is stopped takes requests and answers none: nobody waits long for it.
        alertmanager = Alertmanager([relay.url for relay in relays], trial.random("alertmanager"), timeout=0.5)
        people = People([relay.url for relay in relays], trial.random("people"))
        random = trial.random("replicas")
        async with (
            meanwhile(disturb(trial.providers.faults, trial.random("faults"))),
            meanwhile(people.press()),
            meanwhile(alertmanager.play(trial.histories(groups=6, length=60 if long else 8))) as playing,
        ):
            while not playing.done():
                await asyncio.sleep(random.uniform(0, 2))
                await _break(*random.sample(relays, 2))
                trial.done.update({"kills": 1, "stops": 1})
        trial.done["presses"] += people.presses
        verdict = await trial.concluded(alertmanager)
        assert await find_violations(relays[0].url, trial.providers) == []
        await asyncio.gather(*(relay.stop() for relay in relays))
    assert verdict.duplicates["email by key"] == 0
    assert all("Traceback" not in relay.log for relay in relays)


async def test_a_send_that_outlasts_its_lease(postgres_database: DatabaseUrl, scenario: Scenarios) -> None:
    """Slack gets the request of a stopped replica after what another one posted in the meantime."""
    trial = scenario(postgres_database)
    first, second = trial.histories(groups=2, length=2)
    async with proxy.before_slack(trial.providers) as (door, slack), AsyncExitStack() as stack:
        stopped, other = await asyncio.gather(
            stack.enter_async_context(trial.relay(name="stopped", slack_api_url=slack)), _replica(stack, trial, 1)
        )
        alertmanager = Alertmanager([stopped.url], trial.random("alertmanager"), repeats=0)
        door.hold(BlockedStep.REQUEST, b"chat.postMessage")
        other.freeze()  # so that it is not this one that sends
        await alertmanager.play([islice(first, 1), islice(second, 1)])
        await until(lambda: door.blocked == 2)
        stopped.freeze()
        other.thaw()
        await Alertmanager([other.url], trial.random("alertmanager"), repeats=0).play([first])
        await trial.drained()
        door.release()
        posts = trial.providers.slack.channels["#security-critical"].messages
        await until(lambda: len(posts) == 4)
        stopped.thaw()
        await until(lambda: _lost(trial, 2))
        verdict = await trial.concluded(alertmanager)
        await asyncio.gather(stopped.stop(), other.stop())
    # Of the first group the old state came after the new one, of the second the same twice; of both, how it stands.
    assert len(verdict.late) == verdict.duplicates["slack"] == 1
    assert len(posts) == 6
    assert verdict.duplicates["email by key"] == verdict.duplicates["pagerduty by key"] == 0


async def test_a_lease_that_ends_before_the_send(postgres_database: DatabaseUrl, scenario: Scenarios) -> None:
    """A replica is stopped when it has claimed, and not sent yet: by the time it goes on, another one has."""
    trial = scenario(postgres_database)
    (history,) = trial.histories(groups=1, length=2)
    async with proxy.before(postgres_database) as (door, address), AsyncExitStack() as stack:
        stopped, other = await asyncio.gather(
            stack.enter_async_context(trial.relay(name="stopped", database=address)), _replica(stack, trial, 1)
        )
        alertmanager = Alertmanager([stopped.url], trial.random("alertmanager"), repeats=0)
        door.hold(BlockedStep.ANSWER, CLAIMS, b"COMMIT")
        other.freeze()
        await alertmanager.play([islice(history, 1)])
        await until(lambda: door.blocked > 0)
        stopped.freeze()
        other.thaw()
        await Alertmanager([other.url], trial.random("alertmanager"), repeats=0).play([history])
        await trial.drained()
        door.release()
        stopped.thaw()
        await until(lambda: _lost(trial, 1))
        verdict = await trial.concluded(alertmanager)
        await asyncio.gather(stopped.stop(), other.stop())
    assert verdict.late == []
    assert sum(verdict.duplicates.values()) == 0


async def _lost(trial: Scenario, leases: int) -> bool:
    return await trial.leases_lost() >= leases


async def _replica(stack: AsyncExitStack, trial: Scenario, number: int) -> Relay:
    replica = trial.relay(name=f"relay-{number}", clock_ahead=CLOCK_STEP * number)
    return await stack.enter_async_context(replica)


async def _break(killed: Relay, stopped: Relay) -> None:
    """One is killed and comes back; the other is stopped for longer than its lease, and goes on."""
    stopped.freeze()
    try:
        await killed.kill_and_remember()
        await killed.start()
        await asyncio.sleep(FROZEN_SECONDS)
    finally:
        stopped.thaw()
    await killed.up()
