"""A thread that takes no reply: the message stands in the channel instead, once, and the channel is not to blame."""

import pytest

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.channels.port import Receipt, SendScope
from services.relay.model import Message
from tests.relay.channels.recording_attempt import Recorded, refuse, send
from tests.relay.channels.slack.slack_posts import Connect, locate, now, posts

LOCKED = "restricted_action_thread_locked"


def answer_to(first: Receipt) -> Message:
    return now(event="03-resolved-1", delivery_id="answer", first_receipt=first)


def refuse_posts(stand_ins: StandIns, code: str = LOCKED, count: int | None = 1) -> None:
    stand_ins.faults.add(ProviderFault(provider=Provider.SLACK, kind=FaultKind.ERROR, error=code, count=count))


@pytest.mark.parametrize("code", [LOCKED, "cannot_reply_to_message"])
async def test_what_a_thread_refuses_is_posted_without_it_at_once(
    code: str, connect: Connect, stand_ins: StandIns
) -> None:
    channel = connect()
    attempt = Recorded(answer_to(await send(channel, now())))
    refuse_posts(stand_ins, code)
    receipt = await channel.send(attempt)
    first, second = posts(stand_ins)
    assert (first.thread_ts, second.thread_ts) == (None, None)
    assert receipt == {"channel": stand_ins.slack.channels["#security-critical"].id, "ts": second.ts}
    assert "repeat" not in second.text
    assert [payload.count("thread_ts") for payload in attempt.payloads] == [1, 0]


async def test_one_whose_answer_was_lost_then_is_found_and_not_reposted(connect: Connect, stand_ins: StandIns) -> None:
    channel = connect()
    attempt = Recorded(answer_to(await send(channel, now())))
    refuse_posts(stand_ins)
    stand_ins.faults.add(ProviderFault(provider=Provider.SLACK, kind=FaultKind.LOST_ANSWER, count=1))
    lost = await refuse(channel, attempt)
    assert lost.maybe_arrived
    receipt = await connect().send(attempt.create_retry(lost))
    _, second = posts(stand_ins)
    assert receipt == locate(stand_ins, second)


async def test_the_next_attempt_does_not_ask_the_thread_again(connect: Connect, stand_ins: StandIns) -> None:
    channel = connect()
    attempt = Recorded(answer_to(await send(channel, now())))
    refuse_posts(stand_ins)
    stand_ins.faults.add(ProviderFault(provider=Provider.SLACK, kind=FaultKind.STATUS, count=1))
    failed = await refuse(channel, attempt)
    retry = attempt.create_retry(failed)
    await channel.send(retry)
    assert [payload.count("thread_ts") for payload in retry.payloads] == [0]
    assert len(posts(stand_ins)) == 2


async def test_a_message_that_is_refused_even_without_a_thread_is_not_tried_a_third_time(
    connect: Connect, stand_ins: StandIns
) -> None:
    channel = connect()
    attempt = Recorded(answer_to(await send(channel, now())))
    refuse_posts(stand_ins, count=None)
    refused = await refuse(channel, attempt)
    assert refused.scope is SendScope.ATTEMPT
    assert len(attempt.payloads) == 2
