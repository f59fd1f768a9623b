"""The open incidents that the page Now shows: the worst first, and who takes care of each."""

import time
from functools import partial

from sqlalchemy import insert, update

from services.relay.acknowledgement.store import acknowledge
from services.relay.now.overview import read_open_incidents
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import incidents, silences
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept
from tests.relay.served_relay import event_of, with_labels
from tests.stores import each_store


async def fire(store: Store, incident: str, severity: str | None, *, is_open: bool = True) -> None:
    labels = {"alertname": "KMSTest"} | ({} if severity is None else {"severity": severity})
    await accept(store, incident, event=with_labels(event_of(), labels), is_open=is_open)


async def silence(store: Store, incident: str, **changes: object) -> None:
    row = {"channel": "slack", "slack_channel": "C1", "thread": "1.2", "user_id": "U1", "who": "grace", "attempts": 0}
    row["created_by"] = "grace"
    row |= {"id": f"{incident}{len(changes)}", "incident_id": incident, "episode": 1, "state": "created", "due_at": 0.0}
    await store.run(lambda transaction: transaction.connection.execute(insert(silences), row | changes).close())


@each_store
async def test_the_worst_come_first_with_who_takes_care_of_them_and_all_are_counted(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        for incident, severity in (
            *(("info", "notice"), ("warning", "warning"), ("unknown", "odd"), ("none", None)),
            *(("error", "high"), ("first critical", "page"), ("second critical", "critical")),
        ):
            await fire(store, incident, severity)
        await fire(store, "over", "critical", is_open=False)
        await acknowledge(store, "first critical", who="ada", via="api", peer=None, acknowledging_channels=frozenset())
        now = await store.run(lambda transaction: transaction.now)
        await silence(store, "error", ends_at=now + 600)
        await silence(store, "warning", ends_at=now - 600)
        await silence(store, "info", ends_at=now + 600, state="failed")
        await silence(store, "unknown", ends_at=now + 600, episode=2)
        escalated = (
            update(incidents).where(incidents.c.id == "warning").values(escalated_to='["boss"]', escalated_at=now)
        )
        await store.run(lambda transaction: transaction.connection.execute(escalated).close())

        found = await store.read(partial(read_open_incidents, clock=time.time, most=9))
        assert [each.id for each in found.incidents] == [
            *("second critical", "first critical", "error", "none", "unknown", "warning", "info")
        ]
        assert found.counts == {"critical": 2, "error": 1, "": 2, "warning": 1, "info": 1}
        assert found.unacknowledged_counts == {"critical": 1, "error": 1, "": 2, "warning": 1, "info": 1}
        assert (found.total, found.unacknowledged) == (7, 6)
        by_id = {each.id: each for each in found.incidents}
        assert (by_id["first critical"].acknowledged_by, by_id["second critical"].acknowledged_by) == ("ada", None)
        assert by_id["warning"].escalated_to == ["boss"]
        assert {each.id: each.silenced_by for each in found.incidents if each.silenced_by} == {"error": "grace"}
        assert by_id["error"].silenced_until == now + 600
        assert by_id["error"].title

        few = await store.read(partial(read_open_incidents, clock=time.time, most=3))
        assert [each.id for each in few.incidents] == ["second critical", "first critical", "error"]
        assert few.total == 7


async def test_nothing_open_is_an_empty_list(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        found = await store.read(partial(read_open_incidents, clock=time.time, most=3))
        assert (list(found.incidents), found.total) == ([], 0)
