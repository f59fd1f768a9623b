"""What was given up is tried again because a person says so: over the API, and from nobody else's web page."""

import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.relay.channels.port import SendError, SendReason, SendScope
from tests.relay.served_relay import Scripted, post, reaches, served, settings, webhook_of

REFUSED = SendError(SendReason.REJECTED, SendScope.MESSAGE, "invalid_blocks")


async def retry(client: aiohttp.ClientSession, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    async with client.post(f"/api/deliveries/{path}", headers=headers) as response:
        return response.status, await response.json()


async def listed(client: aiohttp.ClientSession, query: str) -> list[dict[str, Any]]:
    async with client.get(f"/api/deliveries?{query}") as response:
        found: list[dict[str, Any]] = (await response.json())["deliveries"]
        return found


async def given_up(client: aiohttp.ClientSession, count: int = 1) -> list[str]:
    """Ids of deliveries on the channel `one` that are dead, each of an incident of its own."""
    for number in range(count):
        await post(client, webhook_of(group=f"{number}"))
    await reaches(client, count, "relay_outbox_deliveries", channel="one", state="dead")
    return [delivery["id"] for delivery in await listed(client, "channel=one&state=dead")]


async def test_what_was_given_up_is_sent_at_once_and_another_delivery_reports_it(tmp_path: Path) -> None:
    channel = Scripted(REFUSED)
    async with served(settings(tmp_path, {"one": channel})) as client:
        (dead,) = await given_up(client)
        code, answer = await retry(client, f"{dead}/retry")
        assert code == 202
        assert answer == {"id": dead, "state": "superseded", "superseded_by": answer["superseded_by"]}
        await reaches(client, 1, "relay_deliveries_total", channel="one", outcome="delivered")
        (delivered,) = await listed(client, "state=delivered")
        assert delivered["id"] == answer["superseded_by"] != dead
        assert len(channel.sent) == 1


async def test_what_waits_for_its_next_attempt_is_due_at_once(tmp_path: Path) -> None:
    channel = Scripted(SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, "HTTP 503", retry_after=3600))
    async with served(settings(tmp_path, {"one": channel, "two": Scripted()})) as client:
        await post(client, webhook_of())
        await reaches(client, 1, "relay_outbox_deliveries", channel="one", state="retrying")
        (waits,) = await listed(client, "channel=one")
        assert await retry(client, f"{waits['id']}/retry") == (
            202,
            {"id": waits["id"], "state": "retrying", "superseded_by": None},
        )


async def test_what_is_over_or_unknown_cannot_be_retried(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted(REFUSED)})) as client:
        (dead,) = await given_up(client)
        await retry(client, f"{dead}/retry")
        await reaches(client, 1, "relay_deliveries_total", channel="one", outcome="delivered")
        (delivered,) = await listed(client, "state=delivered")
        code, answer = await retry(client, f"{delivered['id']}/retry")
        assert (code, answer["error"]) == (409, "there is nothing to try again: it was delivered")
        code, answer = await retry(client, f"{dead}/retry")
        assert (code, answer["error"]) == (409, "there is nothing to try again: another delivery supersedes it")
        code, answer = await retry(client, "unknown/retry")
        assert (code, answer["error"]) == (404, "no such delivery")


async def test_all_of_a_channel_are_retried_and_what_dies_again_stays_dead(tmp_path: Path) -> None:
    channel = Scripted(*[REFUSED] * 4)
    async with served(settings(tmp_path, {"one": channel})) as client:
        await given_up(client, 3)
        assert await retry(client, "retry?channel=one") == (202, {"retried": 3})
        await reaches(client, 2, "relay_deliveries_total", channel="one", outcome="delivered")
        await reaches(client, 1, "relay_outbox_deliveries", channel="one", state="dead")
        assert len(channel.attempted) == 6


async def test_all_of_an_unknown_channel_is_404_and_of_none_is_400(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted(), "two": Scripted()})) as client:
        code, answer = await retry(client, "retry?channel=x")
        assert (code, answer["error"]) == (404, "no such channel; expected one of one, two")
        assert (await retry(client, "retry"))[0] == 400
        assert await retry(client, "retry?channel=one") == (202, {"retried": 0})


@pytest.mark.usefixtures("short_lock_wait")
async def test_a_database_that_somebody_locks_is_503_and_nothing_is_lost(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted(REFUSED)})) as client:
        (dead,) = await given_up(client)
        holder = sqlite3.connect(tmp_path / "relay.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        code, answer = await retry(client, f"{dead}/retry")
        assert code == 503
        assert "locked" in answer["error"]
        holder.execute("ROLLBACK")
        holder.close()
        assert (await retry(client, f"{dead}/retry"))[0] == 202
