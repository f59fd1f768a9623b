"""What else fires, how often it fired, and what was sent before: read with the deliveries that are prepared."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from sqlalchemy import update

from services.relay.model import MAX_EPISODES, Claim, Event, Status
from services.relay.outbox.context import MAX_RELATED, read_contexts
from services.relay.outbox.store import Transaction, open_store
from services.relay.outbox.tables import incidents
from shared.sql.database_url import DatabaseUrl, create_sqlite_url
from tests.relay.outbox.actions import accept, claim_one, end_attempt
from tests.relay.served_relay import event_of
from tests.stores import each_store

DAY = 86400.0


def of(status: str = "firing", *, env: str = "production", service: str = "ledger", **alerts: str) -> Event:
    labels = {"env": env, "service": service}
    event = event_of(status, group_labels={"alertname": "KMSTest"}, common_labels=labels)
    (alert,) = event.alerts
    listed = tuple(replace(alert, fingerprint=name, status=Status(each)) for name, each in alerts.items())
    return replace(event, alerts=listed or event.alerts)


@each_store
async def test_what_else_fires_for_the_service_is_named_the_oldest_first(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        for number in range(MAX_RELATED + 2):
            await accept(store, f"other {number}", event=of(), episode=1)
            await store.run(partial(_start_earlier, incident=f"other {number}", seconds=100.0 - number))
        await accept(store, "elsewhere", event=of(env="staging"), episode=1)
        await accept(store, "over", event=of("resolved"), episode=1, is_open=False)
        await accept(store, "alone", event=of(service="other"), episode=1)
        await accept(store, "alone, over", event=of("resolved", service="other"), episode=1, is_open=False)
        await accept(store, "nothing", event=of(service=""), episode=1)
        await accept(store, "mine", event=of(), episode=1)
        tasks: dict[str, Claim] = {}
        while len(tasks) < MAX_RELATED + 8:
            claim = await claim_one(store)
            tasks[claim.task.incident_id] = claim
            await end_attempt(store, claim)
        read = dict(
            zip(
                tasks,
                await store.read(partial(read_contexts, tasks=[each.task for each in tasks.values()])),
                strict=True,
            )
        )

    mine = read["mine"]
    assert [each.incident_id for each in mine.related] == [f"other {number}" for number in range(MAX_RELATED)]
    assert mine.related_count == MAX_RELATED + 2
    assert mine.related[0].title == "KMSTest"
    assert mine.started_at is not None
    assert 90 < (mine.started_at - mine.related[0].since).total_seconds() < 110
    assert read["other 0"].related[0].incident_id == "other 1"
    assert read["over"].related_count == MAX_RELATED + 3
    assert [each.incident_id for each in read["alone, over"].related] == ["alone"]
    assert (read["elsewhere"].related_count, read["nothing"].related_count) == (0, 0)
    assert read["nothing"].episodes_in_7_days == 1


def _start_earlier(transaction: Transaction, incident: str, seconds: float) -> None:
    earlier = update(incidents).where(incidents.c.id == incident).values(started_at=transaction.now - seconds)
    transaction.connection.execute(earlier)


async def test_starts_within_seven_days_are_counted(tmp_path: Path) -> None:
    now = time.time()
    async with open_store(create_sqlite_url(tmp_path / "relay.db"), lambda: now) as store:
        counts = []
        for episode, days in enumerate((0, 3, 3, 3.5, 6), 1):  # days after the start before
            now += days * DAY
            await accept(store, "one", event=of(), episode=episode)
            await accept(store, "one", event=of(), episode=episode)  # repeats it
            claim = await claim_one(store)
            counts.append(claim.task.context.episodes_in_7_days)
            await end_attempt(store, claim)
        assert counts == [1, 2, 3, 3, 2]
        for episode in range(6, 6 + MAX_EPISODES):
            await accept(store, "one", event=of(), episode=episode)
        assert (await claim_one(store)).task.context.episodes_in_7_days == MAX_EPISODES


@each_store
async def test_the_previous_message_is_the_last_that_its_channel_accepted_in_this_episode(
    database: DatabaseUrl,
) -> None:
    async with open_store(database, time.time) as store:
        found = []
        for episode, event in (
            (1, of(a="firing", b="firing")),
            (1, of(a="resolved", b="firing", c="firing")),
            (1, of("resolved", a="resolved", b="resolved")),
            (2, of(a="firing")),
        ):
            await accept(store, "one", event=event, episode=episode)
            claim = await claim_one(store)
            found.append(claim.task.context)
            await end_attempt(store, claim)
    assert [each.previous_alerts for each in found] == [
        {},
        {"a": "firing", "b": "firing"},
        {"a": "resolved", "b": "firing", "c": "firing"},
        {},
    ]
    assert [each.previous_at is None for each in found] == [True, False, False, True]


async def test_a_group_of_hundreds_is_compared_with_its_previous_message(tmp_path: Path) -> None:
    alerts = {f"{number:0200}": "firing" for number in range(200)}
    async with open_store(create_sqlite_url(tmp_path / "relay.db"), time.time) as store:
        for event in (of(**alerts), of(**alerts, worse="firing")):
            await accept(store, "one", event=event)
            claim = await claim_one(store)
            context = claim.task.context
            await end_attempt(store, claim)
    assert len(context.previous_alerts) == len(alerts)
