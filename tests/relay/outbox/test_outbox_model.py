"""Whatever relays, crashes, clocks and people do to the outbox, in any order: nothing is lost, stale or sent twice.

`FAULTS=long` tries more of it.
"""

import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests import ram_disk
from tests.iterations import LONG
from tests.relay.outbox.clocks import FileClock, ServerClock
from tests.relay.outbox.simulated_outbox import SimulatedOutbox
from tests.relay.outbox.state_machine import OutboxMachine
from tests.relay.outbox.tables import opened, up

LONGER = 60 if LONG else 1
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
"""A history takes a tenth of a second, and more on a busy machine: that says nothing of the outbox."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=ram_disk.find_ram_disk()) as path:
        yield Path(path)


def check(machine: type[OutboxMachine], examples: int) -> None:
    some = settings(max_examples=examples * LONGER, stateful_step_count=40, suppress_health_check=SLOW)
    run_state_machine_as_test(machine, settings=some)


def test_an_outbox_in_sqlite_agrees_with_the_model(folder: Path) -> None:
    empty, number = folder / "empty.db", count()
    with opened(database_url.create_sqlite_url(empty)) as engine:
        up(engine)

    class InSqlite(OutboxMachine):
        def __init__(self) -> None:
            file = folder / f"{next(number)}.db"
            shutil.copyfile(empty, file)
            super().__init__(SimulatedOutbox(database_url.create_sqlite_url(file), FileClock()))

    check(InSqlite, 20)


def test_an_outbox_in_postgresql_agrees_with_the_model(postgres_database: DatabaseUrl) -> None:
    with opened(postgres_database) as engine:
        up(engine)
        clock = ServerClock(engine)

        class InPostgresql(OutboxMachine):
            def __init__(self) -> None:
                clock.reset()
                super().__init__(SimulatedOutbox(postgres_database, clock))

        check(InPostgresql, 3)
