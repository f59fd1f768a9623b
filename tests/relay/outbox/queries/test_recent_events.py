"""The webhooks that were accepted last, on both stores."""

import time
from functools import partial

from sqlalchemy import update

from services.relay.outbox.store import Transaction, open_store
from services.relay.outbox.tables import events
from services.relay.preview import pages as recent_events
from services.relay.preview.pages import list_recent_events, read_webhook
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.channel_state.test_channel_checks import explain
from tests.relay.outbox.rows import Rows
from tests.stores import each_store


@each_store
async def test_the_last_webhooks_that_are_not_too_large_can_be_chosen(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        rows = Rows(store)
        seqs = [await rows.event(f"{number}") for number in range(5)]
        for seq, body in ((seqs[1], b""), (seqs[2], b"x" * 101)):  # of the relay's own; too large
            await store.run(partial(_set_body, seq=seq, body=body))
        found = await list_recent_events(store, 2, 100)
        assert [each.alertname for each in found] == ["Alert-4", "Alert-3"]
        found = await list_recent_events(store, 9, 100)
        assert [each.alertname for each in found] == ["Alert-4", "Alert-3", "Alert-0"]
        assert await read_webhook(store, found[0].id, 100) == b"{}"
        assert await read_webhook(store, found[0].id, 1) is None
        assert await read_webhook(store, "unknown", 100) is None
        given = {"most": 10, "max_bytes": 100}
        plan = await store.read(partial(explain, query=recent_events._RECENT, given=given))
        assert "events_pkey" in plan or "INTEGER PRIMARY KEY" in plan


def _set_body(transaction: Transaction, seq: int, body: bytes) -> None:
    transaction.connection.execute(update(events).where(events.c.seq == seq).values(body=body))
