"""A search finds what it should, on pages that follow one another both ways, and never examines the whole outbox."""

import time
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, event, select, update

from services.relay.deliveries import queries as delivery_search
from services.relay.deliveries.queries import (
    NEWEST,
    DeliveryFilter,
    Position,
    SearchResult,
    list_deliveries,
    search_deliveries,
)
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, attempts, deliveries, incidents
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.rows import Rows
from tests.relay.outbox.seeded_history import SERVICES, UNMERGED, seed_history
from tests.relay.outbox.statistics import analyze
from tests.stores import each_store


async def search(store: Store, filter_: DeliveryFilter, position: Position = NEWEST, **bounds: Any) -> SearchResult:
    return await store.read(
        partial(search_deliveries, filter_=filter_, position=position, limit=bounds.pop("limit", 100), **bounds)
    )


@each_store
async def test_each_filter_finds_what_people_mean_by_it(store: Store) -> None:
    rows = Rows(store)
    old, new = await rows.event("old", age=600), await rows.event("new", age=60)
    dead = await rows.delivery(old, "slack", DeliveryState.DEAD, reason="rejected")
    mail = await rows.delivery(old, "email", remark="Also sent here because channel 100%_down is down.")
    page = await rows.delivery(new, "pagerduty")
    named = update(incidents).where(incidents.c.id == "old").values(service="ledger", title="Ledger CANNOT encrypt")
    detailed = update(attempts).where(attempts.c.delivery_seq == 3).values(detail="Event processed")
    await store.run(lambda transaction: transaction.connection.execute(named).close())
    await store.run(lambda transaction: transaction.connection.execute(detailed).close())
    now = await store.run(lambda transaction: transaction.now)
    for wanted, ids in (
        (DeliveryFilter(state=DeliveryState.DEAD), [dead]),
        (DeliveryFilter(channel="email"), [mail]),
        (DeliveryFilter(channel="email", state=DeliveryState.DEAD), []),
        (DeliveryFilter(service="ledger"), [mail, dead]),
        (DeliveryFilter(service="ledg"), []),
        (DeliveryFilter(until=now - 300), [mail, dead]),
        (DeliveryFilter(since=now - 300, until=now), [page]),
        (DeliveryFilter(since=now - 300, until=now - 400), []),
        (DeliveryFilter(text="cannot ENC"), [mail, dead]),
        (DeliveryFilter(text="100%_"), [mail]),  # no pattern
        (DeliveryFilter(text="1%down"), []),
        (DeliveryFilter(text="event proc"), [page]),
        (DeliveryFilter(text="reject", state=DeliveryState.DEAD), [dead]),
        (DeliveryFilter(text=page), [page]),
        (DeliveryFilter(text="alert-NEW"), [page]),
        (DeliveryFilter(incident_id="old", channel="email"), [mail]),
        (DeliveryFilter(alertname="Alert-old", state=DeliveryState.DELIVERED), [mail]),
    ):
        found = await list_deliveries(store, wanted, limit=9)
        assert [delivery.id for delivery in found.deliveries] == ids, wanted
        assert (found.older, found.newer, found.examined) == (None, None, None)
    (row,) = (await list_deliveries(store, DeliveryFilter(channel="slack"), limit=9)).deliveries
    assert (row.title, row.service) == ("Ledger CANNOT encrypt", "ledger")


@pytest.mark.parametrize(
    "filter_",
    [DeliveryFilter(), DeliveryFilter(channel="email"), DeliveryFilter(state=DeliveryState.DEAD)],
    ids=["all", "channel", "dead"],
)
async def test_pages_follow_one_another_both_ways(store: Store, filter_: DeliveryFilter) -> None:
    rows = Rows(store)
    events = await rows.event()
    for number in range(25):
        await rows.delivery(events, f"other-{number}")
        await rows.delivery(events, "email", DeliveryState.DEAD)
    forth = [await search(store, filter_, limit=10)]
    while forth[-1].older is not None:
        forth.append(await search(store, filter_, Position(before=forth[-1].older), limit=10))
    seqs = [seq for page in forth for seq in page.seqs]
    assert seqs == sorted(seqs, reverse=True)
    assert len(seqs) == (50 if filter_ == DeliveryFilter() else 25)
    back = [forth[-1]]
    while back[-1].newer is not None:
        back.append(await search(store, filter_, Position(after=back[-1].newer), limit=10))
    assert back[-1].seqs == forth[0].seqs  # whoever goes back arrives at a whole first page
    assert {seq for page in back for seq in page.seqs} == set(seqs)


