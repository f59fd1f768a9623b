"""The stand-in Slack, through Slack's own client."""

from io import BytesIO
from typing import Any

import aiohttp
import pytest
from slack_sdk.errors import SlackApiError
from slack_sdk.models.blocks import ActionsBlock, ButtonElement, DividerBlock, HeaderBlock, SectionBlock
from slack_sdk.models.metadata import Metadata
from slack_sdk.web.async_client import AsyncWebClient

from ops.demo.stand_ins.app import StandIns

CRITICAL = "#security-critical"


def section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


async def refusal(call: Any) -> dict[str, Any]:
    """Slack's answer to a call that it refuses."""
    with pytest.raises(SlackApiError) as caught:
        await call
    answer = caught.value.response
    assert answer.status_code == 200
    return dict(answer.data)


async def test_a_post_with_blocks_arrives_in_its_channel(slack: AsyncWebClient, stand_ins: StandIns) -> None:
    button = ButtonElement(text="Runbook", url="https://example.org/runbook", action_id="a")
    blocks = [HeaderBlock(text="Down"), SectionBlock(text="*ledger*"), DividerBlock(), ActionsBlock(elements=[button])]
    answer = await slack.chat_postMessage(channel=CRITICAL, text="Down", blocks=blocks)
    (message,) = stand_ins.slack.channels[CRITICAL].messages
    assert answer["ts"] == message.ts
    assert answer["channel"] == stand_ins.slack.channels[CRITICAL].id
    assert message.text == "Down"
    assert [block["type"] for block in message.blocks] == ["header", "section", "divider", "actions"]


async def test_a_channel_is_found_by_name_without_its_hash_and_by_id(
    slack: AsyncWebClient, stand_ins: StandIns
) -> None:
    for name in ("security-critical", stand_ins.slack.channels[CRITICAL].id):
        await slack.chat_postMessage(channel=name, text="x")
    assert len(stand_ins.slack.channels[CRITICAL].messages) == 2


async def test_auth_test_names_the_bot(slack: AsyncWebClient) -> None:
    assert (await slack.auth_test())["bot_id"].startswith("B")


async def test_no_token_is_not_authed_and_a_wrong_one_is_invalid_auth(
    stand_ins: StandIns, http: aiohttp.ClientSession
) -> None:
    wrong = AsyncWebClient("xoxb-wrong", base_url=stand_ins.slack_api_url, retry_handlers=[])
    assert (await refusal(wrong.chat_postMessage(channel=CRITICAL, text="x")))["error"] == "invalid_auth"
    async with http.post("/slack/api/chat.postMessage", json={"channel": CRITICAL, "text": "x"}) as answer:
        assert await answer.json() == {"ok": False, "error": "not_authed"}
    assert not stand_ins.slack.channels[CRITICAL].messages


async def test_a_form_is_taken_like_json(http: aiohttp.ClientSession, stand_ins: StandIns) -> None:
    form = {"token": "xoxb-test", "channel": CRITICAL, "blocks": '[{"type": "divider"}]'}
    async with http.post("/slack/api/chat.postMessage", data=form) as answer:
        assert (await answer.json())["ok"] is True
    assert stand_ins.slack.channels[CRITICAL].messages[0].blocks == [{"type": "divider"}]


@pytest.mark.parametrize(
    ("body", "error"),
    [(b"{", "invalid_json"), (b"[]", "json_not_object")],
)
async def test_a_body_that_is_no_call_is_refused(http: aiohttp.ClientSession, body: bytes, error: str) -> None:
    headers = {"Authorization": "Bearer xoxb-test", "Content-Type": "application/json; charset=utf-8"}
    async with http.post("/slack/api/chat.postMessage", data=body, headers=headers) as answer:
        assert (await answer.json())["error"] == error


async def test_a_body_over_1_mb_is_refused(http: aiohttp.ClientSession) -> None:
    headers = {"Content-Type": "application/json"}
    async with http.post(
        "/slack/api/chat.postMessage", data=BytesIO(b" " * (1024 * 1024 + 1)), headers=headers
    ) as answer:
        assert (await answer.json())["error"] == "request_too_large"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"channel": "#nowhere", "text": "x"}, "channel_not_found"),
        ({"channel": CRITICAL, "text": "x", "blocks": "["}, "invalid_blocks_format"),
        ({"channel": CRITICAL, "text": "x", "thread_ts": "0"}, "invalid_thread_ts"),
        ({"channel": CRITICAL, "text": "x", "metadata": {"event_type": "a"}}, "invalid_metadata_format"),
        ({"channel": CRITICAL, "text": "x", "blocks": [section("x" * 2800)] * 5}, "msg_blocks_too_long"),
    ],
)
async def test_a_post_that_slack_does_not_take_is_refused_by_its_name(
    slack: AsyncWebClient, stand_ins: StandIns, arguments: dict[str, Any], error: str
) -> None:
    assert (await refusal(slack.chat_postMessage(**arguments)))["error"] == error
    assert not stand_ins.slack.channels[CRITICAL].messages


