"""kill -9 for rotators and backends at any moment, while records are written: none is lost, each can be read.

`FAULTS_KILLS=100 .venv/bin/pytest -m played tests/faults/test_kill_keyring.py` kills a hundred on each store.
"""

import asyncio
import os
from pathlib import Path
from random import Random

import pytest

from ops.kms_emulator.emulator import run_emulator
from shared.sql.database_url import DatabaseUrl
from tests.faults import summary
from tests.faults.keyring_killed import KEY, staged
from tests.faults.scenario import meanwhile

KILLS = int(os.environ.get("FAULTS_KILLS") or 20)
WRITERS = 3
CALM_SECONDS = 60.0


@pytest.mark.played
async def test_rotators_and_backends_that_are_killed_at_any_moment_lose_no_record(
    empty_database: DatabaseUrl, tmp_path: Path, seed: int, request: pytest.FixtureRequest
) -> None:
    random = Random(seed)  # noqa: S311 - a test's
    async with run_emulator(keys=[KEY]) as emulator, staged(tmp_path, empty_database, emulator, random) as stage:
        writers = [asyncio.create_task(stage.write(f"w{number}")) for number in range(WRITERS)]
        async with meanwhile(stage.rotate()) as rotating:
            while stage.counted["rotators"] + stage.counted["backends"] < KILLS:
                await asyncio.sleep(random.uniform(0, 5.0))  # a rotator takes a second or two to start
                await stage.kill_any()
                assert not rotating.done()
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        await stage.end()  # what was in memory alone is gone
        stage.backends = [await stage.start_backend(number) for number in range(len(stage.ports))]
        await stage.up()
        async with asyncio.timeout(CALM_SECONDS):
            # Another program's state: the lease of one that was killed lasts for 2 s.
            while await stage.type("resume") and await stage.type("rollback"):  # noqa: ASYNC110
                await asyncio.sleep(0.5)
        verified = await stage.type("verify --full")
        lost, unreadable = await stage.read_all()
    row = {"store": empty_database.drivername, "seed": str(seed), "rotators": str(stage.counted["rotators"])}
    row |= {"backends": str(stage.counted["backends"]), "rotations": str(stage.counted["rotations"])}
    row |= {"records": str(len(stage.records)), "lost": str(len(lost)), "unreadable": str(len(unreadable))}
    request.node.user_properties.append((summary.KEYRING_KILLS, row))
    log = (tmp_path / "services.rotator.log").read_text()
    assert (lost, unreadable, verified) == ([], [], 0), log[-3000:]
    assert len(stage.records) > KILLS
