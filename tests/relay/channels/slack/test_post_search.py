"""A post whose answer was lost is looked for before it is made again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from ops.demo.stand_ins.slack.workspace import create_message
from services.relay.channels.port import SendScope
from services.relay.model import Predecessor
from tests.relay.channels.conftest import Answering
from tests.relay.channels.recording_attempt import Recorded, refuse, send
from tests.relay.channels.slack.slack_posts import CRITICAL, Connect, locate, lost, now, posts


@pytest.mark.parametrize("by", ["name", "id"])
async def test_a_post_that_arrived_is_found_and_not_made_again(by: str, connect: Connect, stand_ins: StandIns) -> None:
    channel = CRITICAL if by == "name" else stand_ins.slack.channels[CRITICAL].id
    retry = await lost(stand_ins, connect(channel=channel), now())
    receipt = await connect(channel=channel).send(retry)
    (post,) = posts(stand_ins)
    assert receipt == locate(stand_ins, post)
    assert retry.payloads == []


async def test_a_post_that_did_not_arrive_is_made_without_mentioning_a_repeat(
    connect: Connect, stand_ins: StandIns
) -> None:
    channel = connect()
    await send(channel, now(delivery_id="another"))
    receipt = await channel.send(Recorded(now(), maybe_sent=True))
    _, post = posts(stand_ins)
    assert receipt == {"channel": stand_ins.slack.channels[CRITICAL].id, "ts": post.ts}
    assert "repeat" not in post.text


@pytest.mark.parametrize("minutes", [-5, 5, 600])
async def test_a_clock_that_differs_from_slacks_hides_no_post(
    minutes: int, connect: Connect, stand_ins: StandIns
) -> None:
    accepted = now(accepted_at=datetime.now(UTC) + timedelta(minutes=minutes), age=2.0)
    retry = await lost(stand_ins, connect(), accepted)
    receipt = await connect().send(retry)
    (post,) = posts(stand_ins)
    assert receipt == locate(stand_ins, post)


async def test_a_reply_is_found_in_its_thread(connect: Connect, stand_ins: StandIns) -> None:
    channel = connect()
    first = await send(channel, now(delivery_id="first"))
    retry = await lost(stand_ins, channel, now(first_receipt=first))
    stand_ins.slack.scopes -= {"channels:read", "groups:read"}  # the first receipt names the channel
    receipt = await connect().send(retry)
    _, reply = posts(stand_ins)
    assert receipt == locate(stand_ins, reply)


async def test_a_reply_to_a_message_that_is_gone_is_found_in_the_channel(connect: Connect, stand_ins: StandIns) -> None:
    missing = {"channel": stand_ins.slack.channels[CRITICAL].id, "ts": "1700000000.000001"}
    retry = await lost(stand_ins, connect(), now(first_receipt=missing))
    receipt = await connect().send(retry)
    (post,) = posts(stand_ins)
    assert receipt == locate(stand_ins, post)


@pytest.mark.parametrize("scope", ["channels:history", "channels:read"])
async def test_without_a_scope_the_second_post_says_that_it_may_be_a_repeat(
    scope: str, connect: Connect, stand_ins: StandIns
) -> None:
    retry = await lost(stand_ins, connect(), now())
    stand_ins.slack.scopes.discard(scope)
    receipt = await connect().send(retry)
    first, second = posts(stand_ins)
    assert receipt == {"channel": stand_ins.slack.channels[CRITICAL].id, "ts": second.ts}
    assert ["may be a repeat" in post.text for post in (first, second)] == [False, True]
    assert "may be a repeat" in str(second.blocks)
    assert "may be a repeat" in retry.payloads[0]


@pytest.mark.parametrize(
    ("fault", "scope"),
    [
        ({"kind": FaultKind.STATUS}, SendScope.ATTEMPT),
        ({"kind": FaultKind.RATE_LIMIT, "seconds": 9}, SendScope.ATTEMPT),
        ({"kind": FaultKind.ERROR, "error": "fatal_error"}, SendScope.ATTEMPT),
        ({"kind": FaultKind.ERROR, "error": "token_revoked"}, SendScope.CHANNEL),
    ],
)
async def test_nothing_is_posted_while_slack_cannot_say(
    fault: dict[str, object], scope: SendScope, connect: Connect, stand_ins: StandIns
) -> None:
    channel = connect()
    retry = await lost(stand_ins, channel, now())
    stand_ins.faults.add(ProviderFault.model_validate({"provider": Provider.SLACK, "count": 1, **fault}))
    raised = await refuse(channel, retry)
    assert (raised.scope, raised.maybe_arrived) == (scope, True)
    assert raised.retry_after == fault.get("seconds")
    assert retry.payloads == []
    assert (await channel.send(retry))["found"] == "yes"
    assert len(posts(stand_ins)) == 1


async def test_a_post_is_found_behind_many_others(connect: Connect, stand_ins: StandIns) -> None:
    retry = await lost(stand_ins, connect(), now())
    for number in range(250):
        stand_ins.slack.add_message(stand_ins.slack.channels[CRITICAL], create_message(str(number), []))
    assert (await connect().send(retry))["found"] == "yes"


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_all_that_was_merged_into_a_first_message_is_searched_for_on_one_page(
    connect: Connect, stand_ins: StandIns, is_deleted: bool
) -> None:
    """The first of many attempts arrived; or the last one did, too, and somebody deleted that."""
    ids = [f"lost {number}" for number in range(8)]
    await lost(stand_ins, connect(), now(delivery_id=ids[0]))
    (arrived,) = posts(stand_ins)
    if is_deleted:
        receipt = await send(connect(), now(delivery_id=ids[-1]))
        await send(connect(), now(delivery_id="a reply", first_receipt=receipt))
        stand_ins.slack.delete_message(stand_ins.slack.channels[CRITICAL], posts(stand_ins)[1])
    accepted = datetime.now(UTC)
    predecessors = tuple(Predecessor(each, accepted, {}) for each in reversed(ids))
    message = now(event="03-resolved-1", predecessors=predecessors, accepted_at=accepted + timedelta(minutes=10))
    attempt = Recorded(message)
    receipt = await connect().send(attempt)
    assert receipt == locate(stand_ins, arrived)
    assert posts(stand_ins)[0].text.startswith("🟢 Resolved")
    assert len([each for each in posts(stand_ins) if not each.is_deleted and each.thread_ts is None]) == 1
    assert sum("conversations.history" in answer for answer in attempt.answers) == 1 + is_deleted


async def test_what_is_older_than_the_delivery_is_not_searched(connect: Connect, stand_ins: StandIns) -> None:
    channel = connect()
    retry = await lost(stand_ins, channel, now())
    (post,) = posts(stand_ins)
    stand_ins.slack.channels[CRITICAL].messages[0] = replace(post, ts=f"{post.at - 300:.6f}")
    assert "found" not in await channel.send(retry)
    assert len(posts(stand_ins)) == 2


@pytest.mark.parametrize("is_answered", [True, False])
async def test_only_where_slack_does_not_say_the_time_the_delivery_stays_uncertain(
    is_answered: bool, connect: Connect, answering: Answering
) -> None:
    async def answer(request: web.Request) -> web.Response:
        posted = {"ok": True, "channel": "C0123ABCD", "ts": "1.000001", "messages": []}
        return web.json_response(posted, headers={} if is_answered else {"Date": "never"})

    attempt = Recorded(now(), maybe_sent=True)
    await connect(channel="C0123ABCD", api_url=f"http://{await answering(answer)}/").send(attempt)
    assert ("may be a repeat" in attempt.payloads[0]) is not is_answered


@pytest.mark.parametrize(
    "page",
    [
        {"ok": True, "messages": [], "response_metadata": {"next_cursor": "more"}},  # of which there is no end
        {"ok": False, "error": "not_in_channel"},
        {"ok": False, "error": "an_error_of_next_year"},
    ],
)
async def test_a_search_without_a_result_is_bounded_and_leaves_the_delivery_uncertain(
    page: dict[str, object], connect: Connect, answering: Answering
) -> None:
    requests: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        method = request.path.rpartition("/")[2]
        requests.append(method)
        posted = {"ok": True, "channel": "C0123ABCD", "ts": "1.000001"}
        return web.json_response(posted if method == "chat.postMessage" else page)

    attempt = Recorded(now(), maybe_sent=True)
    await connect(channel="C0123ABCD", api_url=f"http://{await answering(answer)}/").send(attempt)
    assert "may be a repeat" in attempt.payloads[0]
    assert requests[-1] == "chat.postMessage"
    assert len(requests) <= 6
