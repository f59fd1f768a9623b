"""What changes a message in the stand-in Slack: edits, files, people who delete and archive, and the rates."""

from typing import Any

import aiohttp
import pytest
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from tests.ops.stand_ins.test_slack import CRITICAL, refusal, section

RED = [{"color": "#d92d20", "text": "down"}]


async def test_an_edit_keeps_what_it_leaves_out_but_for_the_blocks(slack: AsyncWebClient, stand_ins: StandIns) -> None:
    metadata = {"event_type": "a", "event_payload": {"id": "1"}}
    posted = await slack.chat_postMessage(
        channel=CRITICAL, text="x", blocks=[section("x")], attachments=RED, metadata=metadata
    )
    where: dict[str, Any] = {"channel": posted["channel"], "ts": posted["ts"]}
    (message,) = stand_ins.slack.channels[CRITICAL].messages
    await slack.chat_update(**where, text="y")
    assert (message.text, message.blocks, message.attachments, message.metadata) == ("y", [], RED, metadata)
    await slack.chat_update(**where, text="y", attachments=[], metadata={})
    assert (message.attachments, message.metadata) == ([], None)


async def test_an_edit_that_slack_does_not_take_is_refused_by_its_name(
    slack: AsyncWebClient, stand_ins: StandIns, http: aiohttp.ClientSession
) -> None:
    workspace, channel = stand_ins.slack, stand_ins.slack.channels[CRITICAL]
    root = await slack.chat_postMessage(channel=CRITICAL, text="root")
    reply = await slack.chat_postMessage(channel=CRITICAL, text="reply", thread_ts=root["ts"])

    async def update(ts: str = root["ts"], **arguments: Any) -> str:
        call = slack.api_call("chat.update", json={"channel": channel.id, "ts": ts, **arguments})
        return str((await refusal(call))["error"])

    assert await update(text="x", attachments=[{}] * 101) == "too_many_attachments"
    assert await update(text="x", attachments=[{"blocks": [section("x" * 3001)]}]) == "invalid_blocks"
    assert await update(reply_broadcast=True) == "cant_broadcast_message"
    assert await update(reply["ts"], text="new", reply_broadcast=True) == "no_dual_broadcast_content_update"
    await slack.api_call("chat.update", json={"channel": channel.id, "ts": reply["ts"], "reply_broadcast": True})
    assert channel.messages[1].reply_broadcast
    async with http.post(stand_ins.build_slack_webhook_url(), json={"text": "by the webhook"}) as answer:
        assert answer.status == 200
    assert await update(channel.messages[2].ts, text="x") == "cant_update_message"
    workspace.edit_window = -1
    assert await update(text="x") == "edit_window_closed"
    workspace.edit_window = 60
    await slack.chat_update(channel=channel.id, ts=root["ts"], text="x")
    channel.is_archived = True
    assert await update(text="x") == "is_inactive"


async def test_a_file_is_shown_only_after_slack_has_processed_it(
    slack: AsyncWebClient, stand_ins: StandIns, http: aiohttp.ClientSession
) -> None:
    empty = await refusal(slack.files_getUploadURLExternal(filename="chart.png", length=0))
    assert empty["error"] == "invalid_arguments"
    uploaded = await slack.files_upload_v2(content=b"\x89PNG", filename="chart.png", title="Chart")
    file = uploaded["files"][0]["id"]
    image = {"type": "image", "alt_text": "Chart", "slack_file": {"id": file}}
    at_once = await refusal(slack.chat_postMessage(channel=CRITICAL, text="x", blocks=[image]))
    assert at_once["errors"] == ["invalid slack file [json-pointer:/blocks/0/slack_file]"]
    assert [(await slack.files_info(file=file))["file"]["mimetype"] for _ in range(2)] == ["", "image/png"]
    await slack.chat_postMessage(channel=CRITICAL, text="x", blocks=[image])
    for wrong in ({"slack_file": {"id": file, "url": "https://a.org"}}, {"image_url": "https://a.org"}):
        call = slack.chat_postMessage(channel=CRITICAL, text="x", blocks=[image | wrong])
        assert (await refusal(call))["error"] == "invalid_blocks"
    async with http.get(f"/slack/files/{file}") as answer:
        assert (answer.content_type, await answer.read()) == ("image/png", b"\x89PNG")
    channel = stand_ins.slack.channels[CRITICAL]
    root = channel.messages[0].ts
    await slack.files_upload_v2(
        content="all alerts", filename="alerts.txt", channel=channel.id, thread_ts=root, initial_comment="The rest"
    )
    reply = channel.messages[-1]
    assert (reply.text, reply.thread_ts, reply.files[0]["name"]) == ("The rest", root, "alerts.txt")


async def test_each_channel_takes_a_post_a_second_and_all_of_them_share_the_edits() -> None:
    now = 1_700_000_000.0
    async with run_stand_ins(clock=lambda: now, slack_rates=True) as stand_ins:
        slack = AsyncWebClient("xoxb-test", base_url=stand_ins.slack_api_url, retry_handlers=[])

        async def post(channel: str) -> int:
            return await _status(slack.chat_postMessage(channel=channel, text="x"))

        assert [await post(CRITICAL) for _ in range(10)] == [200] * 8 + [429] * 2
        assert await post("#security-ops") == 200
        now += 1.0
        assert [await post(CRITICAL) for _ in range(2)] == [200, 429]
        edits = [
            await _status(slack.chat_update(channel=channel.id, ts=channel.messages[0].ts, text="y"))
            for _ in range(26)
            for channel in stand_ins.slack.channels.values()
        ]
        assert edits == [200] * 50 + [429] * 2
        with pytest.raises(SlackApiError) as caught:
            await slack.chat_update(channel="C0", ts="1.000001", text="y")
        assert (caught.value.response.headers["Retry-After"], caught.value.response["error"]) == ("60", "ratelimited")
        now += 60.0
        assert await _status(slack.chat_update(channel=channel_id(stand_ins), ts="1.000001", text="y")) == 200
        stand_ins.slack.rates.enabled = False
        assert [await post(CRITICAL) for _ in range(20)] == [200] * 20


def channel_id(stand_ins: StandIns) -> str:
    return stand_ins.slack.channels[CRITICAL].id


async def _status(call: Any) -> int:
    try:
        return int((await call).status_code)
    except SlackApiError as error:
        return int(error.response.status_code)
