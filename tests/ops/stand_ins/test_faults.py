"""Each fault of the HTTP providers, as a client meets it."""

import asyncio
from typing import Any

import aiohttp
import pytest
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault

CRITICAL = "#security-critical"


def add(stand_ins: StandIns, provider: Provider, kind: FaultKind, **fields: Any) -> None:
    stand_ins.faults.add(ProviderFault(provider=provider, kind=kind, **fields))


async def until_met(stand_ins: StandIns) -> None:
    """Until the only fault, which has a count of 1, was met."""
    async with asyncio.timeout(20):
        while stand_ins.faults.get_state():  # noqa: ASYNC110  the request meets it in the same loop
            await asyncio.sleep(0.01)


async def test_a_fault_of_one_channel_spares_the_others(slack: AsyncWebClient, stand_ins: StandIns) -> None:
    add(stand_ins, Provider.SLACK, FaultKind.ERROR, error="is_archived", target=CRITICAL)
    await slack.auth_test()
    await slack.chat_postMessage(channel="#security-ops", text="x")
    for name in (CRITICAL, stand_ins.slack.channels[CRITICAL].id):
        with pytest.raises(SlackApiError, match="is_archived"):
            await slack.chat_postMessage(channel=name, text="x")


async def test_a_post_whose_answer_is_lost_can_be_found_by_its_metadata(
    slack: AsyncWebClient, stand_ins: StandIns
) -> None:
    add(stand_ins, Provider.SLACK, FaultKind.LOST_ANSWER, count=1)
    await slack.auth_test()  # stores nothing, so the fault waits for the post
    metadata = {"event_type": "delivery", "event_payload": {"id": "7"}}
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await slack.chat_postMessage(channel=CRITICAL, text="x", metadata=metadata)
    channel = stand_ins.slack.channels[CRITICAL].id
    history = await slack.conversations_history(channel=channel, include_all_metadata=True)
    assert [message["metadata"] for message in history["messages"]] == [metadata]


async def test_a_post_that_hangs_is_not_stored_and_healing_ends_the_wait(
    slack: AsyncWebClient, stand_ins: StandIns
) -> None:
    add(stand_ins, Provider.SLACK, FaultKind.HANG, count=1)
    posting = asyncio.ensure_future(slack.chat_postMessage(channel=CRITICAL, text="x"))
    await until_met(stand_ins)
    assert not posting.done()
    stand_ins.faults.clear()
    with pytest.raises(SlackApiError) as caught:
        await posting
    assert caught.value.response.status_code == 504
    assert not stand_ins.slack.channels[CRITICAL].messages


@pytest.mark.parametrize(
    "fields",
    [
        {"provider": "slack", "kind": "error"},
        {"provider": "smtp", "kind": "error", "error": "x"},
        {"provider": "slack", "kind": "refuse_recipient", "recipient": "a@example.org"},
        {"provider": "smtp", "kind": "refuse_recipient"},
        {"provider": "pagerduty", "kind": "hang", "target": "#x"},
        {"provider": "pagerduty", "kind": "slow_answer"},
        {"provider": "slack", "kind": "status", "status": 200},
        {"provider": "slack", "kind": "status", "count": 0},
        {"provider": "slack", "kind": "explode"},
        {"provider": "slack", "kind": "hang", "surprise": 1},
    ],
)
async def test_a_fault_that_could_never_happen_is_refused_with_what_was_expected(
    http: aiohttp.ClientSession, stand_ins: StandIns, fields: dict[str, Any]
) -> None:
    async with http.post("/api/faults", json=fields) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]
    assert stand_ins.faults.get_state() == []
