"""The lease: one runner at a time, by the database's clock; who lost it writes nothing more."""

import asyncio

import pytest
from sqlalchemy import URL

from shared.keyring.administration import JournalStep, RefusedError
from shared.keyring.database import Database
from shared.keyring.local_administration import LocalAdministration
from shared.keyring.tables import TABLES, rotation_lease
from tests.conftest import Until
from tests.key_versions import Versions
from tests.shared.keyring.keyring import Keyring, Meddled, entry
from tests.stores import each_empty_database


@pytest.fixture
async def free(keyring: Keyring) -> LocalAdministration:
    """A keyring whose lease nobody holds."""
    await keyring.administration.release_lease(keyring.token)
    return keyring.administration


async def _end(database: Database) -> None:
    await database.write_exclusively(
        lambda connection: connection.execute(rotation_lease.update().values(expires_at=1.0))
    )


@each_empty_database
async def test_of_many_that_ask_at_once_one_gets_it(free: LocalAdministration, url: URL, keyring: Keyring) -> None:
    other = await Database.open(url, TABLES)
    try:
        carriers = [free, LocalAdministration(other, keyring.wrapping)]
        requests = (carriers[n % 2].acquire_lease(str(n), 60) for n in range(10))
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
    finally:
        await other.close()
    assert sum(isinstance(outcome, RefusedError) for outcome in outcomes) == 9


@pytest.mark.parametrize("seconds", [0, -1, 3601, float("nan")])
@each_empty_database
async def test_a_lease_is_for_a_bounded_time(free: LocalAdministration, seconds: float) -> None:
    with pytest.raises(RefusedError, match="up to 3600 s"):
        await free.acquire_lease("one", seconds)


@each_empty_database
async def test_the_database_contains_no_token(free: LocalAdministration, keyring: Keyring) -> None:
    try_to_acquire = await free.acquire_lease("one", 60)
    (row,) = await keyring.database.read(lambda connection: connection.execute(rotation_lease.select()).all())
    assert try_to_acquire.token not in str(tuple(row))
    assert try_to_acquire.token.encode() not in row.token


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
async def test_a_dead_runners_lease_ends_by_postgresqls_clock_though_this_machines_stands_still(
    url: URL, free: LocalAdministration, keyring: Keyring, until: Until
) -> None:
    database = await Database.open(url, TABLES, clock=lambda: 0.0)
    try:
        behind = LocalAdministration(database, keyring.wrapping)
        await behind.acquire_lease("dead", 2)

        async def try_to_acquire() -> bool:
            try:
                await behind.acquire_lease("next", 60)
            except RefusedError:
                return False
            return True

        assert not await try_to_acquire()

        await until(try_to_acquire)
    finally:
        await database.close()


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
async def test_in_a_file_it_ends_by_the_clock_of_this_machine(url: URL, keyring: Keyring) -> None:
    now = 1000.0
    database = await Database.open(url, TABLES, clock=lambda: now)
    try:
        administration = LocalAdministration(database, keyring.wrapping)
        await administration.release_lease(keyring.token)
        await administration.acquire_lease("dead", 60)
        now = 1059.9
        with pytest.raises(RefusedError, match="dead holds the lease"):
            await administration.acquire_lease("next", 60)
        now = 1060.0
        await administration.acquire_lease("next", 60)
    finally:
        await database.close()


@each_empty_database
async def test_a_runner_whose_lease_ended_or_was_taken_in_the_middle_writes_nothing_more(
    keyring: Keyring, versions: Versions, meddled: Meddled
) -> None:
    await keyring.fill(3)
    await versions.rotate()
    before = await keyring.keys()

    async def end() -> None:
        await _end(keyring.database)

    async def end_and_take() -> None:
        await end()
        await keyring.administration.acquire_lease("another", 60)

    meddled.meddle = end
    with pytest.raises(RefusedError, match=r"the lease ended at .*; take it again, then resume"):
        await keyring.rotate(batch_size=1)
    assert await keyring.keys() == before
    keyring.token = (await keyring.administration.acquire_lease("the test", 600, keyring.token)).token
    meddled.meddle = end_and_take
    with pytest.raises(RefusedError, match="the lease is not yours; another holds the lease until"):
        await keyring.rotate(batch_size=1)
    assert await keyring.keys() == before


@each_empty_database
async def test_one_that_a_clock_which_was_ahead_took_keeps_nobody_out_once_the_clock_is_right(
    free: LocalAdministration, keyring: Keyring
) -> None:
    ahead = await free.acquire_lease("ahead", 3600)
    add = rotation_lease.update().values(expires_at=rotation_lease.c.expires_at + 3 * 365 * 86400)
    await keyring.database.write_exclusively(lambda connection: connection.execute(add))
    try_to_acquire = await free.acquire_lease("next", 3600)
    with pytest.raises(RefusedError, match="next holds the lease until"):
        await free.acquire_lease("a third", 60)
    with pytest.raises(RefusedError, match="the lease is not yours; next holds the lease"):
        await free.add_journal_entry("r1", ahead.token, entry(JournalStep.RELOAD))
    await free.add_journal_entry("r1", try_to_acquire.token, entry(JournalStep.RELOAD))
