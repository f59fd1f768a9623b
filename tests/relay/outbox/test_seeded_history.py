"""What the tests of pages show is an outbox as the relay would have left it: the oracle finds nothing wrong with it."""

import time

from sqlalchemy import Connection, select

from services.relay.model import Status, build_incident_id, decode_event
from services.relay.outbox.store import open_store
from services.relay.outbox.tables import deliveries, events, incidents
from shared.sql.database_url import DatabaseUrl
from tests.relay.delivery_oracle.evidence import Channel, Event, read_delivery
from tests.relay.delivery_oracle.outbox_invariants import check_stored
from tests.relay.outbox.actions import accept
from tests.relay.outbox.seeded_history import KINDS, UNMERGED, seed_history


async def test_a_seeded_outbox_breaks_no_promise_and_goes_on(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        history = await seed_history(store, 2_000)
        assert {"delivered", "dead", "superseded", "retrying"} == set(history.newest_by_state)
        await store.read(lambda connection: check(connection, {each.id: each.channels for each in history.incidents}))
        await accept(store, "new", "slack")  # the numbers go on


def check(connection: Connection, channels: dict[str, tuple[str, ...]]) -> None:
    rows = connection.execute(select(deliveries)).all()
    stored = connection.execute(select(events)).all()
    accepted = [Event(row.seq, row.id, row.incident_id, None, frozenset(), channels[row.incident_id]) for row in stored]
    merging = {name: Channel((name,), merges=name != UNMERGED) for name in KINDS}
    assert list(check_stored(accepted, [read_delivery(row) for row in rows], merging)) == []
    assert 1_900 < len(rows) < 2_300
    latest = {row.latest_event_seq: row for row in connection.execute(select(incidents))}
    for row in stored:
        event = decode_event(row.event)
        assert (build_incident_id(event), event.status) == (row.incident_id, row.status)
        if row.seq in latest:
            assert latest[row.seq].is_open == (event.status is Status.FIRING)
