"""How much is kept of what was not accepted."""

from pathlib import Path

from services.relay.outbox import quarantine
from services.relay.outbox.store import open_store
from shared.sql import database_url


async def test_the_newest_hundred_are_kept_and_each_is_cut(tmp_path: Path) -> None:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), lambda: 0.0) as store:
        for number in range(quarantine.MAX_ENTRIES + 3):
            await quarantine.quarantine_webhook(store, b"%d" % number, source="", code=400, reason="no")
        await quarantine.quarantine_webhook(
            store, b"x" * (quarantine.MAX_BODY_BYTES + 1), source="", code=413, reason="too large"
        )
        entries = await quarantine.list_entries(store, limit=2 * quarantine.MAX_ENTRIES)
        oldest = await quarantine.read_body(store, entries[-1].id)
    assert len(entries) == quarantine.MAX_ENTRIES
    assert (entries[0].code, entries[0].body_bytes) == (413, quarantine.MAX_BODY_BYTES)
    assert oldest == b"4"
    assert quarantine.MAX_ENTRIES * quarantine.MAX_BODY_BYTES == 50 * 1024 * 1024