async def test_a_post_without_text_and_blocks_is_refused(slack: AsyncWebClient) -> None:
    call = slack.api_call("chat.postMessage", json={"channel": CRITICAL})  # chat_postMessage would warn of it
    assert (await refusal(call))["error"] == "no_text"


async def test_invalid_blocks_are_named_with_the_position_of_the_error(slack: AsyncWebClient) -> None:
    answer = await refusal(slack.chat_postMessage(channel=CRITICAL, text="x", blocks=[section("x" * 3001)]))
    assert answer["error"] == "invalid_blocks"
    assert answer["response_metadata"]["messages"] == [
        "[ERROR] must be less than 3001 characters [json-pointer:/blocks/0/text/text]"
    ]


async def test_an_unknown_method_is_named(slack: AsyncWebClient) -> None:
    assert (await refusal(slack.api_call("chat.shout")))["error"] == "unknown_method"


async def test_a_reply_joins_the_thread_of_its_root_even_when_it_names_another_reply(
    slack: AsyncWebClient, stand_ins: StandIns
) -> None:
    root = await slack.chat_postMessage(channel=CRITICAL, text="root")
    reply = await slack.chat_postMessage(channel=CRITICAL, text="reply", thread_ts=root["ts"])
    await slack.chat_postMessage(channel=CRITICAL, text="to the reply", thread_ts=reply["ts"], reply_broadcast=True)
    messages = stand_ins.slack.channels[CRITICAL].messages
    assert [message.thread_ts for message in messages] == [None, root["ts"], root["ts"]]
    assert [message.reply_broadcast for message in messages] == [False, False, True]


async def test_a_reply_to_a_message_that_is_gone_stands_in_the_channel(slack: AsyncWebClient) -> None:
    answer = await slack.chat_postMessage(channel=CRITICAL, text="x", thread_ts="1700000000.000001")
    assert "thread_ts" not in answer["message"]


async def test_history_shows_roots_and_broadcasts_newest_first_and_replies_the_thread(slack: AsyncWebClient) -> None:
    root = await slack.chat_postMessage(channel=CRITICAL, text="root")
    await slack.chat_postMessage(channel=CRITICAL, text="quiet", thread_ts=root["ts"])
    await slack.chat_postMessage(channel=CRITICAL, text="loud", thread_ts=root["ts"], reply_broadcast=True)
    history = await slack.conversations_history(channel=root["channel"])
    assert [message["text"] for message in history["messages"]] == ["loud", "root"]
    replies = await slack.conversations_replies(channel=root["channel"], ts=root["ts"])
    assert [message["text"] for message in replies["messages"]] == ["root", "quiet", "loud"]


async def test_history_pages_between_oldest_and_latest(slack: AsyncWebClient) -> None:
    posts = [await slack.chat_postMessage(channel=CRITICAL, text=str(n)) for n in range(5)]
    window = {"channel": posts[0]["channel"], "oldest": posts[0]["ts"], "latest": posts[4]["ts"], "limit": 2}
    first = await slack.conversations_history(**window)
    assert [message["text"] for message in first["messages"]] == ["3", "2"]
    assert first["has_more"] is True
    cursor = first["response_metadata"]["next_cursor"]
    second = await slack.conversations_history(**window, cursor=cursor, inclusive=True)
    assert [message["text"] for message in second["messages"]] == ["2", "1"]


async def test_metadata_comes_back_only_where_it_is_requested(slack: AsyncWebClient) -> None:
    metadata = Metadata(event_type="delivery", event_payload={"id": "7"})
    posted = await slack.chat_postMessage(channel=CRITICAL, text="x", metadata=metadata)
    without = await slack.conversations_history(channel=posted["channel"])
    having = await slack.conversations_history(channel=posted["channel"], include_all_metadata=True)
    assert "metadata" not in without["messages"][0]
    assert having["messages"][0]["metadata"] == {"event_type": "delivery", "event_payload": {"id": "7"}}


async def test_an_update_needs_the_id_of_the_channel_and_a_message_that_exists(slack: AsyncWebClient) -> None:
    posted = await slack.chat_postMessage(channel=CRITICAL, text="before")
    by_name = await refusal(slack.chat_update(channel=CRITICAL, ts=posted["ts"], text="after"))
    assert by_name["error"] == "channel_not_found"
    missing = await refusal(slack.chat_update(channel=posted["channel"], ts="1.000001", text="after"))
    assert missing["error"] == "message_not_found"
    await slack.chat_update(channel=posted["channel"], ts=posted["ts"], text="after")
    history = await slack.conversations_history(channel=posted["channel"])
    assert history["messages"][0]["text"] == "after"
    assert "edited" in history["messages"][0]


