"""`GET /api/audit` of the relay: kept in the outbox, in either database, for as long as the retention says."""

from pathlib import Path

import pytest
from sqlalchemy import insert

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.deliveries import retries as bulk
from services.relay.outbox import dead_letters as requeue
from services.relay.outbox import retention as by_age
from services.relay.outbox import tables
from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.retention import PRUNE_STEP, prune_by_age
from services.relay.outbox.store import StoreUnavailableError, Transaction, open_store
from shared.http.access import AuditEntry
from shared.sql.database_url import DatabaseUrl
from tests.relay.console.test_api import Clock, get
from tests.relay.served_relay import Scripted, metric, payload, post, reaches, served, settings
from tests.stores import each_store

DAY = 86400.0


async def test_who_retried_what_is_reported_after_a_restart_too(database: DatabaseUrl, tmp_path: Path) -> None:
    for name in ("admin", "ben"):
        (tmp_path / name).write_text(f"the-token-of-{name}")
    auth = {
        "admin_token_file": tmp_path / "admin",
        "tokens": [{"name": "ben", "role": "responder", "file": str(tmp_path / "ben")}],
    }
    admin, ben = ({"Authorization": f"Bearer the-token-of-{name}"} for name in ("admin", "ben"))
    refused = Scripted(SendError(SendReason.REJECTED, SendScope.MESSAGE, "invalid_blocks"))
    url = database.render_as_string(hide_password=False)
    configured = settings(tmp_path, {"one": refused}, auth=auth, database=url)
    async with served(configured, clock=Clock()) as client:
        await post(client, payload(1))
        await reaches(client, 1, "relay_deliveries_total", channel="one", outcome="dead")
        _, dead = await get(client, "/api/deliveries", headers=ben)
        delivery = dead["deliveries"][0]["id"]
        claimed = {"X-Keypulse-Caller": "somebody else"}
        async with client.post(f"/api/deliveries/{delivery}/retry", headers=ben | claimed) as answer:
            assert answer.status == 202
        async with client.post("/api/deliveries/retry?channel=one", headers=ben) as answer:
            assert answer.status == 403
        async with client.post("/api/deliveries/retry?channel=one", headers=admin) as answer:
            assert answer.status == 202
    async with served(configured, clock=Clock()) as client:
        _, page = await get(client, "/api/audit?limit=1", headers=ben)
        assert [(each["who"], each["action"], each["on"]) for each in page["audit"]] == [("admin", "retry all", "one")]
        _, page = await get(client, f"/api/audit?limit=1&cursor={page['next_cursor']}", headers=ben)
    (entry,) = page["audit"]
    at = entry.pop("at")
    assert (at.endswith("Z"), page["next_cursor"]) == (True, None)
    assert entry == {"who": "ben", "from": "127.0.0.1", "action": "retry", "on": delivery}


async def test_a_retry_and_its_entry_are_committed_in_one_transaction_or_neither_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = [SendError(SendReason.REJECTED, SendScope.MESSAGE, "invalid_blocks")] * 3
    async with served(settings(tmp_path, {"one": Scripted(*refused)})) as client:
        await post(client, payload(1))
        await reaches(client, 1, "relay_outbox_deliveries", channel="one", state="dead")
        delivery = (await get(client, "/api/deliveries"))[1]["deliveries"][0]["id"]

        def fail(*_: object) -> None:
            raise StoreUnavailableError("disk full")

        retries = (
            f"/api/deliveries/{delivery}/retry",
            f"/deliveries/{delivery}/retry",
            f"/quarantine/retry/{delivery}",
        )
        with monkeypatch.context() as patch:
            for module in (requeue, bulk):
                patch.setattr(module, "insert_entry", fail)
            for path in (*retries, "/quarantine/retry", "/api/deliveries/retry?channel=one"):
                async with client.post(path, data={"csrf_token": ""}) as answer:
                    assert answer.status == 503, path
        assert await metric(client, "relay_outbox_deliveries", channel="one", state="dead") == 1
        assert (await get(client, "/api/audit"))[1]["audit"] == []
        async with client.post(retries[0]) as answer:
            assert answer.status == 202
        (entry,) = (await get(client, "/api/audit"))[1]["audit"]
    assert (entry["who"], entry["from"], entry["action"], entry["on"]) == ("anonymous", "127.0.0.1", "retry", delivery)


@each_store
async def test_entries_go_by_age_in_steps_and_hold_what_a_database_takes(database: DatabaseUrl) -> None:
    async with open_store(database, Clock()) as store:
        audit = OutboxAudit(store)

        def age(transaction: Transaction) -> None:
            row = {"who": "ben", "peer": None, "action": "old", "object": "", "at": transaction.now - 2 * DAY}
            transaction.connection.execute(insert(tables.audit), [row] * (2 * PRUNE_STEP + 1))

        await store.run(age)
        await audit.add(AuditEntry(0.0, "ben", "::1", "now", "a\0b"))
        await prune_by_age(store, 3 * DAY, 1000)
        assert len((await audit.list_entries(1000, None))[0]) == 2 * PRUNE_STEP + 2
        await prune_by_age(store, DAY, 1000)
        (entry,) = (await audit.list_entries(1000, None))[0]
    assert (entry.who, entry.peer, entry.action, entry.on) == ("ben", "::1", "now", "a\ufffdb")
    assert entry.at > 0  # by the database's clock


async def test_of_more_entries_than_are_kept_the_oldest_go(
    database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_age, "AUDIT_ROWS", 150)
    async with open_store(database, Clock()) as store:

        def add_entries(transaction: Transaction) -> None:
            rows = [{"who": "ben", "action": "x", "object": f"{n}", "at": transaction.now} for n in range(400)]
            transaction.connection.execute(insert(tables.audit), rows)

        await store.run(add_entries)
        await prune_by_age(store, DAY, 1000)
        entries = (await OutboxAudit(store).list_entries(1000, None))[0]
    assert [each.on for each in entries] == [f"{n}" for n in reversed(range(250, 400))]
