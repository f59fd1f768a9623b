import json
from pathlib import Path

import pytest

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from ops.demo.stand_ins.slack.workspace import SlackMessage
from services.relay.channels.port import AddressingChannel, Channel, SendError, SendReason, SendScope
from tests.relay.channels.conftest import WebServer
from tests.relay.channels.examples import SECRET, example, message, rotate, settings
from tests.relay.channels.recording_attempt import Recorded, send


def connect(secret_file: Path, stand_ins: StandIns, **changes: str) -> Channel:
    return settings({**example("slack", secret_file, stand_ins.http), **changes}).connect(5)


def posts(stand_ins: StandIns) -> list[SlackMessage]:
    return list(stand_ins.slack.channels["#security-critical"].messages)


async def test_the_all_clear_answers_in_the_thread_alone_and_a_critical_repeat_shows_in_the_channel(
    secret_file: Path, stand_ins: StandIns
) -> None:
    channel = connect(secret_file, stand_ins, mention="channel")
    receipt = await send(channel, message())
    await send(channel, message(first_receipt=receipt, delivery_id="repeat"))
    await send(channel, message("03-resolved-1", first_receipt=receipt, delivery_id="over"))
    await channel.close()
    first, repeat, over = posts(stand_ins)
    assert [post.thread_ts for post in (repeat, over)] == [first.ts, first.ts]
    assert [post.reply_broadcast for post in (repeat, over)] == [True, False]
    assert ["<!channel>" in str(post.blocks) for post in (first, repeat, over)] == [True, False, False]


async def test_a_first_message_that_is_gone_does_not_hold_back_the_next(secret_file: Path, stand_ins: StandIns) -> None:
    channel = connect(secret_file, stand_ins)
    await send(channel, message("03-resolved-1", first_receipt={"channel": "C1", "ts": "1700000000.000001"}))
    await channel.close()
    (post,) = posts(stand_ins)
    assert post.thread_ts is None


async def test_a_rotated_token_is_used_at_the_next_send(secret_file: Path, stand_ins: StandIns) -> None:
    rotate(secret_file, "xoxb-revoked")
    channel = connect(secret_file, stand_ins)
    with pytest.raises(SendError) as refused:
        await send(channel, message())
    assert (refused.value.reason, refused.value.scope) == (SendReason.UNAUTHORIZED, SendScope.CHANNEL)
    assert str(refused.value) == "Slack answered invalid_auth"
    rotate(secret_file, SECRET)
    await send(channel, message())
    await channel.close()
    assert len(posts(stand_ins)) == 1


