"""The stand-in Slack, through Slack's own client."""

from typing import Any

import pytest
from slack_sdk.errors import SlackApiError
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


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("chat.getPermalink", {"channel": "C000", "message_ts": "1.0"}, "channel_not_found"),
        ("chat.getPermalink", {"channel": CRITICAL, "message_ts": "1.0"}, "message_not_found"),
        ("chat.postEphemeral", {"channel": CRITICAL, "user": "U000", "text": "x"}, "user_not_in_channel"),
        ("conversations.list", {"types": "im"}, "invalid_types"),
        ("files.getUploadURLExternal", {"filename": "a.png", "length": 0}, "invalid_arguments"),
        ("files.completeUploadExternal", {"files": []}, "invalid_arguments"),
        ("files.completeUploadExternal", {"files": [{"id": "F0"}]}, "file_not_found"),
        ("files.info", {"file": "F0"}, "file_not_found"),
        ("users.info", {"user": "U000"}, "user_not_found"),
        ("usergroups.users.list", {"usergroup": "S000"}, "no_such_subteam"),
    ],
)
async def test_what_is_not_there_is_refused_by_slacks_own_name(
    slack: AsyncWebClient, stand_ins: StandIns, method: str, arguments: dict[str, Any], error: str
) -> None:
    if arguments.get("channel") == CRITICAL:
        arguments = {**arguments, "channel": stand_ins.slack.channels[CRITICAL].id}
    assert (await refusal(slack.api_call(method, json=arguments)))["error"] == error


async def test_invalid_blocks_are_named_with_the_position_of_the_error(slack: AsyncWebClient) -> None:
    answer = await refusal(slack.chat_postMessage(channel=CRITICAL, text="x", blocks=[section("x" * 3001)]))
    assert answer["error"] == "invalid_blocks"
    assert answer["response_metadata"]["messages"] == [
        "[ERROR] must be less than 3001 characters [json-pointer:/blocks/0/text/text]"
    ]


async def test_a_reply_joins_the_thread_of_its_root_even_when_it_names_another_reply(
    slack: AsyncWebClient, stand_ins: StandIns
) -> None:
    root = await slack.chat_postMessage(channel=CRITICAL, text="root")
    reply = await slack.chat_postMessage(channel=CRITICAL, text="reply", thread_ts=root["ts"])
    await slack.chat_postMessage(channel=CRITICAL, text="to the reply", thread_ts=reply["ts"], reply_broadcast=True)
    messages = stand_ins.slack.channels[CRITICAL].messages
    assert [message.thread_ts for message in messages] == [None, root["ts"], root["ts"]]
    assert [message.reply_broadcast for message in messages] == [False, False, True]


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
