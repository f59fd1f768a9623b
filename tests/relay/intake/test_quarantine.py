"""How much is kept of what was not accepted."""

from pathlib import Path

from services.relay.intake import quarantine
from services.relay.outbox import rejected
from services.relay.outbox.store import opened
from shared.sql import location


async def test_the_newest_hundred_are_kept_and_each_is_cut(tmp_path: Path) -> None:
    async with opened(location.sqlite(tmp_path / "relay.db"), lambda: 0.0) as store:
        for number in range(quarantine.ENTRIES + 3):
            await quarantine.put_aside(store, b"%d" % number, source="", code=400, reason="no")
        await quarantine.put_aside(store, b"x" * (quarantine.CUT + 1), source="", code=413, reason="too large")
        kept = await rejected.kept(store)
        oldest = await rejected.body(store, kept[-1].id)
    assert len(kept) == quarantine.ENTRIES
    assert (kept[0].code, kept[0].size) == (413, quarantine.CUT)
    assert oldest == b"4"
    assert quarantine.ENTRIES * quarantine.CUT == 50 * 1024 * 1024
