"""What tells open pages that something was committed, by whichever process."""

import asyncio
import time

from services.relay.now.overview import read_webhook_times
from services.relay.outbox.heartbeats import count_silence, read_heartbeats, record_heartbeats
from services.relay.outbox.quarantine import quarantine_webhook
from services.relay.outbox.store import open_store
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept
from tests.relay.outbox.rows import Rows
from tests.stores import each_store


@each_store
async def test_each_commit_changes_it_also_one_of_another_process(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store, open_store(database, time.time) as other:
        markers = [await store.read_change_marker()]
        await accept(store, "one")
        markers.append(await store.read_change_marker())
        await accept(other, "two")
        markers.append(await store.read_change_marker())
        assert len(set(markers)) == 3
        assert store.committed_at is not None
        if database.drivername == "sqlite":  # others use the server of PostgreSQL, too
            assert await store.read_change_marker() == markers[-1]
            # A read on the side is no change, and no connection of its own is behind the others.
            await asyncio.gather(*(store.read(lambda _: None) for _ in range(9)))
            assert {await store.read_change_marker() for _ in range(9)} == {markers[-1]}


@each_store
async def test_what_came_last_is_known_without_what_the_relay_itself_says(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        rows = Rows(store)
        nothing = await store.read(read_webhook_times)
        assert nothing == (None, 0)
        await store.run(lambda transaction: count_silence(transaction, {"alertmanager": 300.0}, 1.0))
        assert await store.read(read_heartbeats) == {"alertmanager": None}, "it is awaited, and none has come"

        await rows.event("webhook", age=60)
        now = await store.run(lambda transaction: transaction.now)
        times = await store.read(read_webhook_times)
        assert times.accepted_at is not None
        assert 50 < now - times.accepted_at < 70
        await record_heartbeats(store, ["alertmanager"])
        await quarantine_webhook(store, b"{", source="", code=400, reason="no JSON")
        times, heartbeats = await store.read(read_webhook_times), await store.read(read_heartbeats)
        assert times.accepted_at == heartbeats["alertmanager"]
        assert times.quarantined == 1
