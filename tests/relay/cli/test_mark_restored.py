"""`keypulse-relay mark-restored`: what looks as before, such as a snapshot that was put back, counts as a backup."""

import pytest
from sqlalchemy import delete

from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.recovery import COMPARE_DELAY, detect_restore
from services.relay.outbox.tables import database_identity
from tests.relay.cli.conftest import Fill, Typed
from tests.relay.outbox.actions import accept, nothing_due
from tests.relay.outbox.rows import Rows
from tests.relay.served_relay import event_of
from tests.stores import each_store


@each_store
@pytest.mark.parametrize("from_before_the_upgrade", [False, True])
def test_the_next_start_takes_the_outbox_for_a_backup(typed: Typed, fill: Fill, from_before_the_upgrade: bool) -> None:
    async def used(rows: Rows) -> None:
        await detect_restore(rows.store, compare_delay=COMPARE_DELAY)
        await accept(rows.store, "x", event=event_of("firing"))
        await accept(rows.store, "x", event=event_of("resolved"))
        if from_before_the_upgrade:
            await rows.store.run(lambda transaction: transaction.connection.execute(delete(database_identity)))

    async def started(rows: Rows) -> None:
        assert await detect_restore(rows.store, compare_delay=COMPARE_DELAY)
        assert await nothing_due(rows.store)
        assert not await detect_restore(rows.store, compare_delay=0.0)

    async def audit(rows: Rows) -> list[str]:
        return [entry.action for entry in (await OutboxAudit(rows.store).list_entries(9, None))[0]]

    fill(used)
    result = typed("mark-restored")
    sentence = "marked; the relay will treat waiting deliveries as possibly delivered\n"
    assert (result.exit_code, result.stdout, result.stderr) == (0, sentence, "")
    fill(started)
    assert fill(audit) == ["mark-restored"]
