"""Replicas on one PostgreSQL, on machines whose clocks disagree; one of them is killed, one stopped and continued."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from services.relay.outbox.database import Database
from tests.faults.alertmanager import Alertmanager
from tests.faults.conftest import Scenarios
from tests.faults.providers import disturb
from tests.faults.relay import Relay
from tests.faults.scenario import Scenario, meanwhile

CLOCK_STEP = 30.0
FROZEN_SECONDS = 3.5
"""The lease lasts 2 s."""


@pytest.mark.parametrize("replicas", [2, 4])
async def test_replicas_killed_and_stopped(
    postgres_database: Database, scenario: Scenarios, long: bool, replicas: int
) -> None:
    trial = scenario(postgres_database)
    async with AsyncExitStack() as stack:
        started = [_replica(stack, trial, number) for number in range(replicas)]
        relays = await asyncio.gather(*started)
        # A replica that is stopped takes requests and answers none: nobody waits long for it.
        alertmanager = Alertmanager([relay.url for relay in relays], trial.random("alertmanager"), patience=0.5)
        random = trial.random("replicas")
        async with (
            meanwhile(disturb(trial.providers.faults, trial.random("faults"))),
            meanwhile(alertmanager.play(trial.histories(groups=6, length=60 if long else 8 + 3 * replicas))) as playing,
        ):
            while not playing.done():
                await asyncio.sleep(random.uniform(0, 2))
                await _break(*random.sample(relays, 2))
                trial.done.update({"kills": 1, "stops": 1})
        verdict = await trial.concluded(alertmanager)
        await asyncio.gather(*(relay.stop() for relay in relays))
    # Stopped in the middle of a send, a replica finishes it when it goes on, and says that it had lost its lease. The
    # state that is true by then is told once more afterwards, which the judge has checked. A mail has two readers.
    lost = sum(relay.log.count("the lease ended before the receipt") for relay in relays)
    assert len(verdict.late) <= 2 * lost
    assert all("Traceback" not in relay.log for relay in relays)


async def _replica(stack: AsyncExitStack, trial: Scenario, number: int) -> Relay:
    made = trial.relay(name=f"relay-{number}", clock_ahead=CLOCK_STEP * number)
    return await stack.enter_async_context(made)


async def _break(killed: Relay, stopped: Relay) -> None:
    """One is killed and comes back; the other is stopped for longer than its lease, and goes on."""
    stopped.freeze()
    try:
        await killed.kill()
        await killed.launch()
        await asyncio.sleep(FROZEN_SECONDS)
    finally:
        stopped.thaw()
    await killed.up()
