"""kill -9 after every commit of a rotator of a table, while its own program works: no row becomes unreadable."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import URL, Connection, text

from ops.kms_emulator.emulator import Emulator
from services.rotator.report import CommandOutcome
from services.rotator.runner import resume, rollback, run
from shared.keyring.administration import RotationType
from tests.faults.summary import KILLS
from tests.memory_kms import StoredKey
from tests.rotator.keyring_to_rotate import KEY
from tests.rotator.killed_rotator import run_killed
from tests.rotator.table.tenants import Tenants, aad

REWRAP = RotationType.REWRAP_KEK
ROWS = 40
"""Of the short test: two full batches, and then one without a row."""
ROW_COUNT = 20_000


async def fill(url: URL, emulator: Emulator, folder: Path, count: int) -> Tenants:
    """A table of so many tenants."""
    kms = {"provider": "gcp", "key": KEY, "endpoint": str(emulator.address), "insecure": True}
    tenants = Tenants(url, kms, folder)
    await tenants.create()
    names = [f"tenant-{number:05d}" for number in range(count)]
    for at in range(0, count, 1000):
        await tenants.add(names[at : at + 1000])
    return tenants


class Program:
    """The table's own program: adds tenants, gives some a new data key, and deletes some, for as long as it runs."""

    def __init__(self, tenants: Tenants, random: Random) -> None:
        self.tenants, self.random = tenants, random
        self.changes = 0

    @asynccontextmanager
    async def running(self, pause: float) -> AsyncIterator[None]:
        working = asyncio.create_task(self._work(pause))
        try:
            yield
            assert not working.done(), working.exception()
        finally:
            self.stopping = True
            await working

    stopping = False

    async def _work(self, pause: float) -> None:
        while not self.stopping:
            await self._change()
            self.changes += 1
            await asyncio.sleep(pause)

    async def _change(self) -> None:
        names, kind = sorted(self.tenants.secrets), self.random.random()
        name = f"new-{self.changes}" if kind < 0.4 else self.random.choice(names)
        if kind > 0.8:
            await self.tenants.execute("DELETE FROM tenant_keys WHERE tenant = :name", {"name": name})
            del self.tenants.secrets[name]
            return
        secret = self.random.randbytes(32)
        async with self.tenants.key() as key:
            wrapped = await key.encrypt(secret, aad(name), timeout=30)
        row = {"name": name, "dek": wrapped.ciphertext, "version": wrapped.version}

        def write(connection: Connection) -> None:
            changed = connection.execute(
                text("UPDATE tenant_keys SET dek_ciphertext = :dek, kms_version = :version WHERE tenant = :name"), row
            )
            if not changed.rowcount:
                connection.execute(
                    text(
                        "INSERT INTO tenant_keys (tenant, dek_ciphertext, kms_version) VALUES (:name, :dek, :version)"
                    ),
                    row,
                )

        await self.tenants.run(write)
        self.tenants.secrets[name] = secret


@pytest.mark.played
async def test_a_rotator_that_is_killed_after_any_commit_leaves_every_row_readable(
    build: Callable[[URL], Tenants],
    kms_key: StoredKey,
    any_database: URL,
    record_property: Callable[[str, object], None],
) -> None:
    """After each kill the next runner resumes, and after the next one it rolls back."""
    tenants = build(any_database)
    await tenants.create()
    await tenants.add([f"tenant-{number}" for number in range(ROWS)])
    kms_key.add_version("v1")
    kills, unreadable, finish = 0, list[str](), itertools.cycle([resume, rollback])
    while not await run_killed(tenants, kills + 1, run, REWRAP, batch_size=20):
        kills += 1
        unreadable += await tenants.unreadable()
        await tenants.end_lease()
        async with tenants.session() as session:
            ended = await next(finish)(session)
            assert ended.outcome in {CommandOutcome.DONE, CommandOutcome.NOTHING_TO_DO}, ended.summary
        unreadable += await tenants.unreadable()
        assert len({version for _, version in (await tenants.rows()).values()}) == 1
        kms_key.add_version(f"v{kills + 1}")
    record_property(KILLS, {"store": any_database.drivername, "type": "table", "then": "both", "kills": str(kills)})
    assert (unreadable, kills > 12) == ([], True)


@pytest.mark.played
@pytest.mark.parametrize("store", ["postgres_database", "mariadb_database"])
async def test_twenty_thousand_rows_under_load_stay_readable_whenever_the_rotator_is_killed(
    store: str,
    emulator: Emulator,
    new_version: Callable[[], Awaitable[None]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    """Each process does one commit more of the rotation than the one before it, until nothing is left."""
    tenants = await fill(request.getfixturevalue(store), emulator, tmp_path, ROW_COUNT)
    await new_version()
    program, kills = Program(tenants, Random(14)), 0  # noqa: S311 - a test's
    overrides: dict[str, Any] = {"batch_size": 1000, "lease": "60s"}
    async with program.running(0.2):
        command: tuple[Any, ...] = (run, REWRAP)
        commits = 1
        while not await run_killed(tenants, commits, *command, **overrides):
            kills += 1
            await tenants.end_lease()
            async with tenants.session() as session:
                latest = await session.administration.get_progress()
            command, commits = ((run, REWRAP), commits + 1) if latest is None else ((resume,), 5 + kills % 23)
    assert await tenants.unreadable() == []
    assert (await tenants.do(run, REWRAP)).outcome in {CommandOutcome.DONE, CommandOutcome.NOTHING_TO_DO}
    rows = await tenants.rows()
    row = {"store": store.partition("_")[0], "type": "table, 20,000 rows", "then": "resume", "kills": str(kills)}
    record_property(KILLS, row | {"lost": "0"})
    assert ({version for _, version in rows.values()}, await tenants.unreadable()) == ({"2"}, [])
    assert kills > 50
    assert program.changes > 50
