"""A backup of the outbox is restored: what waits in it may have been told since."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import delete, update
from structlog.testing import capture_logs

from services.relay.acknowledgement.store import escalate_due
from services.relay.model import EscalationStep
from services.relay.outbox.edits import EditClaimRequest, claim_edits
from services.relay.outbox.fallback import fall_back
from services.relay.outbox.recovery import (
    COMPARE_DELAY,
    RESTORED_REMARK,
    detect_restore,
    read_postponed_until,
    release_compared,
)
from services.relay.outbox.store import Store, StoreUnusableError, open_store
from services.relay.outbox.tables import DeliveryState, database_identity
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.postgres import Postgres
from tests.relay.outbox.actions import accept, claim_one, claim_some, end_attempt, let_pass, nothing_due
from tests.relay.served_relay import event_of
from tests.stores import each_store

Restore = Callable[[], DatabaseUrl]


@pytest.fixture
def restore(request: pytest.FixtureRequest, database: DatabaseUrl, tmp_path: Path) -> Restore:
    """Copies an outbox that nobody has open, as a restored backup is a copy."""

    def copy() -> DatabaseUrl:
        if database.drivername == "sqlite":
            shutil.copyfile(str(database.database), tmp_path / "restored.db")
            return database_url.create_sqlite_url(tmp_path / "restored.db")
        server: Postgres = request.getfixturevalue("shared_postgres")
        return server.database(f"restored_{uuid4().hex}", database)

    return copy


async def notice(store: Store, delay: float = COMPARE_DELAY) -> bool:
    return await detect_restore(store, compare_delay=delay)


async def release(store: Store) -> None:
    postponed_until = await store.read(read_postponed_until)
    assert postponed_until is not None
    await release_compared(store, postponed_until)


async def test_what_is_on_hold_during_a_comparison_waits_for_the_next_one(
    database: DatabaseUrl, restore: Restore
) -> None:
    async with open_store(database, lambda: 10_000.0) as store:
        await notice(store)
        await accept(store, "x")
        assert await store.read(read_postponed_until) is None, "nothing of it was ever held back"
    async with open_store(restore(), lambda: 10_000.0) as store:
        before = await store.read(lambda connection: read_postponed_until(connection) or 0.0)
        assert await notice(store)
        await release_compared(store, before)
        assert await nothing_due(store)
        await release(store)
        assert (await claim_one(store)).task.incident_id == "x"


async def test_what_is_open_in_a_backup_is_compared_before_it_is_escalated(
    database: DatabaseUrl, restore: Restore
) -> None:
    steps = (EscalationStep(60.0, ("boss",)),)
    async with open_store(database, lambda: 10_000.0) as store:
        await notice(store)
        await accept(store, "x", escalation=steps)
        await end_attempt(store, await claim_one(store))
        await let_pass(store, 90_000)
    async with open_store(restore(), lambda: 10_000.0) as store:
        await notice(store)
        await let_pass(store, COMPARE_DELAY + 50)
        assert await escalate_due(store, ["boss"]) == []
        await let_pass(store, 20)
        assert [each.channels for each in await escalate_due(store, ["boss"])] == [("boss",)]


async def test_no_message_is_edited_back_to_what_a_backup_knows_before_that_is_compared(
    database: DatabaseUrl, restore: Restore
) -> None:
    request = EditClaimRequest("scope", ("a",), 8, "me", 20, None)
    async with open_store(database, lambda: 10_000.0) as store:
        await notice(store)
        for _ in range(2):
            await accept(store, "x")
            await end_attempt(store, await claim_one(store), is_editable=True)
    async with open_store(restore(), lambda: 10_000.0) as store:
        await notice(store)
        assert not (await claim_edits(store, request)).claims
        await release(store)
        assert (await claim_edits(store, request)).claims


@each_store
async def test_what_waits_in_a_backup_is_on_hold_and_counts_as_perhaps_delivered(
    database: DatabaseUrl, restore: Restore
) -> None:
    async with open_store(database, lambda: 10_000.0) as store:
        assert not await notice(store)
        await accept(store, "x")
        await end_attempt(store, await claim_one(store), DeliveryState.RETRYING, retry_in=0.0)
        await claim_one(store)  # it is under way while the backup is made
        await accept(store, "x")
        await accept(store, "y")
        assert not await notice(store)
    async with open_store(restore(), lambda: 10_000.0) as store:
        assert await notice(store)
        claimed = await claim_some(store, limit=9)
        assert claimed.claims == ()
        assert claimed.retry_in == pytest.approx(COMPARE_DELAY, abs=5)
        assert not (await fall_back(store, "a", ("b",))).channels_to_wake
        await release(store)
        claims = (await claim_some(store, limit=9)).claims
        assert {
            (each.task.incident_id, each.task.first_event_seq, each.task.maybe_sent, each.task.remark)
            for each in claims
        } == {
            ("x", 1, True, RESTORED_REMARK),
            ("y", 3, True, RESTORED_REMARK),
        }
        assert not await notice(store)
        for each in claims:
            assert (await end_attempt(store, each)).lease_valid
        await accept(store, "z")
        assert (await claim_one(store)).task.remark == ""


async def test_nobody_is_called_for_what_was_over_in_it_but_for_what_fired_and_ended_since(
    database: DatabaseUrl, restore: Restore
) -> None:
    async with open_store(database, lambda: 10_000.0) as store:
        await notice(store)
        for incident in ("x", "y", "z"):
            await accept(store, incident, event=event_of("firing"))
        await accept(store, "x", event=event_of("resolved"))
    async with open_store(restore(), lambda: 10_000.0) as store:
        await notice(store, 0.0)
        await accept(store, "y", event=event_of("resolved"))
        await accept(store, "z", event=event_of("firing"))
        await accept(store, "z", event=event_of("resolved"))
        tasks = [each.task for each in (await claim_some(store, limit=9)).claims]
        assert {task.incident_id: task.firing_undelivered for task in tasks} == {
            "x": False,
            "y": False,
            "z": True,
        }


async def test_what_comes_after_the_restore_is_not_on_hold(database: DatabaseUrl, restore: Restore) -> None:
    async with open_store(database, lambda: 10_000.0) as store:
        await notice(store)
        await accept(store, "x")
    async with open_store(restore(), lambda: 10_000.0) as store:
        await notice(store)
        assert await nothing_due(store)
        await accept(store, "x")
        claim = await claim_one(store)
        assert (claim.task.first_event_seq, claim.task.last_event_seq) == (1, 2)


@each_store
async def test_a_relay_that_was_stopped_for_long_reports_what_waits_as_ever(database: DatabaseUrl) -> None:
    async with open_store(database, lambda: 10_000.0) as store:
        await notice(store)
        await accept(store, "x", event=event_of("firing"))
        await accept(store, "x", event=event_of("resolved"))
        earlier = update(database_identity).values(last_used_at=database_identity.c.last_used_at - 9_000)
        await store.run(lambda transaction: transaction.connection.execute(earlier))
        await asyncio.to_thread(Path(f"{database.database}-last-used").unlink, missing_ok=True)
        assert not await notice(store)
        assert (await claim_one(store)).task.firing_undelivered


@each_store
async def test_two_replicas_that_start_for_the_first_time_at_once_find_no_backup(database: DatabaseUrl) -> None:
    async with open_store(database, lambda: 10_000.0) as one, open_store(database, lambda: 10_000.0) as other:
        for _ in range(5):
            assert not any(await asyncio.gather(notice(one), notice(other)))
            await one.run(lambda transaction: transaction.connection.execute(delete(database_identity)))
            await asyncio.to_thread(Path(f"{database.database}-last-used").unlink, missing_ok=True)


async def test_a_backup_from_before_this_was_kept_is_noticed_where_a_file_says_that_it_was_used(tmp_path: Path) -> None:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), lambda: 10_000.0) as store:
        await accept(store, "x")
        assert not await notice(store), "it was brought up to date, and nothing was used yet"
        assert not await nothing_due(store)
        await store.run(lambda transaction: transaction.connection.execute(delete(database_identity)))
        assert await notice(store)
        assert await nothing_due(store)


async def test_a_relay_that_may_not_ask_which_cluster_it_is_identifies_the_database_by_the_rest(
    shared_postgres: Postgres, postgres_database: DatabaseUrl
) -> None:
    own = await asyncio.to_thread(_open_without_permission, shared_postgres, postgres_database)
    async with open_store(own, lambda: 10_000.0) as store:
        assert not await notice(store)
        await accept(store, "x")
        assert not await notice(store)
        assert not await nothing_due(store)
    async with open_store(postgres_database, lambda: 10_000.0) as store:
        assert not await notice(store), "the right was granted, and the database is the same"
        await store.run(
            lambda transaction: transaction.connection.execute(update(database_identity).values(identity="/1/2"))
        )
        assert await notice(store)


def _open_without_permission(server: Postgres, database: DatabaseUrl) -> DatabaseUrl:
    """The database for a role that may use it, and may not call `pg_control_system`."""
    role = f"relay_{uuid4().hex}"
    with psycopg.connect(
        host=str(server.folder), user="postgres", dbname=database.database, autocommit=True
    ) as connection:
        for statement in (
            f"CREATE ROLE {role} LOGIN",
            f"GRANT ALL ON SCHEMA public TO {role}",
            "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public",
        ):
            connection.execute(statement.encode())
    return database.set(username=role)


@pytest.mark.parametrize("is_missing", [True, False])
async def test_a_start_makes_no_tables_where_a_file_says_that_there_were_some(is_missing: bool, tmp_path: Path) -> None:
    file, last_used = tmp_path / "relay.db", tmp_path / "relay.db-last-used"
    async with open_store(database_url.create_sqlite_url(file), lambda: 10_000.0) as store:
        await notice(store)
    file.unlink()
    if not is_missing:
        file.touch()
    for _ in range(2):
        with pytest.raises(StoreUnusableError, match=r"put relay\.db back, or remove relay\.db-last-used to start"):
            async with open_store(database_url.create_sqlite_url(file), lambda: 10_000.0):
                pass
    last_used.unlink()
    async with open_store(database_url.create_sqlite_url(file), lambda: 10_000.0) as store:
        assert not await notice(store)


async def test_tables_that_are_made_are_reported(empty_database: DatabaseUrl) -> None:
    for expected in (["new tables created in an empty database"], []):
        with capture_logs() as logs:
            async with open_store(empty_database, lambda: 10_000.0):
                pass
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == expected