async def test_an_update_counts_its_text_after_escaping(slack: AsyncWebClient) -> None:
    posted = await slack.chat_postMessage(channel=CRITICAL, text="x")
    where = {"channel": posted["channel"], "ts": posted["ts"]}
    await slack.chat_update(**where, text="&" * 800)
    assert (await refusal(slack.chat_update(**where, text="&" * 801)))["error"] == "msg_too_long"


async def test_the_channels_are_listed_with_their_ids(slack: AsyncWebClient, stand_ins: StandIns) -> None:
    listed = {channel["name"]: channel["id"] for channel in (await slack.conversations_list())["channels"]}
    assert listed == {name.removeprefix("#"): channel.id for name, channel in stand_ins.slack.channels.items()}


async def test_channels_are_listed_by_type_and_in_pages(slack: AsyncWebClient, stand_ins: StandIns) -> None:
    first = await slack.conversations_list(limit=1)
    second = await slack.conversations_list(limit=1, cursor=first["response_metadata"]["next_cursor"])
    names = [f"#{channel['name']}" for page in (first, second) for channel in page["channels"]]
    assert names == list(stand_ins.slack.channels)
    assert second["response_metadata"]["next_cursor"] == ""
    assert (await slack.conversations_list(types="private_channel"))["channels"] == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"limit": 1000}, "invalid_limit"),
        ({"limit": "many"}, "invalid_limit"),
        ({"cursor": "x"}, "invalid_cursor"),
        ({"types": "shed"}, "invalid_types"),
    ],
)
async def test_a_list_that_slack_does_not_give_is_refused_by_its_name(
    slack: AsyncWebClient, arguments: dict[str, Any], error: str
) -> None:
    assert (await refusal(slack.conversations_list(**arguments)))["error"] == error


@pytest.mark.parametrize(
    ("method", "arguments", "scope"),
    [
        ("chat_postMessage", {"channel": CRITICAL, "text": "x"}, "chat:write"),
        ("conversations_history", {"channel": "C0"}, "channels:history"),
        ("conversations_replies", {"channel": "C0", "ts": "1.000001"}, "channels:history"),
        ("conversations_list", {"types": "public_channel"}, "channels:read"),
        ("conversations_list", {"types": "public_channel,private_channel"}, "groups:read"),
    ],
)
async def test_a_scope_that_the_bot_lacks_is_named(
    slack: AsyncWebClient, stand_ins: StandIns, method: str, arguments: dict[str, Any], scope: str
) -> None:
    stand_ins.slack.scopes.discard(scope)
    answer = await refusal(getattr(slack, method)(**arguments))
    assert (answer["error"], answer["needed"]) == ("missing_scope", scope)
    assert set(answer["provided"].split(",")) == stand_ins.slack.scopes
    await slack.auth_test()  # needs none


async def test_only_the_last_messages_are_kept(slack: AsyncWebClient, stand_ins: StandIns) -> None:
    for n in range(505):
        await slack.chat_postMessage(channel=CRITICAL, text=str(n))
    messages = stand_ins.slack.channels[CRITICAL].messages
    assert (len(messages), messages[0].text, messages[-1].text) == (500, "5", "504")


async def test_each_answer_names_the_scopes_of_the_token(slack: AsyncWebClient, stand_ins: StandIns) -> None:
    stand_ins.slack.scopes = {"chat:write", "channels:read"}
    assert (await slack.auth_test()).headers["X-OAuth-Scopes"] == "channels:read,chat:write"


async def test_a_channel_is_described_by_its_id_to_a_bot_that_may_read_channels(
    slack: AsyncWebClient, stand_ins: StandIns
) -> None:
    channel = stand_ins.slack.channels[CRITICAL]
    channel.is_member = False
    info = (await slack.conversations_info(channel=channel.id))["channel"]
    assert (info["name"], info["is_member"], info["is_archived"]) == ("security-critical", False, False)
    assert (await refusal(slack.conversations_info(channel=CRITICAL)))["error"] == "channel_not_found"
    stand_ins.slack.scopes = {"chat:write"}
    assert (await refusal(slack.conversations_info(channel=channel.id)))["needed"] == "channels:read"


async def test_a_bot_posts_where_it_is_a_member_or_may_post_in_public(
    slack: AsyncWebClient, stand_ins: StandIns
) -> None:
    channel = stand_ins.slack.channels[CRITICAL]
    channel.is_member = False
    assert (await refusal(slack.chat_postMessage(channel=CRITICAL, text="x")))["error"] == "not_in_channel"
    stand_ins.slack.scopes |= {"chat:write.public"}
    await slack.chat_postMessage(channel=CRITICAL, text="x")
    channel.is_archived = True
    assert (await refusal(slack.chat_postMessage(channel=CRITICAL, text="x")))["error"] == "is_archived"
    listed = [each["id"] for each in (await slack.conversations_list(exclude_archived=True))["channels"]]
    assert channel.id not in listed
    assert channel.id in [each["id"] for each in (await slack.conversations_list())["channels"]]
