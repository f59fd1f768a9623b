"""What the scenarios stand on.

`FAULTS=long` makes them long; `FAULTS_SEED` takes the randomness of an earlier run, which its row of the summary names.
"""

import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from shared.sql.database_url import DatabaseUrl
from tests.faults import summary
from tests.faults.relay import ROUTING_KEY, SLACK_TOKEN
from tests.faults.scenario import Scenario
from tests.iterations import LONG

Scenarios = Callable[[DatabaseUrl], Scenario]


@pytest.fixture(scope="session")
def long() -> bool:
    return LONG


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1_000_000))


@pytest.fixture
async def providers() -> AsyncIterator[StandIns]:
    async with run_stand_ins(slack_tokens=[SLACK_TOKEN], pagerduty_keys=[ROUTING_KEY]) as stand_ins:
        yield stand_ins


@pytest.fixture
def scenario(request: pytest.FixtureRequest, tmp_path: Path, providers: StandIns, seed: int) -> Scenarios:
    def report(row: summary.Row) -> None:
        request.node.user_properties.append((summary.PROPERTY, dict(row)))

    name = request.node.name.removeprefix("test_").replace("_", " ")  # so that each round has other randomness
    return lambda database: Scenario(name, tmp_path, database, providers, seed, report)
