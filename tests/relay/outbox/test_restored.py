"""A backup of the outbox is restored: what waits in it may have been told since."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from services.relay.outbox.fallback import fall_back
from services.relay.outbox.restored import HELD_FOR, LONG_AGO, NOTE, notice_restore, release
from services.relay.outbox.schema import State, origin
from services.relay.outbox.store import Store, StoreUnusableError, opened
from shared.sql import location
from shared.sql.location import Database
from tests.postgres import Postgres
from tests.relay.outbox.acts import claimed, end, nothing, take, told
from tests.relay.scripted import event_of

Restore = Callable[[], Database]


@pytest.fixture
def restore(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Restore:
    """Copies an outbox that nobody has open, as a restored backup is a copy."""

    def copy() -> Database:
        if database.drivername == "sqlite":
            shutil.copyfile(str(database.database), tmp_path / "restored.db")
            return location.sqlite(tmp_path / "restored.db")
        server: Postgres = request.getfixturevalue("shared_postgres")
        return server.database(f"restored_{uuid4().hex}", database)

    return copy


async def notice(store: Store, held_for: float = HELD_FOR, *, at_start: bool = True) -> bool:
    return await notice_restore(store, held_for=held_for, at_start=at_start)


async def test_what_waits_in_a_backup_is_held_back_and_counts_as_perhaps_told(
    database: Database, restore: Restore
) -> None:
    async with opened(database, lambda: 10_000.0) as store:
        assert not await notice(store)
        await told(store, "x")
        await end(store, await claimed(store), State.RETRYING, again_in=0.0)
        await claimed(store)  # it is under way while the backup is made
        await told(store, "x")
        await told(store, "y")
        assert not await notice(store)
    async with opened(restore(), lambda: 10_000.0) as store:
        assert await notice(store, at_start=False)
        taken = await take(store, limit=9)
        assert taken.claims == ()
        assert taken.seconds == pytest.approx(HELD_FOR, abs=5)
        assert not (await fall_back(store, "a", ("b",))).woken
        await release(store)
        claims = (await take(store, limit=9)).claims
        assert {(each.incident_id, each.first_event, each.maybe_sent, each.note) for each in claims} == {
            ("x", 1, True, NOTE),
            ("y", 3, True, NOTE),
        }
        assert not await notice(store)
        for each in claims:
            assert (await end(store, each)).ours
        await told(store, "z")
        assert (await claimed(store)).note == ""


async def test_nobody_is_called_for_what_was_over_in_it_but_for_what_fired_and_ended_since(
    database: Database, restore: Restore
) -> None:
    async with opened(database, lambda: 10_000.0) as store:
        await notice(store)
        for incident in ("x", "y", "z"):
            await told(store, incident, event=event_of("firing"))
        await told(store, "x", event=event_of("resolved"))
    async with opened(restore(), lambda: 10_000.0) as store:
        await notice(store, 0.0)
        await told(store, "y", event=event_of("resolved"))
        await told(store, "z", event=event_of("firing"))
        await told(store, "z", event=event_of("resolved"))
        claims = (await take(store, limit=9)).claims
        assert {each.incident_id: each.untold for each in claims} == {"x": False, "y": False, "z": True}


async def test_what_comes_after_the_restore_is_not_held_back(database: Database, restore: Restore) -> None:
    async with opened(database, lambda: 10_000.0) as store:
        await notice(store)
        await told(store, "x")
    async with opened(restore(), lambda: 10_000.0) as store:
        await notice(store)
        assert await nothing(store)
        await told(store, "x")
        claim = await claimed(store)
        assert (claim.first_event, claim.last_event) == (1, 2)


@pytest.mark.parametrize("at_start", [True, False])
async def test_a_relay_that_starts_after_long_takes_its_outbox_for_a_backup(database: Database, at_start: bool) -> None:
    async with opened(database, lambda: 10_000.0) as store:
        await notice(store)
        await told(store, "x")
        earlier = update(origin).values(seen_at=origin.c.seen_at - LONG_AGO - 10)
        await store.run(lambda transaction: transaction.connection.execute(earlier))
        await asyncio.to_thread(Path(f"{database.database}-seen").unlink, missing_ok=True)
        assert await notice(store, at_start=at_start) == at_start
        assert await nothing(store) == at_start


@pytest.mark.parametrize("gone", [True, False])
async def test_a_start_makes_no_tables_where_a_file_says_that_there_were_some(gone: bool, tmp_path: Path) -> None:
    file, seen = tmp_path / "relay.db", tmp_path / "relay.db-seen"
    async with opened(location.sqlite(file), lambda: 10_000.0) as store:
        await notice(store)
    file.unlink()
    if not gone:
        file.touch()
    for _ in range(2):
        with pytest.raises(StoreUnusableError, match=r"put relay\.db back, or remove relay\.db-seen to begin anew"):
            async with opened(location.sqlite(file), lambda: 10_000.0):
                pass
    seen.unlink()
    async with opened(location.sqlite(file), lambda: 10_000.0) as store:
        assert not await notice(store)


async def test_tables_that_are_made_are_told(empty_database: Database) -> None:
    for expected in (["made new tables in an empty database"], []):
        with capture_logs() as logs:
            async with opened(empty_database, lambda: 10_000.0):
                pass
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == expected
