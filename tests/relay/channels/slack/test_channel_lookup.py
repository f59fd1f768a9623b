"""In which channel the relay searches for a post whose reply was lost."""

from typing import Any

import pytest
from aiohttp import web

from ops.demo.stand_ins.app import StandIns
from services.relay.channels.slack.thread import build_metadata
from tests.relay.channels.conftest import Answering
from tests.relay.channels.examples import message
from tests.relay.channels.recording_attempt import Recorded, send
from tests.relay.channels.slack.slack_posts import Connect, locate, lost, now, posts

PRIVATE = "G0123PRIVATE"


async def test_a_channel_whose_id_was_in_an_answer_needs_no_list(connect: Connect, stand_ins: StandIns) -> None:
    channel = connect()
    await send(channel, now(delivery_id="another"))
    retry = await lost(stand_ins, channel, now())
    stand_ins.slack.scopes -= {"channels:read", "groups:read"}
    assert (await channel.send(retry))["found"] == "yes"


async def test_the_configured_channel_counts_and_not_the_one_of_an_earlier_receipt(
    connect: Connect, stand_ins: StandIns
) -> None:
    earlier = await send(connect(channel="#security-ops"), now(delivery_id="first"))
    retry = await lost(stand_ins, connect(), now(first_receipt=earlier))
    receipt = await connect().send(retry)
    (post,) = posts(stand_ins)
    assert receipt == locate(stand_ins, post)


async def test_where_the_channel_may_be_the_wrong_one_the_delivery_stays_uncertain(
    connect: Connect, stand_ins: StandIns
) -> None:
    earlier = await send(connect(channel="#security-ops"), now(delivery_id="first"))
    retry = await lost(stand_ins, connect(), now(first_receipt=earlier))
    stand_ins.slack.scopes -= {"channels:read", "groups:read"}  # nobody can say which one is configured now
    assert "found" not in await connect().send(retry)
    assert ["may be a repeat" in post.text for post in posts(stand_ins)] == [False, True]


@pytest.mark.parametrize("member", [True, False])
async def test_a_private_channel_is_found_by_its_name_by_a_member(
    member: bool, connect: Connect, answering: Answering
) -> None:
    requests: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        method = request.path.rpartition("/")[2]
        requests.append(f"{method} {request.query.get('types') or request.query.get('channel', '')}".strip())
        private = {"id": PRIVATE, "name": "war-room", "is_private": True}
        there = {"messages": [{"ts": "2.000001", "metadata": build_metadata(message().task.delivery_id)}]}
        answers: dict[str, dict[str, Any]] = {
            "conversations.list public_channel": {"channels": [{"id": "C0123PUBLIC", "name": "war-room-2"}]},
            "conversations.list private_channel": {"channels": [private] if member else []},
            f"conversations.history {PRIVATE}": there,
            "chat.postMessage": {"channel": PRIVATE, "ts": "3.000001"},
        }
        return web.json_response({"ok": True, **answers[requests[-1]]})

    attempt = Recorded(message(), maybe_sent=True)
    receipt = await connect(channel="#war-room", api_url=f"http://{await answering(answer)}/").send(attempt)
    assert requests[:2] == ["conversations.list public_channel", "conversations.list private_channel"]
    if member:
        assert receipt == {"channel": PRIVATE, "ts": "2.000001", "found": "yes"}
        assert attempt.payloads == []
    else:  # Slack does not show it to others
        assert receipt == {"channel": PRIVATE, "ts": "3.000001"}
        assert "may be a repeat" in attempt.payloads[0]
