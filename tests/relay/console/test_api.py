"""`GET /api/deliveries`: what was delivered, to whoever may know."""

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp

from services.relay.channels.port import SendError, SendReason, SendScope
from shared.sql.database_url import DatabaseUrl
from tests.postgres import Postgres
from tests.relay.served_relay import Scripted, payload, post, reaches, served, settings, webhook_of
from tests.stores import each_store


class Clock:
    """The event loop and the deliveries go on; only what is written down stands still."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


async def get(client: aiohttp.ClientSession, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    async with client.get(path, **options) as response:
        return response.status, await response.json()


async def test_deliveries_are_listed_with_all_that_is_known_the_newest_first(tmp_path: Path) -> None:
    refused = Scripted(SendError(SendReason.REJECTED, SendScope.MESSAGE, "invalid_blocks"))
    async with served(settings(tmp_path, {"good": Scripted(), "bad": refused})) as client:
        _, accepted = await post(client, payload(1))
        await reaches(client, 1, "relay_deliveries_total", channel="bad", outcome="dead")
        await post(client, payload(4))
        await reaches(client, 2, "relay_deliveries_total", channel="good", outcome="delivered")
        await reaches(client, 1, "relay_deliveries_total", channel="bad", outcome="delivered")
        _, answer = await get(client, "/api/deliveries")
        assert [d["alertname"] for d in answer["deliveries"]] == ["KMSTest"] * 2 + ["KMSCryptoModeNotKMS"] * 2
        _, answer = await get(client, "/api/deliveries?state=delivered&channel=good&limit=1")
        assert [d["alertname"] for d in answer["deliveries"]] == ["KMSTest"]
        _, answer = await get(client, "/api/deliveries?state=dead")
        (dead,) = answer["deliveries"]
        assert dead.pop("id")
        assert len(dead.pop("incident_id")) == 64
        for key in ("accepted_at", "finished_at"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", dead.pop(key))
        assert dead == {
            "event_id": accepted["event_id"],
            "receiver": "kms-critical",
            "alertname": "KMSCryptoModeNotKMS",
            "title": "KMSCryptoModeNotKMS · production / backend",
            "service": "backend",
            "status": "firing",
            "channel": "bad",
            "state": "dead",
            "attempt_count": 1,
            "reason": "rejected",
            "superseded_by": None,
            "remark": None,
            "receipt": None,
            "digest": None,
        }


async def test_one_delivery_is_shown_with_its_attempts(tmp_path: Path) -> None:
    channel = Scripted(SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, "HTTP 503"))
    async with served(settings(tmp_path, {"one": channel}, delivery={"backoff_initial": "10ms"})) as client:
        await post(client, payload(1))
        await reaches(client, 1, "relay_deliveries_total", channel="one", outcome="delivered")
        _, answer = await get(client, "/api/deliveries")
        code, delivery = await get(client, f"/api/deliveries/{answer['deliveries'][0]['id']}")
        assert code == 200
        attempts = [(attempt["number"], attempt["reason"], attempt["detail"]) for attempt in delivery["attempts"]]
        assert attempts == [(1, "server_error", "HTTP 503"), (2, "ok", "taken")]
        assert delivery["receipt"] == {"number": "1"}
        assert delivery["payload"] == f"{delivery['id']}: firing"
        assert delivery["supersedes"] == []
        assert (await get(client, "/api/deliveries/unknown"))[0] == 404


async def test_a_wrong_filter_is_400_with_what_was_expected(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        for query in (
            "limit=0",
            "limit=1001",
            "limit=x",
            "limit=-1",
            "state=lost",
            "limit=" + "9" * 5000,
            "since=monday",
            "cursor=",
            "cursor=x",
            "cursor=" + "f" * 16,
            "channel=%00",
            "alertname=a%00b",
        ):
            code, answer = await get(client, f"/api/deliveries?{query}")
            assert code == 400
            assert "expected" in answer["error"]
        for query in ("since=2026-11-24T22:46:10", "since="):
            assert (await get(client, f"/api/deliveries?{query}"))[0] == 400
        code, answer = await get(client, "/api/deliveries?stat=dead")
        assert (code, answer["error"]) == (
            400,
            "unknown parameter; expected limit, cursor, state, channel, alertname, service, digest, since, until, text",
        )


@each_store
async def test_a_nul_character_is_an_error_and_no_defect_with_either_store(
    tmp_path: Path, database: DatabaseUrl
) -> None:
    configuration = settings(tmp_path, {"one": Scripted()}, database=database.render_as_string())
    async with served(configuration) as client:
        for method, path, code in (
            ("GET", "/api/deliveries/%00", 404),
            ("GET", "/api/deliveries?channel=a%00b", 400),
            ("GET", "/api/deliveries?alertname=%00", 400),
            ("GET", "/api/deliveries?state=%00", 400),
            ("GET", "/api/quarantine/%00", 404),
            ("POST", "/api/deliveries/%00/retry", 404),
            ("POST", "/api/deliveries/retry?channel=%00", 404),
        ):
            async with client.request(method, path) as response:
                assert (response.status, "error" in await response.json()) == (code, True), path


async def test_pages_follow_one_another_by_their_cursor(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        for number in range(5):
            await post(client, webhook_of(group=f"{number}"))
        _, whole = await get(client, "/api/deliveries")
        assert whole["next_cursor"] is None
        pages, path = [], "/api/deliveries?limit=2"
        while path:
            _, answer = await get(client, path)
            pages.append([delivery["id"] for delivery in answer["deliveries"]])
            await post(client, webhook_of(group=f"later-{len(pages)}"))
            path = answer["next_cursor"] and f"/api/deliveries?limit=2&cursor={answer['next_cursor']}"
        assert [len(page) for page in pages] == [2, 2, 1]
        assert [each for page in pages for each in page] == [delivery["id"] for delivery in whole["deliveries"]]


async def test_what_was_not_accepted_can_be_read(tmp_path: Path) -> None:
    body = b"<script>alert('\xff')</script>"
    async with served(settings(tmp_path, {"one": Scripted()}), clock=Clock()) as client:
        await post(client, b"{}")
        _, refused = await post(client, body, "/alerts?source=eu")
        code, answer = await get(client, "/api/quarantine")
        newest, oldest = answer["quarantine"]
        assert code == 200
        assert newest == {
            "id": newest["id"],
            "received_at": "2001-09-09T01:46:40.000Z",
            "source": "eu",
            "code": 400,
            "reason": refused["error"],
            "body_bytes": len(body),
            "is_cut": False,
            "hint": newest["hint"],
            "replayed_at": None,
            "replayed_by": None,
            "incident_id": None,
        }
        assert oldest["body_bytes"] == 2
        async with client.get(f"/api/quarantine/{newest['id']}") as response:
            assert await response.read() == body
            assert response.headers["Content-Type"].startswith("text/plain")
            assert response.headers["Content-Disposition"] == f'attachment; filename="webhook-{newest["id"]}.txt"'
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        for unknown in ("9999", "x", "9" * 500):
            assert (await get(client, f"/api/quarantine/{unknown}"))[0] == 404


async def test_a_store_that_cannot_be_read_is_503_with_the_reason(own_postgres: Postgres, tmp_path: Path) -> None:
    database = own_postgres.database("relay").render_as_string()
    async with served(settings(tmp_path, {"one": Scripted()}, database=database)) as client:
        assert (await get(client, "/api/deliveries"))[0] == 200
        await asyncio.to_thread(own_postgres.stop)
        for path in ("/api/deliveries", "/api/deliveries/x", "/api/quarantine"):
            code, answer = await get(client, path)
            assert code == 503
            assert answer["error"].startswith("the outbox cannot be used now, try again: ")
        await asyncio.to_thread(own_postgres.start)
        assert (await get(client, "/api/deliveries"))[0] == 200
