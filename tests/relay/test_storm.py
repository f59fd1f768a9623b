"""A storm, from the webhooks to a Slack with its real rate: every incident is named, and digests show their end."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from ops.demo.stand_ins.slack.workspace import SlackMessage
from services.relay.config import RelaySettings
from tests.relay.served_relay import TOKEN, post, served, until
from tests.relay.storms import CHANNEL, build_webhook, count_named, find_digests, posts

pytestmark = pytest.mark.played  # by a clock that a busy machine does not keep up with; make test has the demo's storm

OVER = 5
_SPEED = 8.0
"""Seconds of the test's clock in a second."""


def read_clock(_start: float = time.time()) -> float:
    """What the outbox and Slack go by: so a storm of half a minute takes four seconds."""
    return _start + (time.time() - _start) * _SPEED


@asynccontextmanager
async def storm_relay(folder: Path, **channel: Any) -> AsyncIterator[tuple[StandIns, aiohttp.ClientSession]]:
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "slack_token").write_text("xoxb-test")
    async with run_stand_ins(slack_rates=True, clock=read_clock) as stand_ins:
        (folder / "slack_webhook").write_text(stand_ins.build_slack_webhook_url())
        slack = {"channel": CHANNEL, "token_file": folder / "slack_token", "api_url": stand_ins.slack_api_url}
        given = RelaySettings(
            database=f"sqlite:///{folder}/relay.db",
            auth={"bearer_token_file": folder / "token"},
            environment="staging",
            channels={"slack": {"kind": "slack", **(channel or slack)}},
            default_channels=["slack"],
            pacing={"digest_over": OVER},
        )
        async with served(given, clock=read_clock) as client:
            yield stand_ins, client


async def post_webhooks(
    client: aiohttp.ClientSession, numbers: Iterable[int], severity: str, status: str = "firing"
) -> None:
    posts = [post(client, build_webhook(number, severity, status)) for number in numbers]
    assert {code for code, _ in await asyncio.gather(*posts)} == {202}


async def read_deliveries(client: aiohttp.ClientSession, **filters: str) -> list[dict[str, Any]]:
    async with client.get("/api/deliveries", params={"limit": "1000", **filters}) as response:
        deliveries: list[dict[str, Any]] = (await response.json())["deliveries"]
    return deliveries


async def all_delivered(client: aiohttp.ClientSession) -> bool:
    return {each["state"] for each in await read_deliveries(client)} <= {"delivered", "superseded"}


async def test_each_incident_of_a_storm_is_named_and_its_digest_shows_its_end(tmp_path: Path) -> None:
    async with storm_relay(tmp_path) as (stand_ins, client):
        await post_webhooks(client, range(5), "warning")
        await until(lambda: len(posts(stand_ins)) == 5)
        stand_ins.faults.add(ProviderFault(provider=Provider.SLACK, kind=FaultKind.LOST_ANSWER, count=1))
        await post_webhooks(client, range(5, 65), "warning")
        await post_webhooks(client, range(65, 75), "critical")
        await until(lambda: all_delivered(client), 20)
        alone, collected = range(5), range(5, 65)
        named = count_named(posts(stand_ins), range(75))
        assert {named[number] for number in [*alone, *collected]} == {1}, "by name, and nobody twice"
        assert {named[number] for number in range(65, 75)} <= {1, 2}, "critical ones have their own message"
        in_digests = [each for each in await read_deliveries(client) if "digest" in each["receipt"]]
        assert all(each["receipt"]["digest"] == each["digest"] for each in in_digests)
        assert len(in_digests) > len(collected) / 2
        digest = find_digests(stand_ins)[0]
        of_digest = await read_deliveries(client, digest=await _find_digest_id(client, digest))
        one = next(each for each in of_digest if each["receipt"]["ts"] == digest.ts)
        async with client.get(f"/api/deliveries/{one['id']}") as response:
            details = await response.json()
        assert details["receipt"]["ts"] == digest.ts
        assert json.loads(details["payload"])["blocks"] == digest.blocks

        await post_webhooks(client, range(75), "warning", "resolved")
        await until(lambda: all_delivered(client), 20)
        await until(lambda: "resolved" in find_digests(stand_ins)[0].text, 10)
        (edited, *_) = find_digests(stand_ins)
        assert edited.edited_at
        assert "🟢" in edited.text
        roots = [each.ts for each in posts(stand_ins)[:5]]
        ends = [each.thread_ts for each in posts(stand_ins) if each.thread_ts in roots]
        assert sorted(ends) == roots, "the end of what was sent alone is in its own thread"


async def _find_digest_id(client: aiohttp.ClientSession, message: SlackMessage) -> str:
    deliveries = await read_deliveries(client)
    return str(next(each["digest"] for each in deliveries if (each["receipt"] or {}).get("ts") == message.ts))


async def test_a_digest_that_slack_refuses_goes_one_by_one(tmp_path: Path) -> None:
    async with storm_relay(tmp_path) as (stand_ins, client):
        await post_webhooks(client, range(5), "warning")
        await until(lambda: len(posts(stand_ins)) == 5)
        refusal = ProviderFault(provider=Provider.SLACK, kind=FaultKind.ERROR, error="invalid_blocks", count=1)
        stand_ins.faults.add(refusal)
        await post_webhooks(client, range(5, 15), "warning")
        await until(lambda: all_delivered(client), 20)
        assert find_digests(stand_ins) == []
        assert set(count_named(posts(stand_ins), range(15)).values()) == {1}


async def test_an_incoming_webhook_gets_digests_too(tmp_path: Path) -> None:
    async with storm_relay(tmp_path, webhook_url_file=tmp_path / "slack_webhook", allow_remote_insecure=True) as (
        stand_ins,
        client,
    ):
        await post_webhooks(client, range(40), "info")
        await until(lambda: all_delivered(client), 20)
        assert len(find_digests(stand_ins, "#security-critical")) in (1, 2)
        assert set(count_named(posts(stand_ins, "#security-critical"), range(40)).values()) == {1}


async def test_a_digest_that_somebody_deleted_is_reposted_and_edited_from_then_on(tmp_path: Path) -> None:
    async with storm_relay(tmp_path) as (stand_ins, client):
        await post_webhooks(client, range(20), "critical")
        await until(lambda: all_delivered(client), 20)
        (digest,) = find_digests(stand_ins)
        stand_ins.slack.delete_message(stand_ins.slack.channels[CHANNEL], digest)
        await post_webhooks(client, [19], "critical", "resolved")
        await until(lambda: "1 resolved" in "".join(each.text for each in find_digests(stand_ins)), 10)
        (second,) = find_digests(stand_ins)
        assert second.ts != digest.ts
        await post_webhooks(client, [18], "critical", "resolved")
        await until(lambda: "2 resolved" in find_digests(stand_ins)[0].text, 10)
        assert [each.ts for each in find_digests(stand_ins)] == [second.ts]
        alone = [each for each in posts(stand_ins) if not each.thread_ts and each.ts != second.ts]
        assert len(alone) == 20, "the messages of their own are where they were"