@pytest.mark.parametrize(
    ("code", "reason", "scope"),
    [
        ("ratelimited", SendReason.RATE_LIMITED, SendScope.ATTEMPT),
        ("internal_error", SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        ("invalid_blocks", SendReason.REJECTED, SendScope.MESSAGE),
        ("no_text", SendReason.REJECTED, SendScope.MESSAGE),
        ("token_revoked", SendReason.UNAUTHORIZED, SendScope.CHANNEL),
        ("missing_scope", SendReason.UNAUTHORIZED, SendScope.CHANNEL),
        ("channel_not_found", SendReason.MISCONFIGURED, SendScope.CHANNEL),
        ("an_error_of_next_year", SendReason.REJECTED, SendScope.ATTEMPT),
    ],
)
async def test_each_error_of_slack_has_its_reason_and_scope(
    code: str, reason: SendReason, scope: SendScope, secret_file: Path, stand_ins: StandIns
) -> None:
    stand_ins.faults.add(ProviderFault(provider=Provider.SLACK, kind=FaultKind.ERROR, error=code))
    channel = connect(secret_file, stand_ins)
    with pytest.raises(SendError) as raised:
        await send(channel, message())
    await channel.close()
    assert (raised.value.reason, raised.value.scope) == (reason, scope)
    assert code in str(raised.value)
    # Slack's own word on these two: "It's possible some aspect of the operation succeeded".
    assert raised.value.maybe_arrived is (code in {"internal_error", "fatal_error"})


async def test_a_missing_scope_is_named(secret_file: Path, stand_ins: StandIns, website: WebServer) -> None:
    address = await website(
        200, '{"ok": false, "error": "missing_scope", "needed": "chat:write"}', Content_Type="application/json"
    )
    channel = connect(secret_file, stand_ins, api_url=f"http://{address}/api/")
    with pytest.raises(SendError, match="the token needs chat:write"):
        await send(channel, message())
    await channel.close()


async def test_slack_is_asked_not_to_interpret_the_text_or_unfurl_its_links(
    secret_file: Path, stand_ins: StandIns, website: WebServer, requests: list[bytes]
) -> None:
    address = await website(200, '{"ok": true, "channel": "C1", "ts": "1.000001"}', Content_Type="application/json")
    channel = connect(secret_file, stand_ins, api_url=f"http://{address}/api/")
    attempt = Recorded(message())
    await channel.send(attempt)
    await channel.close()
    (request,) = requests
    arguments = json.loads(request)
    assert attempt.payloads == [json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))]
    assert attempt.answers == ['chat.postMessage: {"ok": true, "channel": "C1", "ts": "1.000001"}']
    options = {key: arguments.get(key) for key in ("mrkdwn", "parse", "unfurl_links", "unfurl_media")}
    assert options == {"mrkdwn": False, "parse": "none", "unfurl_links": False, "unfurl_media": False}


async def test_what_slack_answers_is_kept_short_and_without_the_token(secret_file: Path, website: WebServer) -> None:
    answer = {"ok": True, "channel": f"C{SECRET}{'x' * 70_000}", "ts": [SECRET, "1" * 70_000]}
    address = await website(200, json.dumps(answer), Content_Type="application/json")
    channel = settings(example("slack", secret_file, address)).connect(5)
    attempt = Recorded(message())
    receipt = await channel.send(attempt)
    await channel.close()
    assert receipt["channel"].startswith("C[secret]xxx")
    assert SECRET not in f"{receipt} {attempt.answers}"
    assert len(f"{receipt} {attempt.answers}") < 2048


@pytest.mark.parametrize("channel", ["", "#", "security", "# ops", "#a b", None])
def test_a_channel_is_a_name_with_a_hash_or_an_id(channel: str | None, secret_file: Path, stand_ins: StandIns) -> None:
    values = example("slack", secret_file, stand_ins.http)
    with pytest.raises(ValueError, match="channel"):
        settings({**values, "channel": channel})
    assert settings({**values, "channel": "C0123ABCD"})


async def test_the_address_of_a_message_is_slacks_own(secret_file: Path, stand_ins: StandIns) -> None:
    channel = connect(secret_file, stand_ins)
    assert isinstance(channel, AddressingChannel)
    receipt = await send(channel, message())
    (post,) = posts(stand_ins)
    assert (await channel.find_address(receipt)).endswith(f"/p{post.ts.replace('.', '')}")
    with pytest.raises(SendError, match="Slack answered message_not_found"):
        await channel.find_address({**receipt, "ts": "1.000001"})
    await channel.close()
    assert settings(example("slack", secret_file, stand_ins.http)).has_address(receipt)
    assert not settings(example("slack_webhook", secret_file, stand_ins.http)).has_address({"answer": "ok"})


async def test_an_address_that_is_no_address_is_not_followed(secret_file: Path, website: WebServer) -> None:
    provider = await website(
        200, json.dumps({"ok": True, "permalink": "javascript:alert(1)"}), Content_Type="application/json"
    )
    channel = settings(example("slack", secret_file, provider)).connect(5)
    assert isinstance(channel, AddressingChannel)
    with pytest.raises(SendError, match="not one of its Web API"):
        await channel.find_address({"channel": "C1", "ts": "1.2"})
    await channel.close()