async def test_a_page_says_how_far_it_searched_and_the_next_one_goes_on(store: Store) -> None:
    rows = Rows(store)
    wanted = await rows.delivery(await rows.event("wanted", age=500), "email", remark="find me")
    for number in range(25):
        await rows.delivery(await rows.event(f"{number}", age=400 - number), "slack")
    filter_, pages, position = DeliveryFilter(text="find me"), [], NEWEST
    accepted = await store.read(lambda connection: connection.execute(select(deliveries.c.accepted_at)).scalars().all())
    while True:
        pages.append(await search(store, filter_, position, max_examined=10))
        if pages[-1].older is None:
            break
        position = Position(before=pages[-1].older)
    assert [page.examined and page.examined.number for page in pages] == [10, 10, None]
    assert pages[0].examined
    assert pages[0].examined.back_to == pytest.approx(sorted(accepted)[-10])
    found = await list_deliveries(store, filter_, limit=5, position=Position(before=pages[-2].older))
    assert [delivery.id for delivery in found.deliveries] == [wanted]
    back = await search(store, filter_, Position(after=pages[-1].seqs[0]), max_examined=10)
    assert (back.seqs, back.examined and back.examined.number) == ([], 10)
    assert back.newer == pages[-1].seqs[0] + 10


def explain(connection: Connection, filter_: DeliveryFilter, position: Position) -> str:
    """How the database would find what to examine; what follows is about these deliveries alone."""
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"

    @event.listens_for(connection, "before_cursor_execute", retval=True)
    def _explained(*execution: Any) -> tuple[str, Any]:
        return f"{explain} {execution[2]}", execution[3]

    examined = delivery_search._examine(filter_, position, 50)
    return str(connection.execute(select(examined.c.seq)).cursor.fetchall())


@each_store
async def test_every_search_goes_by_an_index(database: DatabaseUrl) -> None:
    indexes: dict[str, DeliveryFilter] = {
        "deliveries_unsettled": DeliveryFilter(state=DeliveryState.RETRYING, channel="email-secops"),
        "deliveries_of_episode": DeliveryFilter(incident_id="one", channel="slack"),
        "deliveries_of_digest": DeliveryFilter(digest="one"),
        "deliveries_by_time": DeliveryFilter(since=time.time() - 86400.0, until=time.time() - 80000.0),
    }
    async with open_store(database, time.time) as store:
        await seed_history(store, 4_000)
        await analyze(store)
        for position in (NEWEST, Position(before=3_000), Position(after=2_000)):
            plan = await store.read(partial(explain, filter_=DeliveryFilter(text="x", channel="y"), position=position))
            assert "TEMP B-TREE" not in plan, plan
            assert "Sort" not in plan, plan
            assert "deliveries_pkey" in plan or "SCAN deliveries" in plan or "PRIMARY KEY" in plan, plan
        for index, filter_ in indexes.items():
            plan = await store.read(partial(explain, filter_=filter_, position=NEWEST))
            assert index in plan, plan
            assert "Seq Scan on deliveries" not in plan, plan


async def test_a_month_of_deliveries_is_paged_without_a_gap(store: Store) -> None:
    history = await seed_history(store, 1_500)
    for filter_ in (
        DeliveryFilter(channel=UNMERGED, state=DeliveryState.DELIVERED),
        DeliveryFilter(service=SERVICES[0]),
        DeliveryFilter(text="invalid_blocks"),
    ):
        whole = (await search(store, filter_, limit=5_000)).seqs
        pages, position = [], NEWEST
        while True:
            page = await search(store, filter_, position, limit=40, max_examined=300)
            pages += page.seqs
            if page.older is None:
                break
            position = Position(before=page.older)
        assert pages == whole
        assert 0 < len(whole) < history.delivery_count
